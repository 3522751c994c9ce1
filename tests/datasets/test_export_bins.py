"""Bins that are chosen after the search."""

import json
import math

import pytest

from qdgs_jax import bins
from qdgs_jax.cli import run_command
from qdgs_jax.config import BinConfig
from qdgs_jax.datasets import export as dataset
from qdgs_jax.errors import ConfigError, QDGSError

LEFT = BinConfig(name="left", label="low", where={"x": (-math.inf, -0.5)})
RIGHT = BinConfig(name="right", label="high", where={"x": (0.5, math.inf), "y": (-1.0, 0.25)})


def test_bins_given_later_are_as_those_of_the_config(run, tmp_path, contents):
    (tmp_path / "bins.toml").write_text(bins.as_toml([LEFT, RIGHT], ["", ""]))
    texts = ["left:low:x=..-0.5", "right:high:x=0.5..,y=-1..0.25"]
    dataset.export(run(LEFT, RIGHT), tmp_path / "config", count=9)
    dataset.export(run(), tmp_path / "python", count=9, bins=[LEFT, RIGHT])
    dataset.export(run(RIGHT), tmp_path / "file", count=9, bins=str(tmp_path / "bins.toml"))
    command = ["export", str(run()), str(tmp_path / "texts"), "--count", "9"]
    assert run_command([*command, "--bin", texts[0], "--bin", texts[1]]) == 0
    expected = contents(tmp_path / "config")
    assert b'"right"' in expected["manifest.json"]
    for name in ("python", "file", "texts"):
        assert contents(tmp_path / name) == expected


def test_bins_are_part_of_what_a_dataset_is(run, tmp_path, records):
    path = run(LEFT)
    dataset.export(path, tmp_path / "out", count=4, bins=())
    assert {record["bin"] for record in records(tmp_path / "out")} == {"all"}
    with pytest.raises(QDGSError, match="another dataset"):
        dataset.export(path, tmp_path / "out", count=4)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([LEFT, LEFT], "bins need distinct names, got left, left"),
        ([BinConfig(name="b", label="b", where={"xx": (0, 1)})], r"did you mean 'x'\?"),
        ([BinConfig(name="b", label="a/b", where={})], "cannot be the name of a class folder"),
    ],
)
def test_impossible_bins(run, tmp_path, given, sentence):
    with pytest.raises(ConfigError, match=sentence):
        dataset.export(run(), tmp_path / "out", count=4, bins=given)
    assert not (tmp_path / "out").exists()


def test_proposed_bins_are_exported(run, tmp_path, capsys):
    path, file = str(run()), str(tmp_path / "bins.toml")
    assert run_command(["bins", path, "--measures", "x", "--parts", "4", "--out", file]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["outside_bins"] == 0
    assert [each["elites"] for each in found["proposed"]] == [20, 30, 20, 30]
    out = str(tmp_path / "out")
    assert run_command(["export", path, out, "--count", "8", "--bins", file]) == 0
    balance = json.loads(capsys.readouterr().out)
    assert [each["available"] for each in balance["bins"]] == [20, 30, 20, 30]
    assert run_command(["bins", path, "--out", file]) == 2
    assert "exists already" in capsys.readouterr().err
    assert run_command(["export", path, out, "--bins", file, "--bin", "a:b:x=.."]) == 2
    assert "give one of them" in capsys.readouterr().err
