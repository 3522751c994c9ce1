"""How many images each bin was asked for, and how many it got."""

import json
import math
from collections import Counter

import pytest

from qdgs_jax.config import BinConfig
from qdgs_jax.datasets import export as dataset
from qdgs_jax.errors import QDGSError

LEFT = BinConfig(name="left", label="low", where={"x": (-math.inf, -0.5)})
RIGHT = BinConfig(name="right", label="high", where={"x": (0.5, math.inf)})
NOWHERE = BinConfig(name="nowhere", label="missing", where={"x": (7.0, 8.0)})


def test_bins_share_the_count_and_the_first_take_the_remainder(run, tmp_path, records):
    middle = BinConfig(name="middle", label="low", where={"x": (-0.2, 0.2), "y": (0.0, 1.0)})
    balance = dataset.export(run(LEFT, RIGHT, middle), tmp_path / "out", count=11)
    assert [(bin.asked, bin.got) for bin in balance.bins] == [(4, 4), (4, 4), (3, 3)]
    counts = Counter(record["label_name"] for record in records(tmp_path / "out"))
    assert counts == {"low": 7, "high": 4}
    assert balance.written == balance.got == balance.asked == 11
    assert balance.outside_bins == 100 - sum(bin.available for bin in balance.bins)


def test_a_bin_repeats_its_elites_evenly(run, tmp_path, records):
    corner = BinConfig(name="corner", label="c", where={"x": (0.79, 1.0), "y": (0.4, 1.0)})
    balance = dataset.export(run(corner), tmp_path / "out", count=7)
    uses = Counter(record["latent_row"] for record in records(tmp_path / "out"))
    assert sorted(uses.values()) == [2, 2, 3]
    assert (balance.bins[0].available, balance.bins[0].distinct, balance.bins[0].got) == (3, 3, 7)


def test_no_elite_twice_while_there_are_others(run, tmp_path):
    balance = dataset.export(run(), tmp_path / "out", count=60)
    assert balance.bins[0].distinct == 60
    assert balance.bins[0].label == "all"
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {"all"}


def test_empty_bins_are_listed_and_shift_nothing(run, tmp_path, records):
    full = dataset.export(run(LEFT, RIGHT), tmp_path / "full", count=20)
    with_gap = dataset.export(run(LEFT, NOWHERE, RIGHT), tmp_path / "gap", count=30)
    assert full.empty_bins == ()
    assert with_gap.empty_bins == ("nowhere",)
    assert [(bin.asked, bin.got) for bin in with_gap.bins] == [(10, 10), (10, 0), (10, 10)]
    assert with_gap.got == 20 < with_gap.asked == 30
    # The empty class keeps its folder, and with it its class number.
    folders = sorted(path.name for path in (tmp_path / "gap").iterdir() if path.is_dir())
    assert folders == ["high", "low", "missing"]
    for record in records(tmp_path / "gap"):
        assert record["label"] == folders.index(record["label_name"])
    saved = json.loads((tmp_path / "gap/balance.json").read_text())
    assert saved["empty_bins"] == ["nowhere"]
    assert "nowhere" in (tmp_path / "gap/README.md").read_text()
    assert "nowhere" in str(with_gap)
    assert "nowhere" not in str(full)


def test_overlapping_bins_give_an_elite_to_the_first(run, tmp_path, records):
    everything = BinConfig(name="everything", label="rest", where={})
    dataset.export(run(RIGHT, everything), tmp_path / "out", count=100)
    for record in records(tmp_path / "out"):
        assert record["bin"] == ("right" if record["measure_x"] >= 0.5 else "everything")


def test_min_objective_filters_elites(run, tmp_path, records):
    path = run(LEFT, RIGHT, count=12, min_objective=90.0)
    balance = dataset.export(path, tmp_path / "out")
    assert (balance.asked, balance.got, balance.below_min_objective) == (12, 6, 90)
    assert balance.empty_bins == ("left",)
    assert all(record["objective"] >= 90 for record in records(tmp_path / "out"))
    lower = dataset.export(path, tmp_path / "lower", min_objective=0.0, count=2)
    assert lower.empty_bins == ()
    assert lower.below_min_objective == 0
    with pytest.raises(QDGSError, match="100 because of an objective below 1000"):
        dataset.export(path, tmp_path / "none", min_objective=1000.0)


def test_copies_are_named(run, tmp_path):
    corner = BinConfig(name="corner", label="c", where={"x": (0.79, 1.0), "y": (0.4, 1.0)})
    balance = dataset.export(run(LEFT, corner), tmp_path / "out", count=16)
    assert str(balance) == (
        "16 images, 16 of them new; 11 are different, the others are copies (`latent_row`)."
    )
    assert "latent_row` are copies: keep them together" in (tmp_path / "out/README.md").read_text()
    assert "copies" not in str(dataset.export(run(LEFT), tmp_path / "few", count=16))


def test_without_repeats_bins_get_fewer(run, tmp_path, records):
    corner = BinConfig(name="corner", label="c", where={"x": (0.79, 1.0), "y": (0.4, 1.0)})
    path, out = run(LEFT, corner, NOWHERE), tmp_path / "out"
    balance = dataset.export(path, out, count=24, no_repeat=True)
    assert [bin.got for bin in balance.bins] == [8, 3, 0]
    rows = [record["latent_row"] for record in records(out)]
    assert len(set(rows)) == len(rows) == balance.got == 11
    assert "too few elites: corner (3 of 8)" in str(balance)
    assert "No elite is shown twice" in (out / "README.md").read_text()
    assert dataset.export(path, out, count=24, no_repeat=True).written == 0
    with pytest.raises(QDGSError, match="another dataset"):
        dataset.export(path, out, count=24)
