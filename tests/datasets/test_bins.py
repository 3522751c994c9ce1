"""Bins: the measures that each holds, and draws from bins."""

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np
import pytest

from qdgs_jax.bins import assign_bins, choose_test, draw_evenly
from qdgs_jax.config import BinConfig, Config, MeasureConfig
from qdgs_jax.datasets import export as dataset
from qdgs_jax.errors import ConfigError


def test_even_over_the_grid_without_bins():
    rows = draw_evenly(np.zeros(100, int), 1, 1030, seed=0)
    uses = np.bincount(rows, minlength=100)
    assert set(uses) == {10, 11}
    assert not np.array_equal(rows[:100], rows[100:200])
    assert not np.array_equal(rows, draw_evenly(np.zeros(100, int), 1, 1030, seed=1))


def test_every_elite_of_a_bin_is_drawn_before_any_again() -> None:
    bin = np.array([0, 1, -1, 1, 0, 1])
    rows = draw_evenly(bin, 3, 18, seed=2)
    assert len(rows) == 12  # nothing for bin 2, which is empty
    np.testing.assert_array_equal(np.sort(rows[:6].reshape(3, 2)), [[0, 4]] * 3)
    np.testing.assert_array_equal(np.sort(rows[6:].reshape(2, 3)), [[1, 3, 5]] * 2)
    assert len(draw_evenly(bin, 2, 5, seed=0)) == 5


def test_without_repeats_a_bin_is_drawn_once_at_most() -> None:
    bin = np.array([0, 1, -1, 1, 0, 1])
    rows = draw_evenly(bin, 3, 9, seed=2, repeat=False)
    np.testing.assert_array_equal(np.sort(rows[:2]), [0, 4])
    np.testing.assert_array_equal(np.sort(rows[2:]), [1, 3, 5])
    enough = draw_evenly(bin, 3, 6, seed=2, repeat=False)
    np.testing.assert_array_equal(enough, draw_evenly(bin, 3, 6, seed=2))


@pytest.mark.parametrize(
    ("elites", "count", "share", "expected"),
    [
        (10, 10, 0.2, 2),
        (250, 250, 0.2, 50),
        (104, 250, 0.2, 50),  # 42 elites three times, 62 twice
        (4, 20, 0.2, 5),  # 4 of 20 is wanted; each elite has five copies
        (4, 22, 0.5, 11),  # copies 6, 6, 5, 5
        (3, 3, 0.2, 1),  # 0.6 images
        (1, 5, 0.2, 0),
        (1, 5, 0.8, 5),
        (2, 9, 0.9, 9),
    ],
)
def test_copies_stay_together_and_shares_are_as_near_as_they_allow(
    elites: int, count: int, share: float, expected: int
) -> None:
    """In a second bin, too, whatever the first is like."""
    bin = np.repeat([0, 1], [elites, 7])
    rows = draw_evenly(bin, 2, 2 * count, seed=1)
    test = choose_test(rows, bin[rows], share, seed=1)
    assert not set(rows[test]) & set(rows[~test])
    assert test[bin[rows] == 0].sum() == expected
    if elites > 9:
        other = choose_test(rows, bin[rows], share, seed=2)
        assert set(rows[other]) != set(rows[test])


def test_bins_are_half_open(make_config):
    bins = (BinConfig(name="a", label="a", where={"x": (0.0, 0.5), "y": (0.0, 1.0)}),)
    measures = np.array([[0.0, 0.0], [0.5, 0.0], [0.49, 1.0], [np.nan, 0.0], [0.49, 0.99]])
    found = assign_bins(make_config(), bins, measures)
    assert found.tolist() == [0, -1, -1, -1, 0]


def test_nearest_bins_count_in_spans_of_the_ranges(make_config):
    config = make_config()  # both measures from -1 to 1
    wide = dataclasses.replace(config.measures[0], range=(-10, 10))
    bins = (
        BinConfig(name="a", label="a", where={"x": (-math.inf, 0.0)}),
        BinConfig(name="b", label="b", where={"x": (0.5, math.inf), "y": (0.0, 1.0)}),
    )
    measures = np.array([[-9.0, 5], [0.1, 0], [0.4, 0.5], [0.4, -0.2], [9, 1], [np.nan, 0]])
    nearest = functools.partial(assign_bins, nearest=True)
    assert nearest(config, bins, measures).tolist() == [0, 0, 1, 1, 1, -1]
    config = dataclasses.replace(config, measures=(wide, config.measures[1]))
    assert nearest(config, bins, measures).tolist() == [0, 0, 1, 0, 1, -1]


