"""IResNets compute what PyTorch computes, in training too, and are read from both layouts."""

import dataclasses
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from qdgs_jax.errors import CheckpointError
from qdgs_jax.models import iresnet
from qdgs_jax.models.iresnet.params import table
from qdgs_jax.training import margins
from qdgs_jax.training.config import MarginConfig
from qdgs_jax.typing import Array, Params

HERE = Path(__file__).parent
GOLDEN = np.load(HERE / "golden.npz")
IMAGES = GOLDEN["images"] / np.float32(255)
CHEAP: dict = {"xla_backend_optimization_level": "0", "xla_llvm_disable_expensive_passes": True}
"""Compiles several times faster."""


@pytest.mark.parametrize(("layout", "golden"), [("adaface", "eval"), ("insightface",) * 2])
def test_embeddings_are_pytorchs(layout: str, golden: str) -> None:
    config, params = iresnet.load(HERE / f"{layout}.safetensors")
    assert config == iresnet.IResNetConfig(
        blocks=(1, 2, 1, 1), channels=(2, 3, 4, 5), image_size=32, embedding_size=4,
        insightface=layout == "insightface",
    )  # fmt: skip
    embeddings = jax.jit(partial(iresnet.embed, config), compiler_options=CHEAP)(params, IMAGES)
    np.testing.assert_allclose(embeddings, GOLDEN[golden], rtol=1e-4, atol=1e-5)


def by_name(config: iresnet.IResNetConfig, tree: Params) -> dict[str, np.ndarray]:
    """Leaves under the names and in the layouts of the file, whose first convolution reads BGR."""
    leaves, found = traverse_util.flatten_dict(tree, sep="/"), {}
    for row in table(config):
        leaf = np.asarray(leaves[row.target])
        leaf = leaf[:, :, ::-1] if row.target == "params/stem/kernel" else leaf
        leaf = leaf.reshape([row.spelled[axis] for axis in row.axes])
        found[row.source] = leaf.transpose(np.argsort(row.axes)).reshape(row.shape)
    return found


