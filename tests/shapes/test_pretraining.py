"""Trainings repeat to the bit, and the shipped assets are what their cards say."""

from pathlib import Path

import jax
import numpy as np
import pytest

from qdgs_jax import encoders, generators
from qdgs_jax.errors import ConfigError
from qdgs_jax.models import clip, vae
from qdgs_jax.shapes import drawings as shapes
from qdgs_jax.shapes import pretraining as pretrain

ASSETS = Path(pretrain.__file__).parents[1] / "assets"
BRIEF = pretrain.OptimiserConfig(steps=3, batch_size=2)
TRAININGS = {
    "vae": (
        pretrain.train_vae,
        pretrain.VAETrainingConfig(
            optimiser=BRIEF, model=vae.VAEConfig(latent_size=2, image_size=16, channels=(2, 2, 2))
        ),
    ),
    "clip": (
        pretrain.train_clip,
        pretrain.CLIPTrainingConfig(
            optimiser=BRIEF,
            scenes=4,
            captions=3,
            vision=clip.TowerConfig(width=4, layers=1, heads=1, mlp_width=4),
            text=clip.TowerConfig(width=4, layers=1, heads=1, mlp_width=4),
            embedding_size=4,
            image_size=16,
            patch_size=8,
        ),
    ),
}


@pytest.mark.parametrize("model", TRAININGS)
def test_training_repeats(model, tmp_path):
    train, training = TRAININGS[model]
    for out in ("first", "again"):
        train(tmp_path / out, seed=1, training=training)
    assert {path.name for path in tmp_path.iterdir()} == {"first", "again"}
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
    assert f"qdgs pretrain {model} FOLDER --seed 1" in (tmp_path / "first/README.md").read_text()


@pytest.mark.parametrize("model", TRAININGS)
def test_training_overwrites_nothing(model, tmp_path):
    train, training = TRAININGS[model]
    with pytest.raises(ConfigError, match="is there already: choose another"):
        train(tmp_path, training=training)
    assert not list(tmp_path.iterdir())


def test_training_lowers_the_loss():
    def loss(params, key, progress, data):
        return ((params - data) ** 2).sum() + 0 * jax.random.normal(key)

    optimiser = pretrain.OptimiserConfig(steps=120, learning_rate=0.1)
    params = pretrain.minimise(loss, np.zeros(3), jax.random.key(0), optimiser, np.arange(3.0))
    np.testing.assert_allclose(params, np.arange(3.0), atol=0.05)


def test_turned_scenes_keep_their_truth():
    """Wherever a small shape is seen, left or right, top or bottom, the truth follows."""
    image = np.full((1, 16, 16, 3), 255, np.uint8)
    image[0, 2:5, 3:6] = 0  # top left
    truth = {
        attribute: np.full((1, len(values)), 1 / len(values), np.float32)
        for attribute, values in shapes.ATTRIBUTES.items()
    }
    truth["across"] = np.array([[0.9, 0.1, 0.0]])
    truth["down"] = np.array([[0.8, 0.2, 0.0]])
    ways = set()
    for seed in range(60):
        turned = pretrain.turn(jax.random.key(seed), shapes.Scenes(image, truth))
        ink = (255 - np.asarray(turned.images[0, ..., 0], np.float32)) / 255
        rows, columns = np.nonzero(ink)
        top, left = rows.mean() < 8, columns.mean() < 8
        assert left == (turned.truth["across"][0, 0] > 0.5)
        assert top == (turned.truth["down"][0, 0] > 0.5)
        ways.add((top, left, int(rows.min())))
    assert len(ways) == 8


class TestAssets:
    """What is shipped."""

    def test_size(self):
        total = sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file())
        assert total <= 6_000_000

    @pytest.mark.parametrize("name", ["shapes_vae", "shapes_clip"])
    def test_cards(self, name):
        card = (ASSETS / name / "README.md").read_text()
        for part in ("license: apache-2.0", "qdgs pretrain", "seed 0", "steps"):
            assert part in card

    def test_vae_knows_all_four_groups(self):
        _, params = generators.load("shapes-vae")
        errors = pretrain.reconstruction_errors(
            vae.VAEConfig(), params, jax.random.key(11), count=100
        )
        assert set(errors) == {"red triangle", "red square", "blue triangle", "blue square"}
        assert max(errors.values()) < 0.1
        assert errors["red triangle"] < errors["blue triangle"]

    def test_clip_tells_colours_and_shapes(self):
        encoder, params = encoders.load("shapes-clip")
        right = pretrain.zero_shot(encoder, params, jax.random.key(11), count=400)
        assert right["colour"] >= 0.97
        assert right["shape"] >= 0.97

    def test_clip_knows_the_papers_words_and_no_others(self):
        encoder, _ = encoders.load("shapes-clip")
        prompts = (
            "A regular square or a triangle.", "Splatters of colors.", "A red shape.",
            "A blue shape.", "A triangle with 3 edges.", "A square or diamond with 4 edges.",
        )  # fmt: skip
        for prompt in prompts:
            assert encoder.unknown_words(prompt) == []
        assert encoder.unknown_words("A Photo of a giraffe, red!") == ["giraffe", ",", "!"]

    def test_settings_are_those_of_the_cards(self):
        config, _ = clip.load(ASSETS / "shapes_clip")
        training = pretrain.CLIPTrainingConfig()
        assert (config.vision, config.text) == (training.vision, training.text)
        config, _ = vae.load(ASSETS / "shapes_vae")
        assert config == pretrain.VAETrainingConfig().model
        for name, defaults in (("vae", pretrain.VAETrainingConfig()), ("clip", training)):
            card = (ASSETS / f"shapes_{name}/README.md").read_text()
            assert f"{defaults.optimiser.steps:,} steps" in card