def test_an_edge_belongs_to_the_bin_that_holds_it_not_to_its_neighbour(make_config):
    bins = (
        BinConfig(name="low", label="low", where={"x": (-math.inf, 0.0)}),
        BinConfig(name="high", label="high", where={"x": (0.0, math.inf)}),
    )
    measures = np.array([[-0.1, 0.0], [0.0, 0.0], [math.inf, 0.0]])
    found = assign_bins(make_config(), bins, measures, nearest=True)
    assert found.tolist() == [0, 1, -1]


@pytest.mark.parametrize(
    "label",
    ["a/b", "..", "a\\b", ".hidden", "manifest.json", "a ", "x\n", "unlabelled", "日" * 70],
)
def test_labels_must_be_names_of_folders(run, tmp_path, label):
    bin = BinConfig(name="odd", label=label, where={})
    with pytest.raises(ConfigError, match="bin 'odd'"):
        dataset.export(run(bin), tmp_path / "out", count=1)
    assert not (tmp_path / "out").exists()


def ranged(
    make_config: Callable[..., Config], *ranges: tuple[float, float], bins: tuple[BinConfig, ...]
) -> Config:
    """A config with a measure for each range, named x, y, ..."""
    measures = tuple(
        MeasureConfig(name=name, low="low", high="high", range=range)
        for name, range in zip("xyz", ranges, strict=False)
    )
    return dataclasses.replace(make_config(*bins), measures=measures)


def test_the_nearest_bin_is_so_in_spans_of_each_measure(make_config: Callable[..., Config]) -> None:
    """From (2, 0), bin "a" is 1 of 10 away, "b" 30 of 1000, and "c" both of 2 of 10 and 10."""
    bins = (
        BinConfig(name="a", label="a", where={"x": (-5.0, 1.0)}),
        BinConfig(name="b", label="b", where={"y": (30.0, 90.0)}),
        BinConfig(name="c", label="c", where={"x": (4.0, 5.0), "y": (10.0, 11.0)}),
    )
    config = ranged(make_config, (-5, 5), (-500, 500), bins=bins)
    points = [(2, 0), (1.2, 0), (3.9, 9), (3.9, -30), (2, 120), (0, 50), (4, 10), (1, 11.0)]
    measures = np.array(points, np.float32)
    nearest = assign_bins(config, bins, measures, nearest=True)
    np.testing.assert_array_equal(nearest, [1, 0, 2, 2, 1, 0, 2, 0])
    inside = assign_bins(config, bins, measures)
    np.testing.assert_array_equal(inside, [-1, -1, -1, -1, -1, 0, 2, -1])


def test_distances_to_a_bin_are_euclidean(make_config: Callable[..., Config]) -> None:
    """Of (0, 0), "corner" is 0.3 away in both measures and "edge" 0.4 in one: 0.42 and 0.4."""
    corner = BinConfig(name="corner", label="a", where={"x": (0.3, 1.0), "y": (0.3, 1.0)})
    edge = BinConfig(name="edge", label="b", where={"x": (-1.0, -0.4)})
    config = ranged(make_config, (0, 1), (0, 1), bins=(corner, edge))
    measures = np.array([[0, 0], [0.02, 0.02], [np.nan, 0.5], [np.inf, 0.5]])
    nearest = assign_bins(config, (corner, edge), measures, nearest=True)
    np.testing.assert_array_equal(nearest, [1, 0, -1, -1])


def test_bins_hold_their_lower_ends_alone_and_the_first_wins(
    make_config: Callable[..., Config],
) -> None:
    bins = (
        BinConfig(name="a", label="a", where={"x": (0.0, 1.0)}),
        BinConfig(name="b", label="b", where={"x": (0.5, 2.0), "y": (0.0, 1.0)}),
    )
    config = ranged(make_config, (-1, 1), (-1, 1), bins=bins)
    measures = np.array([[0, 0], [0.5, 0], [1, 0], [1, 1], [2, 0.5], [1, -0.1], [-0.1, 0]])
    assigned = assign_bins(config, bins, measures)
    np.testing.assert_array_equal(assigned, [0, 0, 1, -1, -1, -1, -1])
