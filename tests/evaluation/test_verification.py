"""Verification, with distances made by hand."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from qdgs_jax.errors import ConfigError
from qdgs_jax.evaluation import verification
from qdgs_jax.evaluation.figures import draw_roc
from qdgs_jax.evaluation.pairs import Pairs
from qdgs_jax.evaluation.verification import interval, matches, pair_distances, roc, verify
from qdgs_jax.models import iresnet

NOBODY = np.zeros((0, 1, 1, 3), np.uint8)


def make_pairs(same: np.ndarray, people: np.ndarray | None = None, groups: tuple = ()) -> Pairs:
    rows = np.arange(2 * len(same)).reshape(-1, 2)
    return Pairs(NOBODY, rows, same, np.full(rows.shape, -1) if people is None else people, groups)


def test_the_threshold_is_chosen_on_other_folds() -> None:
    """Pairs match below 1, but in the last fold below 3: its errors remain."""
    same = np.tile([True, False], 20)
    distances = np.where(same, 0.5, 1.5)
    distances[-4:] = [2.5, 3.5, 2.5, 3.5]
    matched, thresholds = matches(distances, make_pairs(same))
    assert (matched[:-4] == same[:-4]).all()
    assert not matched[-4:].any()
    assert ((thresholds > 0.5) & (thresholds < 1.5)).all()


def test_best_thresholds() -> None:
    best = verification._best_threshold
    assert best(np.array([0.1, 0.2, 0.9, 1.0]), np.array([True, True, False, False])) == 0.55
    assert best(np.array([0.5, 0.5]), np.array([True, True])) > 0.5
    assert best(np.array([0.5, 0.5]), np.array([False, False])) < 0.5
    assert best(np.full(3, 0.5), np.array([True, False, False])) < 0.5  # none between equal ones


def test_accuracy_and_rates_by_hand() -> None:
    """Of 40 pairs of two people, the 4 closest are at 0.3: a rate of 0.1 admits them."""
    same = np.tile([True, False], 40)
    distances = np.where(same, 0.2, 1.0)
    distances[[1, 11, 21, 31]] = 0.3
    distances[[0, 10, 20, 30, 40]] = 0.8, 0.8, 0.8, 0.8, 3.0
    groups = ("dark",) * 20 + ("light",) * 60
    found = verify(distances, make_pairs(same, groups=groups))
    assert found["pairs"] == 80
    assert found["accuracy"] == pytest.approx(1 - 5 / 80)
    assert found["true matches"]["0.1"]["rate"] == pytest.approx(39 / 40)
    assert found["true matches"]["0.01"] is None
    assert found["notes"][0] == (
        "A rate of false matches of 0.01 needs 300 pairs of two people; there are 40."
    )
    assert [found["groups"][name]["pairs"] for name in ("dark", "light")] == [20, 60]
    low, high = found["interval"]
    assert low < found["accuracy"] < high


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 of 3 pairs show one person"):
        verify(np.zeros(3), make_pairs(np.ones(3, bool)))


def test_intervals_of_unknown_people_are_nearly_exact() -> None:
    """The jackknife counts one pair less."""
    right = np.arange(200) < 150
    expected = stats.binomtest(150, 200).proportion_ci(0.95, "exact")
    found = interval(right, np.full((200, 2), -1))
    np.testing.assert_allclose(found, list(expected), atol=2e-3)
    perfect = interval(np.ones(50, bool), np.full((50, 2), -1))
    np.testing.assert_allclose(
        perfect, list(stats.binomtest(50, 50).proportion_ci(0.95, "exact")), atol=1e-6
    )


def test_intervals_cover_the_rate_of_other_people() -> None:
    """People are easy or hard, 12 of them with 10 pairs each: pairs as such would cover less."""
    random = np.random.default_rng(0)
    people = np.repeat(np.arange(12), 10)
    people = np.stack([people, people], axis=1)
    covered = naive = 0
    for _ in range(200):
        ease = random.choice([0.5, 0.9], 12)
        right = random.random(120) < ease[people[:, 0]]
        low, high = interval(right, people)
        covered += low <= 0.7 <= high
        low, high = stats.binomtest(int(right.sum()), 120).proportion_ci(0.95, "exact")
        naive += low <= 0.7 <= high
    assert covered / 200 > 0.93
    assert naive < covered - 10
    low, _ = interval(np.ones(120, bool), people)
    assert low == pytest.approx(stats.binomtest(12, 12).proportion_ci(0.95, "exact").low, abs=1e-6)


def test_roc_by_hand(tmp_path: Path) -> None:
    distances, same = np.array([0.3, 0.1, 0.2, 0.4]), np.array([False, True, True, False])
    false, true = roc(distances, same)
    np.testing.assert_allclose(false, [0, 0, 0, 0.5, 1])
    np.testing.assert_allclose(true, [0, 0.5, 1, 1, 1])
    draw_roc(tmp_path / "roc.png", {"a network": (distances, same)})
    assert (tmp_path / "roc.png").stat().st_size > 5000


def test_embeddings_are_of_the_image_and_its_mirror_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of both embeddings, whose norms are the weights; images are resized and padded."""
    config = iresnet.IResNetConfig(image_size=4)
    monkeypatch.setattr(verification, "EMBEDDED_AT_ONCE", 3)
    monkeypatch.setattr(
        iresnet, "embed", lambda config, params, images, **_: params * images.mean(axis=1)[:, 0]
    )
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    weights = np.ones((1, 3), np.float32)
    found = verification.embed_faces(config, weights, images)
    twice = images.repeat(2, axis=1).repeat(2, axis=2)
    larger = verification.embed_faces(config, weights, twice)
    columns = (images / 255).mean(axis=1)
    expected = columns[:, 0] + columns[:, -1]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(larger, expected, atol=0.05)
    pairs = Pairs(images, np.array([[0, 4]]), np.array([True]), np.array([[0, 0]]))
    squared = ((expected[0] - expected[4]) ** 2).sum()
    np.testing.assert_allclose(pair_distances(expected, pairs), [squared])
