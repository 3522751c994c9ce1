"""Generators are recognised by their shapes; errors name the layers that are not read."""

import re
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from qdgs_jax.errors import CheckpointError
from qdgs_jax.models import dcgan
from qdgs_jax.models.checkpoint import Tensors, read_tensors
from qdgs_jax.models.dcgan.params import EPSILON, MAX_FILE, MAX_TENSORS

HERE = Path(__file__).parent
NORM = ("weight", "bias", "running_mean", "running_var")


def random(*shape: int, seed: int = 0) -> np.ndarray:
    key = np.random.default_rng((seed, *shape))
    return (key.uniform(0.2, 1, shape) * key.choice([-1, 1], shape)).astype(np.float32)


def norm(name: str, size: int, parts: tuple[str, ...] = NORM) -> Tensors:
    tensors = {f"{name}.{part}": random(size, seed=i) for i, part in enumerate(parts)}
    tensors[f"{name}.running_var"] = np.abs(tensors[f"{name}.running_var"])
    return tensors


def network(prefix: str = "net.", *, latents: int = 3, colours: int = 3) -> Tensors:
    """Latents -> 5 channels -> 4 channels -> images."""
    return {
        f"{prefix}0.weight": random(latents, 5, 4, 4),
        **norm(f"{prefix}1", 5),
        f"{prefix}3.weight": random(5, 4, 4, 4),
        **norm(f"{prefix}4", 4),
        f"{prefix}6.weight": random(4, colours, 4, 4),
    }


def discriminator(prefix: str) -> Tensors:
    return {
        f"{prefix}0.weight": random(4, 3, 4, 4),
        f"{prefix}2.weight": random(5, 4, 4, 4),
        **norm(f"{prefix}3", 5),
        f"{prefix}5.weight": random(1, 5, 4, 4),
    }


@pytest.fixture
def load(tmp_path: Path) -> Callable:
    def load(tensors: Tensors) -> tuple[dcgan.DCGANConfig, dict]:
        save_file(tensors, tmp_path / "x.pt")
        return dcgan.load(tmp_path / "x.pt")

    return load


def in_attributes(tensors: Tensors) -> Tensors:
    """Names as of modules with attributes up1, up2, ..., norm1, norm2, ..."""

    def name(match: re.Match) -> str:
        layer, kind = divmod(int(match[1]), 3)
        return f"{'norm' if kind else 'up'}{layer + 1}."

    return {re.sub(r"main\.(\d+)\.", name, key): tensor for key, tensor in tensors.items()}


def with_dropout(tensors: Tensors) -> Tensors:
    """Names as with a layer more between, and a counter."""

    def name(match: re.Match) -> str:
        place = int(match[1])
        return f"main.{place + (place > 1)}."

    moved = {re.sub(r"main\.(\d+)\.", name, key): tensor for key, tensor in tensors.items()}
    return {**moved, "main.1.num_batches_tracked": np.array(7)}


def in_blocks(tensors: Tensors) -> Tensors:
    def name(match: re.Match) -> str:
        layer, kind = divmod(int(match[1]), 3)
        return f"state_dict.G.layers.{layer}.{('conv', 'bn')[kind]}."

    return {re.sub(r"main\.(\d+)\.", name, key): tensor for key, tensor in tensors.items()}


def renamed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key.replace("main.", prefix): tensor for key, tensor in tensors.items()}


def twice(tensors: Tensors) -> Tensors:
    old = {key.replace("main", "netG.main"): tensor + 1 for key, tensor in tensors.items()}
    return {**old, **renamed("netG_ema.module.")(tensors)}


@pytest.mark.parametrize(
    "rename",
    [
        renamed(""), renamed("model."), renamed("net.gen."), renamed("module.generator.main."),
        renamed("_orig_mod.main."), in_attributes, in_blocks, with_dropout, twice,
    ],
    ids=["bare", "model", "nested", "module", "compiled", "attributes", "blocks", "dropout", "ema"],
)  # fmt: skip
@pytest.mark.parametrize("trained", [False, True])
def test_any_names(load: Callable, rename: Callable, trained: bool) -> None:
    tensors = {
        key.removeprefix("generator."): np.array(tensor)
        for key, tensor in read_tensors(HERE / "weights.tar").items()
        if key.startswith("generator.") and tensor.ndim
    }
    content = rename(tensors)
    if trained:
        content = {f"g.{key}": tensor for key, tensor in content.items()}
        content |= {**discriminator("d.main."), "noise": random(9, 7, 1, 1)}
    config, params = load(content)
    expected_config, expected = dcgan.load(HERE / "weights.tar")
    assert config == expected_config
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_two_networks_of_which_one_seems_to_continue_the_other(load: Callable) -> None:
    config, params = load(network("a.", latents=3) | network("b.", latents=3))
    assert config == dcgan.DCGANConfig(3, (5, 4))
    assert set(params) == {"project", "up1", "up2"}


