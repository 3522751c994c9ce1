"""StyleGAN2 computes what NVIDIA's code and the paper's equations give."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax.models import stylegan2
from qdgs_jax.models.stylegan2.modeling import Block, Synthesis, normalize
from qdgs_jax.models.stylegan2.resampling import (
    down_convolve,
    downsample,
    up_convolve,
    upsample,
)
from qdgs_jax.typing import Array

TOLERANCES = {
    "values": 1e-5,  # of the maximum, float32 against float64; measured 1.2e-6
    "gradient, float64": 1e-6,  # of the maximum; the goldens are rounded to float32
    "gradient, float32": 1e-2,  # relative L2; one activation beyond a kink gives 3e-4
    "operations": 1e-6,  # of the maximum; one layer deep
    "bf16": 0.1,  # relative L2; measured 0.02: 8 bits of mantissa, ten layers deep
}
TAPS = (0.125, 0.375, 0.375, 0.125)


def deviation(actual: Any, desired: np.ndarray) -> float:
    """Of the maximum."""
    assert actual.shape == desired.shape
    return float(np.max(np.abs(np.asarray(actual) - desired)) / np.max(np.abs(desired)))


def difference(actual: Any, desired: Any) -> float:
    """Relative, in L2."""
    return float(np.linalg.norm(np.asarray(actual) - desired) / np.linalg.norm(desired))


@pytest.fixture(scope="module", params=["sg2_ffhq256_tiny", "sg2_ada_clamp_32", "sg2_cond_32"])
def published(reference: Path, request: pytest.FixtureRequest) -> Any:
    """A network in NVIDIA's format, and what NVIDIA's code computes with it, NHWC."""
    folder = reference / "stylegan2"
    config, params = stylegan2.load(folder / f"{request.param}.pkl")
    golden = dict(np.load(folder / f"{request.param}_golden.npz"))
    images = {key: x.transpose(0, 2, 3, 1) for key, x in golden.items() if x.ndim == 4}
    return config, params, golden | images


def silenced(params: Any, strength: float = 0.0) -> Any:
    """Another strength of noise in all layers."""

    def change(path: Any, leaf: Any) -> Any:
        return jnp.full_like(leaf, strength) if path[-1].key == "noise_strength" else leaf

    return jax.tree_util.tree_map_with_path(change, params)


def gradients(config: Any, cotangent: Any) -> Callable:
    """(params, ws) -> images, and the gradient of their product with a cotangent."""

    # Compiling takes longer than running.
    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def compute(params: Any, ws: Any) -> Any:
        images, pull_back = jax.vjp(partial(stylegan2.synthesize, config, params), ws)
        return images, pull_back(jnp.asarray(cotangent, images.dtype))[0]

    return compute


def test_styles_match_nvidia(published: Any) -> None:
    config, params, golden = published
    map_latents = partial(stylegan2.map_latents, config, params, golden["z"], golden.get("c"))
    for name, options in {
        "psi1": {},
        "psi07": {"truncation_psi": 0.7},
        "psi07_cut4": {"truncation_psi": 0.7, "truncation_cutoff": 4},
    }.items():
        ws = map_latents(**options)
        assert deviation(ws, golden[f"ws_{name}_f64"]) < TOLERANCES["values"]


def test_images_and_gradients_match_nvidia(published: Any) -> None:
    config, params, golden = published
    compute = gradients(config, np.tile(golden["cotangent"], (4, 1, 1, 1)))

    def batch(*names: str) -> np.ndarray:
        return np.concatenate([golden[f"ws_{name}"] for name in names])

    names = ("mix", "psi1", "psi07", "psi07_cut4")
    images, grads = (np.split(x, 4) for x in compute(params, batch(*names)))
    for i, name in enumerate(names):
        assert deviation(images[i], golden[f"img_const_{name}_f64"]) < TOLERANCES["values"]
    for i, name in enumerate(names[:2]):
        desired = golden[f"grad_const_{name}_f64"]
        assert difference(grads[i], desired) < TOLERANCES["gradient, float32"]
    # The same program, without noise.
    images = np.split(compute(silenced(params), batch("mix", "psi1", "mix", "psi1"))[0], 4)
    for i, name in enumerate(names[:2]):
        assert deviation(images[i], golden[f"img_none_{name}_f64"]) < TOLERANCES["values"]


@pytest.mark.slow
def test_gradients_match_nvidia_in_float64(published: Any) -> None:
    config, params, golden = published
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        compute = gradients(config, golden["cotangent"])
        for name in ("mix", "psi1"):
            images, grads = compute(wide, jnp.asarray(golden[f"ws_{name}"], jnp.float64))
            assert images.dtype == grads.dtype == jnp.float64
            assert deviation(images, golden[f"img_const_{name}_f64"]) < 2e-7
            desired = golden[f"grad_const_{name}_f64"]
            assert deviation(grads, desired) < TOLERANCES["gradient, float64"]


def test_every_block_matches_nvidia(published: Any) -> None:
    config, params, golden = published
    if "act_b4_x" not in golden:
        pytest.skip("only one file has goldens of its blocks")
    capture = partial(
        Synthesis(config).apply,
        {"params": params["synthesis"]},
        capture_intermediates=lambda module, _: isinstance(module, Block),
    )
    _, state = jax.jit(capture, static_argnums=1)(golden["ws_mix"][:1], "const", None)
    for i in range(len(config.channels)):
        (outputs,) = state["intermediates"][f"block{4 << i}"]["__call__"]
        for name, output in zip(("x", "img"), outputs, strict=True):
            assert deviation(output, golden[f"act_b{4 << i}_{name}"]) < TOLERANCES["values"]


@pytest.fixture(scope="module")
def operations(reference: Path) -> dict[str, np.ndarray]:
    golden = dict(np.load(reference / "stylegan2/sg2_ops_golden.npz"))
    return {key: x.transpose(0, 2, 3, 1) if x.ndim == 4 else x for key, x in golden.items()}


def test_operations_match_nvidia(operations: dict[str, np.ndarray]) -> None:
    golden, x = operations, operations["x"]
    images = upsample(jnp.asarray(golden["x_img"]), TAPS)
    assert deviation(images, golden["upsample2d_1331"]) < TOLERANCES["operations"]
    y = up_convolve(jnp.asarray(x), jnp.asarray(golden["w3"].transpose(3, 1, 2, 0)), TAPS)
    assert deviation(y, golden["conv_up2_k3_flipF"]) < TOLERANCES["operations"]
    y = upsample(x @ golden["w1"][:, 0, 0].T, TAPS)
    assert deviation(y, golden["conv_up2_k1"]) < TOLERANCES["operations"]
    z = normalize(golden["z"])
    assert deviation(z, golden["normalize_2nd_moment"]) < TOLERANCES["operations"]


def test_downsampling_is_filter_and_stride() -> None:
    """Compared with XLA's convolutions, which do not turn kernels round."""
    taps, random = (0.1, 0.2, 0.3, 0.4), np.random.default_rng(0)
    x, kernel = (
        jnp.asarray(random.normal(size=size), jnp.float32) for size in ((2, 6, 8, 3), (3, 3, 3, 4))
    )
    low_pass = np.einsum("i,j,cd->ijcd", taps[::-1], taps[::-1], np.eye(3, dtype=np.float32))

    def by_xla(x: Array, kernel: Array, stride: int, padding: int) -> Array:
        layout = ("NHWC", "HWIO", "NHWC")
        pads = ((padding, padding),) * 2
        return jax.lax.conv_general_dilated(
            x, kernel, (stride,) * 2, pads, dimension_numbers=layout
        )

    def pairs(x: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        filtered = by_xla(x, jnp.asarray(low_pass, jnp.float32), 1, 2)
        expected = filtered[:, 1:-1:2, 1:-1:2], by_xla(filtered, kernel, 2, 0)
        return (downsample(x, taps), down_convolve(x, kernel, taps)), expected

    (found, expected), pull_back = jax.vjp(pairs, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
    zeros = jax.tree.map(jnp.zeros_like, expected)
    for cotangent in ((expected[0], zeros[1]), (zeros[0], expected[1])):
        actual, wanted = (pull_back(pair)[0] for pair in ((cotangent, zeros), (zeros, cotangent)))
        np.testing.assert_allclose(actual, wanted, atol=1e-4)


def test_upsampling_transposes_exactly() -> None:
    # Over several cotangents at once, too.
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, kernel, y = (random.normal(size=s) for s in ((2, 3, 4, 5), (5, 3, 3, 2), (2, 6, 8, 2)))
        function = partial(up_convolve, kernel=jnp.asarray(kernel), taps=(0.1, 0.2, 0.3, 0.4))
        images, pull_back = jax.vjp(function, jnp.asarray(x))
        (pulled,) = pull_back(jnp.asarray(y))
        np.testing.assert_allclose(np.vdot(images, y), np.vdot(x, pulled), rtol=1e-12)
        (both,) = jax.vmap(pull_back)(jnp.asarray([y, -y]))
        np.testing.assert_allclose(both, [pulled, -pulled], rtol=1e-12)


# The network in a second form: float64, kernels modulated by sample, zeros between samples.


def naive_dense(p: Any, x: np.ndarray, rate: float = 1.0) -> np.ndarray:
    return x @ (p["kernel"] * rate / np.sqrt(x.shape[1])) + p["bias"] * rate


def naive_correlate(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """[H, W, C] with [a, b, C, F], inside."""
    height, width = (x.shape[i] - kernel.shape[i] + 1 for i in (0, 1))
    return np.array(
        [
            [
                np.einsum(
                    "abc,abcf->f", x[i : i + kernel.shape[0], j : j + kernel.shape[1]], kernel
                )
                for j in range(width)
            ]
            for i in range(height)
        ]
    )


def naive_stretch(x: np.ndarray) -> np.ndarray:
    """Zeros between samples, and behind the last."""
    stretched = np.zeros((2 * x.shape[0], 2 * x.shape[1], x.shape[2]))
    stretched[::2, ::2] = x
    return stretched


def naive_filter(x: np.ndarray, taps: Any, before: int, behind: int) -> np.ndarray:
    kernel = 4 * np.einsum("a,b,cf->abcf", taps, taps, np.eye(x.shape[-1]))[::-1, ::-1]
    return naive_correlate(np.pad(x, ((before, behind),) * 2 + ((0, 0),)), kernel)


def naive_layer(config: Any, p: Any, x: Any, w: Any, *, up: bool, gain: float = 1) -> Any:
    kernel = p["kernel"].transpose(1, 2, 0, 3)[::-1, ::-1] if up else p["kernel"]
    styles, outputs = naive_dense(p["affine"], w), []
    for sample, style in zip(x, styles, strict=True):
        modulated = kernel * style[:, None]
        modulated = modulated / np.sqrt((modulated**2).sum((0, 1, 2)) + 1e-8)
        if up:
            padded = np.pad(naive_stretch(sample), ((2, 1), (2, 1), (0, 0)))
            y = naive_filter(naive_correlate(padded, modulated), config.filter_taps, 1, 1)
        else:
            y = naive_correlate(np.pad(sample, ((1, 1), (1, 1), (0, 0))), modulated)
        outputs.append(y)
    y = np.stack(outputs)
    if config.noise:
        y = y + (p["noise"] * p["noise_strength"])[:, :, None]
    y = y + p["bias"]
    y = np.where(y > 0, y, 0.2 * y) * np.sqrt(2) * gain
    return y if config.clamp is None else np.clip(y, -config.clamp * gain, config.clamp * gain)


def naive_upsample(config: Any, x: np.ndarray) -> np.ndarray:
    return np.stack([naive_filter(naive_stretch(y), config.filter_taps, 2, 1) for y in x])


def naive_image(config: Any, p: Any, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    style = naive_dense(p["affine"], w) / np.sqrt(x.shape[-1])
    image = np.einsum("nhwc,nc,cf->nhwf", x, style, p["kernel"]) + p["bias"]
    return image if config.clamp is None else np.clip(image, -config.clamp, config.clamp)


def naive_synthesize(config: Any, params: Any, ws: np.ndarray) -> np.ndarray:
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)["synthesis"]
    residual = config.architecture == "resnet"
    p = params["block4"]
    x = naive_layer(config, p["conv1"], np.stack([p["const"]] * len(ws)), ws[:, 0], up=False)
    image: Any = 0
    if config.architecture == "skip":
        image = naive_image(config, p["to_image"], x, ws[:, 1])
    for i in range(1, len(config.channels)):
        p, before = params[f"block{4 << i}"], x
        x = naive_layer(config, p["conv0"], x, ws[:, 2 * i - 1], up=True)
        gain = np.sqrt(0.5) if residual else 1
        x = naive_layer(config, p["conv1"], x, ws[:, 2 * i], up=False, gain=gain)
        if residual:
            shortcut = before @ p["shortcut"] / np.sqrt(before.shape[-1])
            x = x + naive_upsample(config, shortcut) * np.sqrt(0.5)
        if config.architecture == "skip":
            image = naive_upsample(config, image)
        if "to_image" in p:
            image = image + naive_image(config, p["to_image"], x, ws[:, 2 * i + 1])
    return image


def test_images_match_the_equations(config: Any, params: Any) -> None:
    ws = np.random.default_rng(1).normal(size=(2, config.layers, config.style_size))
    images = jax.jit(partial(stylegan2.synthesize, config))(params, jnp.asarray(ws, jnp.float32))
    assert images.shape == (2, config.image_size, config.image_size, config.image_channels)
    assert deviation(images, naive_synthesize(config, params, ws)) < TOLERANCES["values"]


def labels_of(config: Any, n: int) -> Any:
    classes = config.label_size
    return jnp.eye(classes)[jnp.arange(n) % classes] if classes else None


def test_truncation(config: Any, params: Any) -> None:
    z = jax.random.normal(jax.random.key(0), (2, config.latent_size))
    map_latents = partial(stylegan2.map_latents, config, params, z, labels_of(config, 2))
    ws, mean = map_latents(), params["mean_style"][None, None]
    assert ws.shape == (2, config.layers, config.style_size)
    np.testing.assert_array_equal(ws, np.broadcast_to(ws[:, :1], ws.shape))
    np.testing.assert_allclose(map_latents(truncation_psi=0.25), mean + (ws - mean) / 4, atol=1e-5)
    cut = map_latents(truncation_psi=0.0, truncation_cutoff=2)
    np.testing.assert_allclose(cut[:, :2], np.broadcast_to(mean, cut[:, :2].shape), atol=1e-6)
    np.testing.assert_array_equal(cut[:, 2:], ws[:, 2:])


def test_length_of_latents_has_no_influence(config: Any, params: Any) -> None:
    z = jax.random.normal(jax.random.key(0), (2, config.latent_size))
    map_latents = partial(stylegan2.map_latents, config, params, labels=labels_of(config, 2))
    np.testing.assert_allclose(map_latents(z=3 * z), map_latents(z=z), atol=1e-5)


@pytest.mark.slow
def test_noise(small: Any) -> None:
    config, params, ws, render = small
    same = jnp.broadcast_to(ws[:1], ws.shape)
    drawn = jax.jit(partial(stylegan2.synthesize, config, noise="random"))
    one = np.asarray(drawn(params, same, key=jax.random.key(0)))
    np.testing.assert_array_equal(one, drawn(params, same, key=jax.random.key(0)))
    assert difference(one, drawn(params, same, key=jax.random.key(1))) > 0.1
    assert difference(one[0], one[1]) > 0.1  # drawn for each image
    stored = np.asarray(render(params, same))
    assert difference(one, stored) > 0.1
    np.testing.assert_allclose(stored[0], stored[1], atol=1e-5)
    silent = jax.jit(partial(stylegan2.synthesize, config, noise="none"))(params, same)
    assert difference(stored, silent) > 0.1
    np.testing.assert_allclose(silent, render(silenced(params), same), atol=1e-5)


def test_bfloat16(small: Any) -> None:
    config, params, ws, render = small
    images = jax.jit(partial(stylegan2.synthesize, config, precision="bf16"))(params, ws)
    assert images.dtype == jnp.float32
    desired = render(params, ws)
    assert 1e-4 < difference(images, desired) < TOLERANCES["bf16"]


@pytest.mark.slow
def test_init_keeps_the_variance() -> None:
    # By design: equalised weights, demodulation, and the gain of the activation.
    config = stylegan2.StyleGAN2Config(
        latent_size=64, style_size=64, mapping_sizes=(64,), channels=(64,)
    )
    params = stylegan2.init(config, jax.random.key(0))
    ws = stylegan2.map_latents(config, params, jax.random.normal(jax.random.key(1), (9, 64)))
    assert 0.7 < float(jnp.std(ws)) < 1.4
    assert 0.7 < float(jnp.std(stylegan2.synthesize(config, params, ws))) < 1.4


def test_the_papers_network_has_its_size() -> None:
    config = stylegan2.StyleGAN2Config()
    tree = jax.eval_shape(partial(stylegan2.init, config), jax.random.key(0))
    is_buffer = {"noise", "mean_style"}
    weights = sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if path[-1].key not in is_buffer
    )
    assert (config.image_size, config.layers) == (256, 14)
    assert round(weights / 1e6, 1) == 24.8


def test_no_grouped_or_dilated_convolution(small: Any) -> None:
    # These are slow in XLA on CPUs; the pull-back of several cotangents is included.
    config, params, ws, _ = small

    def jacobian(params: Any, ws: Any, cotangents: Any) -> Any:
        _, pull_back = jax.vjp(partial(stylegan2.synthesize, config, params), ws)
        return jax.vmap(pull_back)(cotangents)

    text = str(jax.make_jaxpr(jacobian)(params, ws, jnp.zeros((2, 3, 8, 8, 3))))
    # Two each way, and two for the gradients of kernels, which XLA drops.
    assert text.count("conv_general_dilated[") == 6
    assert text.count("lhs_dilation=(1, 1)") == text.count("feature_group_count=1") == 6


def test_misfits_are_told(small: Any) -> None:
    config, params, ws, _ = small
    with pytest.raises(ValueError, match=r"latents are \(2, 3\)"):
        stylegan2.map_latents(config, params, jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="is unconditional"):
        stylegan2.map_latents(config, params, jnp.zeros((2, 8)), jnp.zeros((2, 1)))
    with pytest.raises(ValueError, match=r"styles are \(3, 3, 8\)"):
        stylegan2.synthesize(config, params, ws[:, 1:])
    with pytest.raises(ValueError, match="needs a key"):
        stylegan2.synthesize(config, params, ws, noise="random")
    with pytest.raises(ValueError, match="takes no key"):
        stylegan2.synthesize(config, params, ws, key=jax.random.key(0))


@pytest.mark.parametrize(
    "wrong", [{"architecture": "other"}, {"mapping_sizes": (3,)}, {"channels": ()}]
)
def test_impossible_configs(wrong: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        stylegan2.StyleGAN2Config(**wrong)
