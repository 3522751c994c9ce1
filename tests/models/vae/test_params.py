"""Weights are read back from disk; errors name weights that do not fit."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qdgs_jax.errors import CheckpointError
from qdgs_jax.models import vae

CONFIG = vae.VAEConfig(latent_size=3, image_size=16, channels=(2, 3, 5))


@pytest.fixture
def params():
    params = vae.init(CONFIG, jax.random.key(0))
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.standard_normal(leaf.shape, np.float32), params)


def test_folder_round_trip(tmp_path, params):
    vae.save(tmp_path, CONFIG, params)
    config, loaded = vae.load(tmp_path)
    assert config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_file_alone_tells_its_config(tmp_path, params):
    vae.save(tmp_path, CONFIG, params)
    config, loaded = vae.load(tmp_path / "model.safetensors")
    assert config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_every_misfit_is_named(tmp_path, params):
    vae.save(tmp_path, CONFIG, params)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["decoder.fc1.bias"] = tensors["decoder.fc1.bias"][:-1]
    tensors["decoder.extra"] = tensors.pop("decoder.convT3.bias")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        vae.load(tmp_path)
    for part in ("fc1.bias is float32 (19,)", "convT3.bias is missing", "extra is unknown"):
        assert part in str(error.value)


def test_foreign_file_and_folder(tmp_path):
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="holds no shapes VAE"):
        vae.load(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read, No such file"):
        vae.load(tmp_path)