def test_a_training_step_is_pytorchs() -> None:
    """Embeddings by the batch's statistics, AdaFace's loss, all gradients and running statistics.

    Terms of a gradient nearly cancel, hence tolerances of a share of its largest value.
    """
    config, params = iresnet.load(HERE / "adaface.safetensors")
    config = dataclasses.replace(config, dropout=0.0)
    tensors = load_file(HERE / "adaface.safetensors")
    labels = jnp.asarray(GOLDEN["labels"])
    before = margins.NormStatistics(jnp.array(2.2), jnp.array(0.2))

    def loss(trained: Params, centres: Array) -> tuple[Array, tuple[Array, ...]]:
        embeddings, statistics = iresnet.embed_in_training(
            config, {**params, "params": trained}, jax.random.key(0), IMAGES
        )
        logits, norms = margins.person_logits(MarginConfig(), centres, before, embeddings, labels)
        losses = -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels]
        return losses.mean(), (embeddings, logits, norms, statistics)

    step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), compiler_options=CHEAP)
    (value, found), (gradients, of_centres) = step(params["params"], tensors["head.kernel"])
    embeddings, logits, norms, statistics = found
    np.testing.assert_allclose(embeddings, GOLDEN["train"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(logits, GOLDEN["logits"], rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(value, GOLDEN["loss"], rtol=1e-3)
    np.testing.assert_allclose(jnp.stack([norms.mean, norms.std]), GOLDEN["norms"], rtol=1e-5)
    scale = np.abs(GOLDEN["kernel_gradient"]).max()
    np.testing.assert_allclose(of_centres, GOLDEN["kernel_gradient"], atol=1e-3 * scale)

    ours = by_name(config, {"params": gradients, "batch_stats": statistics})
    step = load_file(HERE / "step.safetensors")
    assert ours.keys() == step.keys()
    largest = max(np.abs(tensor).max() for name, tensor in step.items() if "running" not in name)
    for name, tensor in step.items():
        atol = 1e-6 if "running" in name else 1e-3 * np.abs(tensor).max() + 1e-6 * largest
        np.testing.assert_allclose(ours[name], tensor, rtol=1e-4, atol=atol, err_msg=name)


@pytest.mark.parametrize("layout", ["adaface", "insightface"])
def test_saved_weights_are_those_of_the_file(layout: str, tmp_path: Path) -> None:
    config, params = iresnet.load(HERE / f"{layout}.safetensors")
    iresnet.save(tmp_path / "saved", config, params)
    was, now = load_file(HERE / f"{layout}.safetensors"), load_file(tmp_path / "saved")
    was = {name.removeprefix("model."): tensor for name, tensor in was.items()}
    assert len(now) > 70
    for name, tensor in now.items():
        np.testing.assert_array_equal(tensor, was[name])


def test_initial_weights_and_dropout() -> None:
    config = iresnet.IResNetConfig(blocks=(1,), channels=(3,), image_size=16, embedding_size=40)
    params = iresnet.init(config, jax.random.key(0))
    kernel = params["params"]["dense"]["kernel"]
    assert kernel.shape == (8 * 8 * 3, 40)
    assert kernel.std() == pytest.approx((2 / 40) ** 0.5, rel=0.05)
    assert params["batch_stats"]["norm"]["var"][0] == 1
    images = np.random.default_rng(0).random((4, 16, 16, 3), np.float32)
    train = jax.jit(partial(iresnet.embed_in_training, config), compiler_options=CHEAP)
    first, second, again = (train(params, jax.random.key(n), images)[0] for n in (0, 1, 0))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, second)
    np.testing.assert_allclose(first.mean(axis=0), np.zeros(40), atol=1e-5)
    low = jax.make_jaxpr(partial(iresnet.embed, config, precision="bf16"))(params, images)
    assert low.out_avals[0].dtype == jnp.float32
    products = re.findall(r":(\w+)\[[\d,]*\] = (?:conv_general_dilated|dot_general)", str(low))
    assert products == ["bf16"] * 4  # three convolutions, the linear layer


def test_numbers_of_layers() -> None:
    """The stem, two convolutions a block, the linear layer; an IR-101 has 100 of them."""
    for depth, blocks in iresnet.BLOCKS.items():
        assert 2 * sum(blocks) + 2 == min(depth, 100)
    config = iresnet.IResNetConfig(blocks=iresnet.BLOCKS[50])
    shapes = jax.eval_shape(lambda: iresnet.init(config, jax.random.key(0)))["params"]
    assert shapes["dense"]["kernel"].shape == (7 * 7 * 512, 512)
    assert "shortcut" not in shapes["stage1_0"]
    assert shapes["stage2_0"]["shortcut"]["kernel"].shape == (1, 1, 64, 128)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model.body.1.res_layer.2.weight": None}, "body.1.res_layer.2.weight is missing"),
        ({"model.body.0.res_layer.6.fc1.weight": np.zeros(3, "f")}, "fc1.weight is unknown"),
        ({"model.output_layer.3.bias": np.zeros(9, "f")}, r"float32 \(9,\) instead of \(4,\)"),
        ({"model.body.0.res_layer.0.running_mean": None}, "holds no IResNet"),
        ({"model.output_layer.3.weight": np.zeros(9, "f")}, "is damaged"),
        ({"model.body.5.res_layer.1.weight": np.zeros((9, 9), "f")}, "5 stages instead of 4"),
    ],
)
def test_what_does_not_fit_is_named(change: dict, told: str, tmp_path: Path) -> None:
    tensors = {**load_file(HERE / "adaface.safetensors"), **change}
    save_file({name: x for name, x in tensors.items() if x is not None}, tmp_path / "weights")
    with pytest.raises(CheckpointError, match=told):
        iresnet.load(tmp_path / "weights")
