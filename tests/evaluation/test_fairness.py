"""A classifier's fairness, from counts made by hand."""

import statistics

import numpy as np
import pytest
from scipy import stats

from qdgs_jax.evaluation import fairness
from qdgs_jax.evaluation.fairness import Groups

GROUPS = Groups(
    ("a, x", "a, y", "b, x", "b, y"), np.array([0, 0, 1, 1]), np.repeat([0, 1, 2, 3], [10, 5, 4, 1])
)


def test_counts() -> None:
    predicted = np.zeros((3, 20), int)
    predicted[1, -1] = 1
    counts = fairness.count(predicted, GROUPS, classes=2)
    assert counts.shape == (3, 4, 2)
    np.testing.assert_array_equal(counts[0], [[10, 0], [5, 0], [4, 0], [1, 0]])
    np.testing.assert_array_equal(counts[1], [[10, 0], [5, 0], [4, 0], [0, 1]])


def test_measures_by_hand() -> None:
    counts = np.array([[9, 1], [3, 2], [1, 3], [0, 1]])
    measured = fairness.measure(counts, GROUPS.labels)
    np.testing.assert_allclose(measured["accuracy"], [0.9, 0.6, 0.75, 1])
    assert measured["mean"] == pytest.approx(0.8125)
    assert measured["worst"] == pytest.approx(0.6)
    assert measured["equalised odds gap"] == pytest.approx(0.3)  # a: 0.3; b: 0.25
    same = fairness.measure(np.stack([counts, counts]), GROUPS.labels)
    np.testing.assert_allclose(same["worst"], [0.6, 0.6])


def test_odds_are_compared_within_a_label() -> None:
    """Three labels of two groups each, whose rates differ by 0.1, 0.2 and 0.3 at most."""
    counts = np.array([[9, 1, 0], [8, 1, 1], [2, 6, 2], [1, 8, 1], [3, 3, 4], [1, 2, 7]])
    measured = fairness.measure(counts, np.array([0, 0, 1, 1, 2, 2]))
    assert measured["equalised odds gap"] == pytest.approx(0.3)


def test_intervals_hold_the_measure_and_shrink() -> None:
    counts = np.array([[9, 1], [3, 2], [4, 0], [0, 1]])
    few, many = (fairness.intervals(n * counts, GROUPS.labels) for n in (1, 1000))
    measured = fairness.measure(counts, GROUPS.labels)
    for name, (low, high) in few.items():
        assert (low <= measured[name]).all()
        assert (measured[name] <= high).all()
        assert (many[name][1] - many[name][0] < 0.2 * (high - low)).all()
    assert few["accuracy"][0, 2] < 0.7  # four of four correct images are little evidence


def posterior(right: int, wrong: int) -> np.ndarray:
    """Ends of the middle 95 % of Jeffreys' posterior of an accuracy, Beta(1/2 + n, 1/2 + m)."""
    return stats.beta(right + 0.5, wrong + 0.5).ppf([0.025, 0.975])


def test_intervals_are_those_of_jeffreys() -> None:
    counts = np.array([[9, 1], [3, 2], [1, 3], [40, 60]])
    found = fairness.intervals(counts, GROUPS.labels)["accuracy"]
    expected = [posterior(9, 1), posterior(3, 2), posterior(3, 1), posterior(60, 40)]
    np.testing.assert_allclose(found, np.transpose(expected), atol=0.02)  # of 4000 draws
    half = fairness.intervals(counts, GROUPS.labels, level=0.5)["accuracy"]
    np.testing.assert_allclose(half[:, 1], stats.beta(3.5, 2.5).ppf([0.25, 0.75]), atol=0.02)


def test_intervals_of_three_classes() -> None:
    """A rate of a Dirichlet distribution is Beta distributed, with the other classes pooled."""
    found = fairness.intervals(np.array([[6, 3, 1], [2, 5, 4]]), np.array([0, 2]))["accuracy"]
    expected = [stats.beta(6.5, 5).ppf([0.025, 0.975]), stats.beta(4.5, 8).ppf([0.025, 0.975])]
    np.testing.assert_allclose(found, np.transpose(expected), atol=0.02)


def test_intervals_hold_a_measure_beyond_their_quantiles() -> None:
    counts = np.array([[10, 0], [10, 0], [0, 10], [0, 10]])
    found = fairness.intervals(counts, GROUPS.labels, level=0.5)
    assert found["mean"][1] == found["worst"][1] == 1  # almost no draw is perfect
    assert found["equalised odds gap"][0] == 0
    assert found["mean"][0] < 0.99


def test_over_seeds_by_hand() -> None:
    counts = np.array([
        [[9, 1], [3, 2], [1, 3], [0, 1]],
        [[8, 2], [5, 0], [2, 2], [1, 0]],
        [[4, 6], [4, 1], [0, 4], [0, 1]],
    ])  # fmt: skip
    found = fairness.over_seeds(counts, GROUPS)
    assert list(found) == ["mean", "worst", "equalised odds gap", *GROUPS.names]
    accuracies = {
        "a, x": [0.9, 0.8, 0.4], "a, y": [0.6, 1, 0.8], "b, x": [0.75, 0.5, 1], "b, y": [1, 0, 1]
    }  # fmt: skip
    seeds = {
        "mean": [sum(each) / 4 for each in zip(*accuracies.values(), strict=True)],
        "worst": [0.6, 0, 0.4],
        "equalised odds gap": [0.3, 0.5, 0.4],
        **accuracies,
    }
    for name, values in seeds.items():
        assert found[name]["seeds"] == pytest.approx(values)
        assert found[name]["mean"] == pytest.approx(statistics.mean(values))
        assert found[name]["spread"] == pytest.approx(statistics.stdev(values))  # of a sample
    ends = np.mean([posterior(9, 1), posterior(8, 2), posterior(4, 6)], axis=0)
    np.testing.assert_allclose(found["a, x"]["interval"], ends, atol=0.02)


def test_one_seed_has_no_spread() -> None:
    found = fairness.over_seeds(np.array([[[9, 1], [3, 2], [1, 3], [0, 1]]]), GROUPS)
    assert {row["spread"] for row in found.values()} == {0}
    assert found["a, y"]["seeds"] == [0.6]


def test_table() -> None:
    row = {"mean": {"mean": 0.5, "spread": 0.25, "interval": [0.125, 0.75]}}
    text = fairness.table([{"arm": "qdgs", **row}, {"arm": "random", **row}])
    assert text.splitlines() == [
        "| arm | mean |",
        "|---|---:|",
        "| qdgs | 0.500 ± 0.250 [0.125, 0.750] |",
        "| random | 0.500 ± 0.250 [0.125, 0.750] |",
    ]
    text = fairness.table([{"bias": 0.9, "arm": "qdgs", **row}])
    assert text == "| bias | arm | mean |\n|---|---|---:|\n| 0.9 | qdgs | 0.500 ± 0.250 |\n"
