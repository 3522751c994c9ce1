"""Configs follow from the shapes of weights; errors name weights that do not fit."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from qdgs_jax.errors import CheckpointError
from qdgs_jax.models import dcgan
from qdgs_jax.models.dcgan.params import shapes

CONFIG = dcgan.DCGANConfig(latent_size=3, channels=(5, 4))


@pytest.fixture
def tensors():
    random = np.random.default_rng(0)
    return {
        name: random.random(shape, np.float32).astype(np.float32)
        for name, shape in shapes(CONFIG).items()
    }


def test_every_leaf_is_filled(tmp_path, tensors):
    save_file(tensors, tmp_path / "weights.tar")
    config, params = dcgan.load(tmp_path / "weights.tar")
    assert config == CONFIG
    expected = jax.eval_shape(lambda: dcgan.init(CONFIG, jax.random.key(0)))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, expected)


def test_every_misfit_is_named(tmp_path, tensors):
    tensors["main.3.weight"] = tensors["main.3.weight"][:, :, :3]
    tensors["main.9.extra"] = tensors.pop("main.4.bias")
    save_file(tensors, tmp_path / "weights.tar")
    with pytest.raises(CheckpointError) as error:
        dcgan.load(tmp_path / "weights.tar")
    for part in (
        "3.weight is float32 (5, 4, 3, 4)",
        "main.4.bias is missing",
        "9.extra is unknown",
    ):
        assert part in str(error.value)


def test_a_foreign_file(tmp_path):
    discriminator = {"main.0.weight": np.zeros((4, 3, 4, 4), np.float32)}
    save_file(discriminator, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="holds no generator of a DCGAN"):
        dcgan.load(tmp_path / "other.safetensors")
