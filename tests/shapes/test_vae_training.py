"""The VAE's training is reproducible bit for bit, and the built-in VAE matches its card."""

from pathlib import Path

import jax
import pytest

import qdgs_jax
from qdgs_jax import generators
from qdgs_jax.errors import ConfigError
from qdgs_jax.models import vae
from qdgs_jax.shapes.vae_training import VAETrainingConfig, reconstruction_errors, train_vae
from qdgs_jax.training.descent import OptimiserConfig

ASSETS = Path(qdgs_jax.__file__).parent / "assets"
BRIEF = VAETrainingConfig(
    optimiser=OptimiserConfig(steps=3, batch_size=2),
    model=vae.VAEConfig(latent_size=2, image_size=16, channels=(2, 2, 2)),
)


@pytest.mark.slow
def test_training_repeats(tmp_path):
    for out in ("first", "again"):
        train_vae(tmp_path / out, seed=1, training=BRIEF)
    assert {path.name for path in tmp_path.iterdir()} == {"first", "again"}
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
    assert "qdgs pretrain vae FOLDER --seed 1" in (tmp_path / "first/README.md").read_text()


def test_training_overwrites_nothing(tmp_path):
    with pytest.raises(ConfigError, match="is there already: choose another"):
        train_vae(tmp_path, training=BRIEF)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_vae_knows_all_four_groups():
    _, params = generators.load("shapes-vae")
    errors = reconstruction_errors(vae.VAEConfig(), params, jax.random.key(11), count=100)
    assert set(errors) == {"red triangle", "red square", "blue triangle", "blue square"}
    assert max(errors.values()) < 0.1
    assert errors["red triangle"] < errors["blue triangle"]


def test_settings_are_those_of_the_card():
    training = VAETrainingConfig()
    config, _ = vae.load(ASSETS / "shapes_vae")
    assert config == training.model
    card = (ASSETS / "shapes_vae/README.md").read_text()
    assert f"{training.optimiser.steps:,} steps" in card