def transposed(x: np.ndarray, kernel: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """PyTorch's transposed convolution of x [N, C, H, W] with a kernel [C, F, h, w]."""
    (n, _, height, width), (_, features, rows, columns) = x.shape, kernel.shape
    full = np.zeros((n, features, (height - 1) * stride + rows, (width - 1) * stride + columns))
    for i in range(height):
        for j in range(width):
            window = np.einsum("nc,cfhw->nfhw", x[:, :, i, j], kernel)
            full[:, :, i * stride : i * stride + rows, j * stride : j * stride + columns] += window
    end = -padding or None
    return full[:, :, padding:end, padding:end]


def normalised(x: np.ndarray, tensors: Tensors, name: str) -> np.ndarray:
    def part(key: str, default: float) -> np.ndarray:
        values = tensors.get(f"{name}.{key}", np.full(x.shape[1], default))
        return values.reshape(-1, *[1] * (x.ndim - 2))

    x = (x - part("running_mean", 0)) / np.sqrt(part("running_var", 1) + EPSILON)
    return x * part("weight", 1) + part("bias", 0)


def test_biases_and_a_larger_first_kernel_without_norms_in_grey(load: Callable) -> None:
    tensors = {
        "a.weight": random(2, 4, 3, 3), "a.bias": random(4),
        "b.weight": random(4, 2, 4, 4), "b.bias": random(2),
        "c.weight": random(2, 1, 4, 4) / 9, "c.bias": random(1),
    }  # fmt: skip
    config, params = load(tensors)
    assert config == dcgan.DCGANConfig(2, (4, 2), first_side=3, image_channels=1)
    latents = random(3, 2)
    x = latents[:, :, None, None]
    for name, stride in (("a", 1), ("b", 2), ("c", 2)):
        x = x if name == "a" else np.maximum(x, 0)
        x = transposed(x, tensors[f"{name}.weight"], stride, stride - 1)
        x = x + tensors[f"{name}.bias"][:, None, None]
    images = dcgan.generate(config, params, latents)
    assert images.shape == (3, config.image_size, config.image_size, 1) == (3, 12, 12, 1)
    np.testing.assert_allclose(images, (np.tanh(x).transpose(0, 2, 3, 1) + 1) / 2, atol=1e-5)


@pytest.mark.parametrize("flat", [False, True])
def test_a_linear_layer_with_its_norm_before_or_after_the_reshaping(
    load: Callable, flat: bool
) -> None:
    tensors = {
        "fc.weight": random(4 * 9, 2), "fc.bias": random(4 * 9),
        **norm("fc_bn", 4 * 9 if flat else 4, NORM if flat else NORM[2:]),
        "up.0.weight": random(4, 3, 4, 4) / 9, "up.0.bias": random(3),
    }  # fmt: skip
    config, params = load(tensors)
    assert config == dcgan.DCGANConfig(2, (4,), first_side=3)
    latents = random(3, 2)
    x = latents @ tensors["fc.weight"].T + tensors["fc.bias"]
    square = (-1, 4, 3, 3)
    x = normalised(x if flat else x.reshape(square), tensors, "fc_bn").reshape(square)
    x = transposed(np.maximum(x, 0), tensors["up.0.weight"], 2, 1)
    expected = np.tanh(x + tensors["up.0.bias"][:, None, None])
    images = dcgan.generate(config, params, latents)
    np.testing.assert_allclose(images, (expected.transpose(0, 2, 3, 1) + 1) / 2, atol=1e-5)


def test_one_hidden_layer_without_a_norm(load: Callable) -> None:
    tensors = {name: tensor for name, tensor in network().items() if "net.1." not in name}
    _, params = load(tensors)
    assert not params["project"]["bias"].any()
    scale = tensors["net.4.weight"] / np.sqrt(tensors["net.4.running_var"] + EPSILON)
    expected = tensors["net.3.weight"].transpose(2, 3, 0, 1) * scale
    np.testing.assert_allclose(params["up1"]["kernel"], expected, rtol=1e-6)


def changed(change: Callable[[Tensors], object]) -> Tensors:
    tensors = network()
    change(tensors)
    return tensors


def moved(tensors: Tensors, before: str, after: str) -> Tensors:
    return {key.replace(before, after): tensor for key, tensor in tensors.items()}


WIDE = {"net.3.weight": random(5, 4, 3, 3)}
REFUSED = {
    "a discriminator": (discriminator(""), r"2\.weight \(5, 4, 4, 4\) does not continue 0\.weight"),
    "a kernel": (network() | WIDE, r"net\.3\.weight \(5, 4, 3, 3\) has no 4 x 4 kernel"),
    "a kernel, with a discriminator": (
        moved(network() | WIDE, "net", "g") | discriminator("d."),
        r"g\.3\.weight \(5, 4, 3, 3\) has no 4 x 4 kernel",
    ),
    "a last convolution": (
        network(colours=4) | {"net.8.weight": random(3, 4, 3, 3)},
        r"net\.8\.weight \(3, 4, 3, 3\) does not continue net\.6\.weight \(4, 4, 4, 4\)",
    ),
    "other channels": (network(colours=2), r"net\.6\.weight \(4, 2, 4, 4\) does not return images"),
    "a norm of other statistics": (
        changed(lambda tensors: tensors.pop("net.4.running_var")),
        r"net\.4\.bias, float32 \(4,\)",
    ),
    "a norm behind an activation": (
        moved(network(), "net.4.", "net.5."),
        r"net\.1\.running_mean \(5,\), net\.5\.running_mean \(4,\) are not of .* directly",
    ),
    "a norm of another size": (
        network() | norm("net.4", 5), r"net\.4.* \(5,\) are not .* layers of 5, 4 channels",
    ),
    "a norm a pixel": (network() | norm("net.4", 4 * 16), r"net\.4.* \(64,\) are not of"),
    "a norm of a pixel": (network() | norm("net.4", 1), r"net\.4.* \(1,\) are not of"),
    "a bias of another size": (
        network() | {"net.3.bias": random(5)}, r"net\.3\.bias is \(5,\) instead of \(4,\)",
    ),
    "a norm of one of two layers": (
        {"a.weight": random(3, 4, 4, 4), "b.weight": random(4, 4, 4, 4),
         "c.weight": random(4, 3, 4, 4), **norm("n", 4)},
        r"n\.running_mean \(4,\) are not of .* layers of 4, 4 channels",
    ),
    "a last norm": (network() | norm("net.7", 3), r"net\.7\.running_mean \(3,\) are not of"),
    "integers": (
        network() | {"net.6.weight": np.zeros((4, 3, 4, 4), np.int32)}, r"net\.6\.weight, int32",
    ),
    "another parameter": (
        network() | {"net.7.gamma": random(1)}, r"net\.7\.gamma, float32 \(1,\)",
    ),
    "an embedding": (
        moved(network(), "net", "g.net") | {"g.embed.weight": random(8, 2)},
        r"g\.embed\.weight \(8, 2\) does not map latents to squares of 3 channels",
    ),
    "the part behind a linear layer": (
        {"encoder.weight": random(4, 3, 3, 3), "fc.weight": random(27, 2)}
        | network("decoder."),
        r"fc\.weight \(27, 2\) may be a layer before those of decoder: .* generator alone",
    ),
    "spectral norm": (
        {key.replace("6.weight", "6.weight_orig"): value for key, value in network().items()},
        r"net\.3\.weight \(5, 4, 4, 4\) does not return images",
    ),
    "no kernels": (norm("a", 4), r"only the tensors a\.bias \(4,\), .*: give .* DCGAN \(a linear"),
    "nothing": (
        changed(lambda tensors: [tensors.pop(key) for key in list(tensors) if "0.w" not in key]),
        r"only the tensors net\.0\.weight \(3, 5, 4, 4\)",
    ),
    "empty": (network(latents=0), "does not return images"),
    "many tensors": ({f"a{i}.b": np.zeros(1) for i in range(MAX_FILE + 1)}, "more than 4096"),
    "a large network": (
        {f"a.{i}.b": np.zeros(1) for i in range(MAX_TENSORS + 1)},
        r"only the tensors a\.0\.b",
    ),
    "many layers": (
        {f"a.{i}.weight": random(4, 3 if i == 12 else 4, 4, 4) for i in range(13)},
        "more than 12 layers",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_read_is_named(load: Callable, tensors: Tensors, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason) as caught:
        load(tensors)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_that_torch_wrote(tmp_path: Path, legacy: bool) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is absent: install the extra `bench`")
    nn = torch.nn
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.ConvTranspose2d(3, 6, 4), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2),
        nn.ConvTranspose2d(6, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.ConvTranspose2d(4, 3, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip
    critic = nn.Sequential(nn.Conv2d(3, 4, 4, 2, 1), nn.LeakyReLU(), nn.Conv2d(4, 1, 4))
    latents = torch.randn(5, 3)
    net(latents[:, :, None, None])  # the norms' statistics are no longer 0 and 1
    steps = torch.optim.Adam(net.parameters())
    net.eval()
    content = {"epoch": 3, "netD": critic.state_dict(), "netG": net.state_dict(),
               "optimizer": steps.state_dict()}  # fmt: skip
    path = tmp_path / "x.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert path.read_bytes()[:2] == (b"\x80\x02" if legacy else b"PK")
    with torch.no_grad():
        expected = (net(latents[:, :, None, None]).numpy().transpose(0, 2, 3, 1) + 1) / 2
    images = dcgan.generate(*dcgan.load(path), latents.numpy())
    np.testing.assert_allclose(images, expected, atol=1e-6)


@pytest.mark.parametrize("layers", [2, 11])
def test_what_is_saved_is_loaded(tmp_path: Path, layers: int) -> None:
    """Also eleven layers, of which up10 stands before up2 in a sorted file."""
    config = dcgan.DCGANConfig(5, (*range(layers + 3, 4, -1),), first_side=2, image_channels=1)
    params = dcgan.init(config, jax.random.key(0))
    params = jax.tree.map(lambda x: x + jnp.arange(x.size).reshape(x.shape) / x.size, params)
    found, read = dcgan.load(dcgan.save(tmp_path, config, params))
    assert found == config
    jax.tree.map(np.testing.assert_array_equal, read, params)
