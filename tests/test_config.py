"""Configs: written ones are read back, and errors are one sentence."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from qdgs_jax.config import load_config, parse_config, save_config
from qdgs_jax.errors import ConfigError
from qdgs_jax.search_config import SearchConfig

CONFIGS = Path(__file__).parents[1] / "configs/search"

MINIMAL: dict[str, Any] = {
    "objective": {"positive": "a square", "negative": "splatters"},
    "measures": [{"name": "colour", "low": "red", "high": "blue"}],
}


SEARCHES = sorted(CONFIGS.glob("*.toml"))


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_shipped_configs_load(path: Path) -> None:
    assert load_config(path).measures


def test_saved_config_is_read_back(tmp_path: Path) -> None:
    config = load_config(CONFIGS / "shapes.toml")
    assert config.export.bins  # infinities and nested tables are read back too
    save_config(tmp_path / "config.toml", config)
    assert load_config(tmp_path / "config.toml") == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sed": 1}, "unknown key 'sed' (did you mean 'seed'?)"),
        ({"search": {"generatons": 1}}, "unknown key 'search.generatons' (did you mean 'generatio"),
        ({"objective": {"positive": "a"}}, "the negative prompt of objective is empty"),
        (
            {"objective": {"positive": "a", "negative": " "}},
            "the negative prompt of objective is e",
        ),
        ({"objective": {"positive": "a|", "negative": "b"}}, "the positive prompt of objective is"),
        ({"measures": []}, "no measures: add at least one"),
        ({"measures": [{"name": "c", "low": "x"}]}, "the high prompt of measure 'c' is empty"),
        ({"measures": [{"name": "c"}]}, "needs either both prompts"),
        ({"measures": MINIMAL["measures"] * 2}, "measures need distinct names"),
        (
            {"measures": [{"name": "c", "low": "x", "high": "y", "range": [1, -1]}]},
            "`range` must be [low, high]",
        ),
        *(
            ({"measures": [{**MINIMAL["measures"][0], "range": ends}]}, sentence)
            for ends, sentence in (
                ([-math.inf, math.inf], "'colour': `range` must have finite ends, got [-inf, inf]"),
                ([0, math.inf], "`range` must have finite ends, got [0, inf]"),
                ([math.nan, 1], "`range` must have finite ends, got [nan, 1]"),
                ([0.1, 0.1000000001], "`range` [0.1, 0.1000000001] has 50 cells, but single"),
                ([20000, 20000.2], "closer than 0.002: widen it, scale the measure, or lower"),
                ([0, 1e-30], "`range` [0.0, 1e-30] has 50 cells"),
                ([-3e38, 3e38], "has 50 cells, but single precision"),
            )
        ),
        (
            {"export": {"bins": [{"name": "b", "label": "b", "where": {"color": [0, 1]}}]}},
            "the measure 'color', which is not one of colour (did you mean 'colour'?)",
        ),
        (
            {"export": {"bins": [{"name": "b", "label": "b", "where": {"colour": [1, 0]}}]}},
            "bin 'b': `colour` must be [low, high]",
        ),
        (
            {"export": {"bins": [{"name": "b", "label": "b", "where": {}}] * 2}},
            "bins need distinct names",
        ),
        ({"search": {"emitters": 0}}, "'search.emitters' input should be greater than or equal to"),
        ({"search": {"sigma0": "wide"}}, "'search.sigma0' input should be a valid number"),
        (
            {"search": {"learning_rte": 1}},
            "unknown key 'search.learning_rte' (did you mean 'learning_rate'?)",
        ),
        ({"search": {"repair_epochs": 1}}, "unknown key 'search.repair_epochs'."),
        ({"measures": [{**MINIMAL["measures"][0], "cels": 4}]}, "(did you mean 'cells'?)"),
        (
            {"search": {"strategy": "sep_cma_es"}},
            "search.strategy has no effect with algorithm 'cma_maega', only with cma_me, cma_mae",
        ),
        (
            {"search": {"algorithm": "cma_mae", "step_size": 0.1}},
            "search.step_size has no effect with strategy 'cholesky_cma_es', only with openai_es",
        ),
        ({"objective": {**MINIMAL["objective"], "radius": 1.0}}, "radius has no effect without"),
        (
            {
                "objective": {**MINIMAL["objective"], "typicality": 0.5},
                "search": {"constraint": "latents"},
            },
            "typicality has no effect unless search.constraint is 'typical'",
        ),
        (
            {
                "objective": {},
                "measures": [{"name": "b", "function": "brightness"}],
                "search": {"constraint": "none"},
            },
            "the positive prompt of objective is empty",
        ),
        (
            {
                "objective": {},
                "measures": [{"name": "b", "function": "brightness"}],
                "encoder": {"random_crops": False},
            },
            "no encoder is used: leave [encoder] out",
        ),
        ({"archive": {"cells": 10}}, "archive.cells has no effect on a grid"),
        (
            {"archive": {"kind": "cvt"}, "measures": [{**MINIMAL["measures"][0], "cells": 9}]},
            "measure 'colour': `cells` has no effect in a cvt archive",
        ),
        ({"search": {"generations": 15}}, "must be a multiple of run.log_every (10)"),
    ],
)
def test_mistakes_are_told_in_one_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(MINIMAL | change, source="test.toml")
    message = str(caught.value)
    assert message.startswith("Config test.toml: ")
    assert sentence in message
    assert "\n" not in message
    assert message.endswith(".")


def test_the_papers_faces() -> None:
    config = load_config(CONFIGS / "faces_paper.toml")
    assert [measure.cells for measure in config.measures] == [50, 25, 5, 25]
    assert {measure.range for measure in config.measures} == {(-0.1, 0.1)}
    objective, search = config.objective, config.search
    assert (objective.regularisation, objective.radius, objective.uniqueness) == (0.5, 0.5, 0.2)
    assert (search.constraint, search.threshold_min) == ("none", 0.0)
    assert (search.generations, search.emitters, search.batch_size) == (60_000, 1, 3)
    assert (search.sigma0, search.step_size, search.optimizer) == (0.5, 0.5, "adam")
    assert config.generator.latent_space == "w+"
    assert len(config.export.bins) == 9
    assert config.notice == "faces"


def test_mistakes_in_code_are_config_errors_as_well() -> None:
    with pytest.raises(ConfigError, match="SearchConfig: 'batch_size'"):
        SearchConfig(batch_size=1)
    config = parse_config(MINIMAL, source="test")
    with pytest.raises(ConfigError, match="'seed'"):
        dataclasses.replace(config, seed=-1)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"seed = ", "not valid TOML"), (b"\xff", "not valid TOML"), (None, "Cannot read the config")],
)
def test_unreadable_files(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    path = tmp_path / "config.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=sentence):
        load_config(path)


def test_defaults_are_the_papers() -> None:
    search = SearchConfig()
    assert (search.sigma0, search.step_size, search.learning_rate) == (0.5, 0.5, 0.02)
    assert (search.threshold_min, search.constraint) == ("auto", "typical")
    assert search.initial_samples == 512
