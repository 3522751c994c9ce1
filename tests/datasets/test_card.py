"""The card of a dataset says what it is."""

import dataclasses
import json
import math

import pytest

from qdgs_jax import encoders
from qdgs_jax.config import (
    NOTICES,
    BinConfig,
    Config,
    MeasureConfig,
    ObjectiveConfig,
    RunConfig,
    SearchConfig,
)
from qdgs_jax.datasets import export as dataset
from qdgs_jax.runs import sampling as runs

LEFT = BinConfig(name="left", label="low", where={"x": (-math.inf, -0.5)})
RIGHT = BinConfig(name="right", label="high", where={"x": (0.5, math.inf)})


def test_the_card_is_filled(run, tmp_path):
    dataset.export(run(LEFT, RIGHT), tmp_path / "out", count=11)
    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith("---\nlicense: cc0-1.0\n")  # make_config names the built-in generator
    assert "- synthetic" in card
    assert "- n<1K" in card
    assert "| left | low | 6 | 6 | 6 |" in card
    assert 'd(image, "low x") - d(image, "high x")' in card
    assert "{" not in card


def test_no_encoder_is_loaded_or_named_without_prompts(tmp_path, monkeypatch, records):
    monkeypatch.setattr(encoders, "load", lambda model, **_: pytest.fail("nobody needs it"))
    config = Config(
        objective=ObjectiveConfig(typicality=0.5),
        measures=(MeasureConfig(name="light", function="brightness"),),
        search=SearchConfig(
            generations=2, emitters=2, batch_size=2, initial_samples=8, threshold_min=-1e6
        ),
        run=RunConfig(log_every=1, checkpoint_every=2),
    )
    assert runs.sample(config, tmp_path / "run")["encoder"] is None
    runs.sample(config, tmp_path / "run", resume=True)
    dataset.export(tmp_path / "run", tmp_path / "out", count=3)
    assert json.loads((tmp_path / "out/manifest.json").read_text())["encoder"] is None
    assert all("encoder" not in record for record in records(tmp_path / "out"))
    card = (tmp_path / "out/README.md").read_text()
    assert "* encoder: none\n" in card
    assert "100 - 50 (0.5 x how much less typical the image is than random images" in card
    assert "d is the angle" not in card


def test_the_card_repeats_the_notice_and_the_whole_objective(tmp_path, make_config, write_run):
    config = make_config(LEFT, RIGHT)
    objective = dataclasses.replace(config.objective, regularisation=0.5, uniqueness=0.2)
    config = dataclasses.replace(config, notice="faces", objective=objective)
    dataset.export(write_run(tmp_path / "run", config), tmp_path / "out", count=2)
    card = (tmp_path / "out/README.md").read_text()
    assert f"\n\n{NOTICES['faces']}\n\n" in card
    assert '"no red") + 0.5 x the squared distance' in card
    assert "+ 0.2 x how similar the image is to recent good images" in card
