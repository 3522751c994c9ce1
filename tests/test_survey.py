"""What `qdgs bins` shows and proposes, and bins that are written on a command line."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdgs_jax.bins import as_toml, assign_bins, bins_of, parse_bin, propose_bins, survey, with_bins
from qdgs_jax.config import BinConfig, Config, load_bins, parse_config
from qdgs_jax.errors import ConfigError, QDGSError


def config_of(*names: str, **export: Any) -> Config:
    """A config whose measures have the ranges 0 to 10."""
    measures = [{"name": n, "function": "brightness", "range": (0.0, 10.0), "cells": 5}
                for n in names]  # fmt: skip
    values = {"objective": {"typicality": 1.0}, "measures": measures, "export": export}
    return parse_config(values, source="test")


def counts(config: Config, bins: tuple[BinConfig, ...], measures: np.ndarray) -> list[int]:
    found = assign_bins(config, bins, measures)
    return [int((found == number).sum()) for number in range(-1, len(bins))]


def test_quantiles_divide_elites_equally_and_leave_none_out() -> None:
    config, random = config_of("a", "b"), np.random.default_rng(0)
    measures = np.column_stack([random.normal(size=999) ** 3, random.normal(size=999)])
    bins = propose_bins(config, measures.astype(np.float32), parts=3)
    assert [bin.name for bin in bins][:4] == [
        "a low, b low", "a low, b middle", "a low, b high", "a middle, b low"
    ]  # fmt: skip
    assert counts(config, bins, measures)[0] == 0
    of_a = propose_bins(config, measures, parts=3, names=["a"])
    assert counts(config, of_a, measures) == [0, *[pytest.approx(333, abs=4)] * 3]


@pytest.mark.parametrize(
    ("values", "parts", "expected"),
    [
        ([0.1] * 6 + [0.7] * 4, 2, [6, 4]),
        ([0.1] * 4 + [0.7] * 6, 2, [4, 6]),
        ([0] * 5 + [1] * 3 + [2] * 2, 3, [5, 3, 2]),
        ([0] * 9 + [5], 4, [9, 1]),
        ([1, 2, 3, 4], 4, [1, 1, 1, 1]),
        ([7] * 10, 2, [10]),
    ],
)
def test_equal_values_stay_together(values: list[float], parts: int, expected: list[int]) -> None:
    measures = np.array(values, np.float32)[:, None]
    bins = propose_bins(config_of("a"), measures, parts=parts)
    assert counts(config_of("a"), bins, measures) == [0, *expected]


def test_equal_parts_are_of_the_range_whatever_it_holds() -> None:
    bins = propose_bins(config_of("a"), np.ones((3, 1)), split="equal", parts=4)
    ends = [bin.where["a"] for bin in bins]
    assert ends == [(-math.inf, 2.5), (2.5, 5), (5, 7.5), (7.5, math.inf)]
    assert [bin.label for bin in bins] == [f"a {part} of 4" for part in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"names": ["colur"]}, r"no measure 'colur' \(did you mean 'colour'\?\)"),
        ({"parts": 1}, "1 parts of each of 2 measures are impossible"),
        ({"parts": 23}, "at most 500 bins"),
        ({"parts": 10**9}, "are impossible"),
    ],
)
def test_impossible_proposals(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        propose_bins(config_of("colour", "b"), np.ones((3, 2)), **options)


ODD = ('a "b" \\', "größe/\x7f", "x" * 100, ".", "plain-1")


def test_proposals_of_any_names_are_read_back(tmp_path: Path) -> None:
    measures = np.random.default_rng(0).normal(size=(50, len(ODD)))
    config = config_of(*ODD)
    bins = propose_bins(config, measures, split="equal")
    (tmp_path / "bins.toml").write_text(as_toml(bins, ["any"] * len(bins)))
    assert load_bins(tmp_path / "bins.toml") == bins
    assert len({bin.label for bin in bins}) == len(bins) == 32
    assert bins_of(with_bins(config, bins)) == bins


def test_a_survey_counts_what_an_export_can_use() -> None:
    low = {"name": "low", "label": "l", "where": {"a": (-math.inf, 3.0)}}
    config = config_of("a", bins=[low])
    measures = np.arange(10, dtype=np.float32)[:, None]
    found = survey(config, measures[:, 0], measures, min_objective=2.0)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["elites"], found["below_min_objective"]) == (10, 2)
    assert found["bins"] == [{"bin": "low", "label": "l", "where": {"a": [None, 3.0]}, "elites": 1}]
    assert found["outside_bins"] == 7
    (measure,) = found["measures"]
    assert (measure["0%"], measure["50%"], measure["100%"]) == (2, 5.5, 9)
    assert measure["range"] == [0, 10]
    assert [each["elites"] for each in found["proposed"]] == [4, 4]
    assert "[[bins]] # 4 elites" in found["toml"]
    with pytest.raises(QDGSError, match="10 elites, 10 of them with an objective below 99"):
        survey(config, measures[:, 0], measures, min_objective=99.0)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("n:l:a=0.1..0.3", {"a": (0.1, 0.3)}),
        ("n:l:a=..0.3, b=-1e-3..", {"a": (-math.inf, 0.3), "b": (-0.001, math.inf)}),
        (" n : l :x=y=-inf..5", {"x=y": (-math.inf, 5)}),
        ("n:l:a:b=1..2", {"a:b": (1, 2)}),
    ],
)
def test_bins_of_a_command_line(text: str, where: dict[str, Any]) -> None:
    assert parse_bin(text) == BinConfig(name="n", label="l", where=where)


@pytest.mark.parametrize(
    "text",
    ["", "n", "n:l", "n:l:", "n:l:a", "n:l:a=1", "n:l:a=0...5", "n:l:a=1..2..3", "n:l:=1..2",
     "n:l:a=nan..1", "n:l:a=1..2,a=2..3", "n:l:a=2..1", ":l:a=1..2", "n::a=1..2"],
)  # fmt: skip
def test_texts_that_are_no_bins(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not NAME:LABEL:|low < high|at least 1 character"):
        parse_bin(text)
