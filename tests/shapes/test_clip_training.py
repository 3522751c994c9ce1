"""The CLIP's training is reproducible bit for bit, and the built-in CLIP matches its card."""

from pathlib import Path

import jax
import pytest

import qdgs_jax
from qdgs_jax import encoders
from qdgs_jax.errors import ConfigError
from qdgs_jax.models import clip
from qdgs_jax.shapes.clip_training import CLIPTrainingConfig, train_clip, zero_shot
from qdgs_jax.training.descent import OptimiserConfig

ASSETS = Path(qdgs_jax.__file__).parent / "assets"
TOWER = clip.TowerConfig(width=4, layers=1, heads=1, mlp_width=4)
BRIEF = CLIPTrainingConfig(
    optimiser=OptimiserConfig(steps=3, batch_size=2),
    scenes=4,
    captions=3,
    vision=TOWER,
    text=TOWER,
    embedding_size=4,
    image_size=16,
    patch_size=8,
)


@pytest.mark.slow
def test_training_repeats(tmp_path):
    for out in ("first", "again"):
        train_clip(tmp_path / out, seed=1, training=BRIEF)
    assert {path.name for path in tmp_path.iterdir()} == {"first", "again"}
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
    assert "qdgs pretrain clip FOLDER --seed 1" in (tmp_path / "first/README.md").read_text()


def test_training_overwrites_nothing(tmp_path):
    with pytest.raises(ConfigError, match="is there already: choose another"):
        train_clip(tmp_path, training=BRIEF)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_clip_tells_colours_and_shapes():
    encoder, params = encoders.load("shapes-clip")
    right = zero_shot(encoder, params, jax.random.key(11), count=400)
    assert right["colour"] >= 0.97
    assert right["shape"] >= 0.97


def test_clip_knows_the_papers_words_and_no_others():
    encoder, _ = encoders.load("shapes-clip")
    prompts = (
        "A regular square or a triangle.", "Splatters of colors.", "A red shape.",
        "A blue shape.", "A triangle with 3 edges.", "A square or diamond with 4 edges.",
    )  # fmt: skip
    for prompt in prompts:
        assert encoder.unknown_words(prompt) == []
    assert encoder.unknown_words("A Photo of a giraffe, red!") == ["giraffe", ",", "!"]


def test_settings_are_those_of_the_card():
    training = CLIPTrainingConfig()
    config, _ = clip.load(ASSETS / "shapes_clip")
    assert (config.vision, config.text) == (training.vision, training.text)
    card = (ASSETS / "shapes_clip/README.md").read_text()
    assert f"{training.optimiser.steps:,} steps" in card
