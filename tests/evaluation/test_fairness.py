"""What is told of a classifier's fairness, against counts made by hand."""

import numpy as np
import pytest

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


def test_intervals_hold_the_measure_and_shrink() -> None:
    counts = np.array([[9, 1], [3, 2], [4, 0], [0, 1]])
    few, many = (fairness.intervals(n * counts, GROUPS.labels) for n in (1, 1000))
    measured = fairness.measure(counts, GROUPS.labels)
    for name, (low, high) in few.items():
        assert (low <= measured[name]).all()
        assert (measured[name] <= high).all()
        assert (many[name][1] - many[name][0] < 0.2 * (high - low)).all()
    assert few["accuracy"][0, 2] < 0.7  # four of four right does not mean much
