"""Files of plain values: whatever they hold, there are values or one sentence."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qdgs_jax.config import parse_config
from qdgs_jax.errors import ConfigError, QDGSError
from qdgs_jax.schema import read_json, read_toml

HOSTILE_TOML = {
    "dotted key": ".".join("a" * 100_000) + " = 1",
    "spaced key": " . ".join("a" * 100_000) + " = 1",
    "quoted key": ".".join(['"a"'] * 100_000) + " = 1",
    "table": "[" + ".".join("a" * 100_000) + "]",
    "arrays": "a = " + "[" * 100_000,
    "inline tables": "a = " + "{a = " * 100_000,
    "digits": "a = " + "9" * 5_000,
    "one word": "a" * 1_000_000,
    "quotes": '"' * 1_000_000,
    "size": "a" * 5_000_000,
    "nul": 'a = "\\u0000"',
    "surrogate": 'a = "\\ud800"',
}


@pytest.mark.parametrize("content", HOSTILE_TOML.values(), ids=HOSTILE_TOML.keys())
def test_hostile_toml_is_refused_at_once(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(content)
    began = time.process_time()
    with pytest.raises(ConfigError, match=r"(Cannot read|is not valid TOML)") as caught:
        read_toml(path)
    assert time.process_time() - began < 5
    assert len(str(caught.value)) < 500 + len(str(path))


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "9" * 5_000,
        '"\\u0000"',
        '["\\ud800"]',
        "{",
        "\xff" * 2**20,
    ],
)
def test_hostile_json_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "summary.json"
    path.write_text(content)
    with pytest.raises(QDGSError, match=r"summary.json (is damaged|cannot be read): "):
        read_json(path)


@pytest.mark.parametrize("read", [read_toml, read_json])
def test_a_pipe_is_not_waited_for(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(QDGSError, match="not a regular file"):
        read(tmp_path / "pipe")


def test_ordinary_files_are_read(tmp_path: Path) -> None:
    key = ".".join(["a"] * 30)
    text = f'{key} = 1\nprose = "One. Two. {"Three. " * 100}"\nx = """{"." * 1000}"""'
    (tmp_path / "x.toml").write_bytes(b"\xef\xbb\xbf" + text.encode())  # with a BOM
    assert set(read_toml(tmp_path / "x.toml")) == {"a", "prose", "x"}
    (tmp_path / "x.json").write_text('{"ä": [1, -Infinity, null]}')
    assert read_json(tmp_path / "x.json") == {"ä": [1, float("-inf"), None]}


MINIMAL: dict[str, Any] = {
    "objective": {"positive": "a square", "negative": "splatters"},
    "measures": [{"name": "colour", "low": "red", "high": "blue"}],
}
MEASURE = MINIMAL["measures"][0]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"search": {"chunk_size": 10**9}}, "'search.chunk_size' input should be less than or"),
        ({"search": {"generations": 10**12}}, "'search.generations' input should be less than"),
        ({"search": {"emitters": 10**9}}, "'search.emitters' input should be less than"),
        ({"search": {"generations": 10**4000}}, "'search.generations' input should be less than"),
        ({"search": {"sigma0": 10**4000}}, "'search.sigma0' "),
        ({"search": {"sigma0": float("nan")}}, "'search.sigma0' input should be a finite number"),
        ({"search": {"learning_rate": float("nan")}}, "'search.learning_rate' input should be a"),
        ({"objective": {"typicality": float("inf")}}, "'objective.typicality' input should be"),
        ({"export": {"count": 10**12}}, "'export.count' input should be less than or equal"),
        ({"export": {"min_objective": float("nan")}}, "'export.min_objective' input should be"),
        ({"measures": [{**MEASURE, "cells": 10**9}]}, "1,000,000,000 cells, more than 100,000,000"),
        (
            {"measures": [{**MEASURE, "name": n, "cells": 10**5} for n in "ab"]},
            "the measures' grid has 10,000,000,000 cells, more than 100,000,000: lower `cells`",
        ),
        (
            {"measures": [{**MEASURE, "name": str(n)} for n in range(40)]},
            "'measures' tuple should have at most 32 items",
        ),
        (
            {"measures": [{**MEASURE, "name": str(n)} for n in range(20)]},
            "more than 100,000,000: lower `cells`, or set archive.kind",
        ),
        ({"archive": {"kind": "cvt", "cells": 10**9}}, "'archive.cells' input should be less than"),
        ({"measures": [{**MEASURE, "name": "x" * 10**6}]}, "at most 100 characters, got 'xxx"),
        ({"objective": {"positive": "x" * 10**6}}, "at most 5000 characters"),
        ({"x" * 10**6: 1}, "unknown key 'xxx"),
        ({"measures": [[]]}, "'measures.0' "),
        ({"measures": 3}, "'measures' "),
        ({"export": {"bins": [{"name": "b", "label": "b", "where": {"x" * 10**6: [0, 1]}}]}}, "x"),
    ],
)
def test_sizes_that_cannot_fit_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(MINIMAL | change, source="test.toml")
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 1000
