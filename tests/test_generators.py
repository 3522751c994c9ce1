"""Generators from names and paths."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax import generators
from qdgs_jax.errors import CheckpointError, ConfigError
from qdgs_jax.models import dcgan, vae
from qdgs_jax.models.checkpoint import sha256

CONFIG = vae.VAEConfig(latent_size=3, image_size=16, channels=(2, 3, 4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    vae.save(folder, CONFIG, vae.init(CONFIG, jax.random.key(0)))
    return folder


@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_a_folder_or_a_file_of_weights(folder, name):
    path = folder / name
    generator, params = generators.load(str(path))
    assert generator.name == path.name
    assert generator.sha256 == sha256(folder / "model.safetensors")
    assert (generator.latent_size, generator.image_size) == (3, 16)

    latents = generator.sample(jax.random.key(1), 4)
    images = jax.jit(generator.render)(params, latents)
    expected = vae.decode(CONFIG, vae.load(folder)[1], latents)
    np.testing.assert_allclose(images, expected, atol=1e-6)


def test_pixels_are_float32_on_every_device(folder):
    generator, params = generators.load(str(folder))
    latents = jnp.zeros((2, 3))
    images, pull_back = jax.vjp(lambda x: generator.render(params, x), latents)
    for program in (
        jax.make_jaxpr(generator.render)(params, latents),
        jax.make_jaxpr(pull_back)(images),
    ):
        products = [
            equation
            for equation in program.eqns
            if equation.primitive.name in ("dot_general", "conv_general_dilated")
        ]
        assert len(products) >= 4
        for equation in products:
            assert set(equation.params["precision"]) == {jax.lax.Precision.HIGHEST}


def test_samples_are_standard_normal(folder):
    generator, _ = generators.load(str(folder))
    latents = generator.sample(jax.random.key(0), 5000)
    assert latents.shape == (5000, 3)
    np.testing.assert_allclose(jnp.cov(latents, rowvar=False), np.eye(3), atol=0.1)
    np.testing.assert_allclose(latents.mean(0), np.zeros(3), atol=0.1)


def test_a_wrong_name_is_a_config_error():
    message = r"no generator 'shapes-va' \(did you mean 'shapes-vae'\?\): .* shapes-vae, digi"
    with pytest.raises(ConfigError, match=message):
        generators.load("shapes-va")


def test_a_file_of_something_else_is_a_checkpoint_error(tmp_path):
    (tmp_path / "model.pt").write_text("not weights")
    with pytest.raises(CheckpointError, match=r"model\.pt"):
        generators.load(str(tmp_path / "model.pt"))


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="gan-face-generate, which is not installed: run `make"):
        generators.load("digiface-dcgan")


def test_a_checkpoint_of_a_dcgan():
    path = Path(__file__).parent / "models/dcgan/weights.tar"
    generator, params = generators.load(str(path))
    assert (generator.name, generator.latent_size, generator.image_size) == ("weights.tar", 7, 32)
    latents = generator.sample(jax.random.key(0), 2)
    expected = dcgan.generate(*dcgan.load(path), latents)
    np.testing.assert_allclose(generator.render(params, latents), expected, atol=1e-6)


@pytest.mark.skipif(
    importlib.util.find_spec("gan_face_generate") is None, reason="needs `make assets`"
)
def test_the_generator_of_faces():
    generator, params = generators.load("digiface-dcgan")
    assert (generator.name, generator.latent_size, generator.image_size) == (
        "digiface-dcgan", 100, 64,
    )  # fmt: skip
    images = np.asarray(generator.render(params, generator.sample(jax.random.key(0), 64)))
    face, corners = images.mean(0)[24:56, 20:44], images.mean(0)[:8, :8]
    assert face[..., 0].mean() > face[..., 2].mean() + 0.08  # skin is redder than it is blue
    assert abs(corners[..., 0].mean() - corners[..., 2].mean()) < 0.08
