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


def exact(right: int, total: int, level: float = 0.95) -> list[float]:
    """Ends of the interval of Clopper and Pearson, as another library function has them."""
    return list(stats.binomtest(right, total).proportion_ci(level, method="exact"))


def test_intervals_of_rates_are_exact() -> None:
    counts = np.array([[9, 1], [3, 2], [1, 3], [0, 60]])
    found = fairness.intervals(counts, GROUPS.labels)["accuracy"]
    expected = [exact(9, 10), exact(3, 5), exact(3, 4), exact(60, 60)]
    np.testing.assert_allclose(found, np.transpose(expected), atol=1e-7)
    half = fairness.intervals(counts, GROUPS.labels, level=0.5)["accuracy"]
    np.testing.assert_allclose(half[:, 1], exact(3, 5, 0.5), atol=1e-7)


@pytest.mark.parametrize("right", [0, 1, 3, 9, 10])
def test_the_interval_of_one_groups_mean_is_that_of_its_rate(right: int) -> None:
    found = fairness.intervals(np.array([[right, 10 - right]]), np.array([0]), draws=50_000)
    np.testing.assert_allclose(found["mean"], exact(right, 10), atol=0.01)


def test_intervals_of_extremes_bound_all_rates() -> None:
    counts = np.array([[9, 1], [3, 2], [1, 3], [0, 1]])
    found = fairness.intervals(counts, GROUPS.labels)
    low, high = np.transpose(
        [exact(k, n, 1 - 0.05 / 4) for k, n in ((9, 10), (3, 5), (3, 4), (1, 1))]
    )
    np.testing.assert_allclose(found["worst"], [low.min(), high.min()], atol=1e-7)
    widest = max(high[0] - low[1], high[1] - low[0], high[2] - low[3], high[3] - low[2])
    np.testing.assert_allclose(found["equalised odds gap"], [0, widest], atol=1e-7)
    apart = fairness.intervals(np.array([[99, 1], [10, 90]]), np.array([0, 0]))
    assert 0.7 < apart["equalised odds gap"][0] < 0.89 < apart["equalised odds gap"][1] < 1


@pytest.mark.parametrize("truth", [[0.9, 0.9, 0.9, 0.9], [0.99, 0.7, 0.8, 0.95], [0.5, 0.5, 1, 1]])
def test_intervals_cover_what_they_say(truth: list[float]) -> None:
    """Of 300 test sets of 40 images a group: at least 95 %, of which three standard errors less."""
    random, labels, size, sets = np.random.default_rng(1), GROUPS.labels, 40, 300
    right = random.binomial(size, truth, size=(sets, 4))
    rates = np.stack([truth, 1 - np.array(truth)], axis=-1)
    rates[labels == 1] = rates[labels == 1, ::-1]
    true = fairness.measure(rates, labels)
    covered = {name: 0.0 for name in true}
    for row in right:
        counts = np.stack([row, size - row], axis=-1)
        counts[labels == 1] = counts[labels == 1, ::-1]
        for name, (low, high) in fairness.intervals(counts, labels, draws=1000).items():
            inside = (low - 1e-9 <= true[name]) & (true[name] <= high + 1e-9)
            covered[name] += inside.mean() / sets
    assert min(covered.values()) > 0.95 - 3 * (0.95 * 0.05 / sets) ** 0.5, covered


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_intervals_over_seeds_cover_the_mean_of_seeds(shared: bool) -> None:
    """Seeds' accuracies vary; the same test images are hard for all seeds, or for each its own."""
    random, seeds, size, sets = np.random.default_rng(2), 5, 50, 200
    labels, centre = np.array([0, 0]), np.array([0.9, 0.75])

    def draw(shape: int) -> np.ndarray:
        return (centre + 0.06 * random.standard_normal((shape, 2))).clip(0, 1)

    many = draw(100_000)
    truth = {
        "mean": many.mean(), "worst": many.min(axis=1).mean(),
        "equalised odds gap": np.ptp(many, axis=1).mean(), "x": many[:, 0].mean(),
    }  # fmt: skip
    covered = dict.fromkeys(truth, 0)
    for _ in range(sets):
        hardness = random.random((1 if shared else seeds, 2, size))
        right = (hardness < draw(seeds)[..., None]).sum(axis=-1)
        counts = np.stack([right, size - right], axis=-1)
        found = fairness.over_seeds(counts, Groups(("x", "y"), labels, np.zeros(0)))
        for name, value in truth.items():
            low, high = found[name]["interval"]
            covered[name] += low <= value <= high
    assert min(covered.values()) / sets > 0.93 - 0.02, covered


def test_no_label_with_two_groups_has_no_gap() -> None:
    groups = Groups(("a, x", "b, y"), np.array([0, 1]), np.array([0, 1]))
    found = fairness.over_seeds(np.array([[[9, 1], [2, 8]]]), groups)
    assert found["equalised odds gap"] is None
    assert found["worst"]["mean"] == pytest.approx(0.8)
    text = fairness.table([{"arm": "qdgs", **found}])
    assert "| none |" in text
    assert "each label has several groups" in text


def test_a_label_with_one_group_leaves_the_others_gap() -> None:
    measured = fairness.measure(np.array([[9, 1], [5, 5], [0, 10]]), np.array([0, 0, 1]))
    assert measured["equalised odds gap"] == pytest.approx(0.4)


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
    ends = np.mean([exact(9, 10), exact(8, 10), exact(4, 10)], axis=0)
    student = 4.302653 * statistics.stdev([0.9, 0.8, 0.4]) / 3**0.5
    low, high = 0.7 - np.hypot(0.7 - ends[0], student), 0.7 + np.hypot(ends[1] - 0.7, student)
    np.testing.assert_allclose(found["a, x"]["interval"], [max(low, 0), min(high, 1)], atol=1e-6)


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
