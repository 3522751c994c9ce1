"""Comparisons by nearest neighbours, of few points by hand and of drawn ones by a plain loop."""

import numpy as np
import pytest

from qdgs_jax.evaluation import neighbours
from qdgs_jax.evaluation.neighbours import compare, count_distinct, diversity, mean_distance

REAL = np.array([[0.0], [1], [3], [7]])  # with k = 1: radii 1, 1, 2, 4
GENERATED = np.array([[2.0], [2.5], [12]])  # radii 0.5, 0.5, 9.5


def test_by_hand() -> None:
    """Balls of real images: [-1, 1], [0, 2], [1, 5], [3, 11]. Those of generated ones: [1.5, 2.5],
    [2, 3], [2.5, 21.5]; the surface counts.
    """
    assert compare(REAL, GENERATED, k=1, coverage_k=1) == {
        "precision": 2 / 3,  # 2 and 2.5
        "recall": 2 / 4,  # 3 and 7
        "density": 3 / 3,  # 2 is in two balls, 2.5 in one
        "coverage": 2 / 4,  # the balls of 1 and 3
    }


def plain(real: np.ndarray, generated: np.ndarray, k: int, coverage_k: int) -> dict[str, float]:
    """The papers' equations, image by image."""

    def radius(center: np.ndarray, among: np.ndarray, k: int) -> float:
        return np.sort(np.linalg.norm(among - center, axis=1))[k]

    def ball(center: np.ndarray, among: np.ndarray, k: int, others: np.ndarray) -> np.ndarray:
        return np.linalg.norm(others - center, axis=1) <= radius(center, among, k)

    precise = np.array([ball(x, real, k, generated) for x in real])
    recalled = np.array([ball(y, generated, k, real) for y in generated])
    covered = np.array([ball(x, real, coverage_k, generated) for x in real])
    return {
        "precision": precise.any(axis=0).mean(),
        "recall": recalled.any(axis=0).mean(),
        "density": covered.sum() / (coverage_k * len(generated)),
        "coverage": covered.any(axis=1).mean(),
    }


def test_defaults_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """k is 3 and 5; the result does not depend on how many rows are compared at once."""
    random = np.random.default_rng(0)
    real, generated = random.normal(size=(90, 3)), 1.2 * random.normal(size=(70, 3)) + 0.4
    expected = plain(real, generated, 3, 5)
    assert len(set(expected.values())) == 4
    whole, mean = compare(real, generated), mean_distance(real)
    assert whole == pytest.approx(expected)
    monkeypatch.setattr(neighbours, "MEMORY", 10 * 90 * 8 / 2**20)
    assert [rows.stop for rows, _ in neighbours._blocks(real)] == list(range(10, 91, 10))
    assert compare(real.astype(np.float32), generated.astype(np.float32)) == pytest.approx(whole)
    assert mean_distance(real) == pytest.approx(mean)


def test_a_dropped_mode_lowers_recall_and_coverage_alone() -> None:
    random = np.random.default_rng(1)
    real, generated = random.normal(size=(2, 400, 2))
    real[:200] += 50
    half, both = generated.copy(), generated.copy()
    both[:200] += 50
    found, complete = compare(real, half), compare(real, both)
    for name in ("precision", "density"):
        assert found[name] == pytest.approx(complete[name], abs=0.15)
    for name in ("recall", "coverage"):
        assert complete[name] > 0.85
        assert found[name] < 0.51
    far = compare(real, generated - 1000)
    assert far == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_too_few_images() -> None:
    real = np.arange(12.0).reshape(6, 2)
    nothing = {"precision": None, "recall": None, "density": None, "coverage": None}
    assert compare(real, real[:0]) == {**nothing, "recall": 0, "coverage": 0}
    assert compare(real[:0], real) == nothing
    few = compare(real[:4], real[:3])
    assert {name for name, value in few.items() if value is None} == {
        "recall", "density", "coverage",
    }  # fmt: skip
    assert few["precision"] == 1


def test_diversity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean distances by hand: (1 + 3 + 7 + 2 + 6 + 4) / 6 and (0.5 + 10 + 9.5) / 3."""
    assert mean_distance(REAL) == pytest.approx(23 / 6)
    assert diversity(REAL, GENERATED) == pytest.approx(20 / 3 / (23 / 6))
    assert diversity(REAL, GENERATED[:1]) is None
    assert diversity(REAL[:1], GENERATED) is None
    assert diversity(REAL[[0, 0]], GENERATED) is None
    many = np.random.default_rng(0).normal(size=(600, 4))
    whole = mean_distance(many)
    monkeypatch.setattr(neighbours, "MOST", 300)
    drawn = mean_distance(many, seed=1)
    assert drawn == mean_distance(many, seed=1) != mean_distance(many, seed=2)
    assert drawn == pytest.approx(whole, rel=0.05)
    assert drawn != whole


def test_distinct_images() -> None:
    """Real images are about 1 apart, but for two copies, and 1 % of 300 may be copies."""
    real = np.arange(300.0)[:, None]
    real += 1e-5 * real**2
    real[1] = 0
    generated = np.array([[0.0], [0.4], [0.9], [1.1], [1.1], [5]])
    assert count_distinct(real, generated) == 3  # 0, 1.1 and 5
    assert 297 <= count_distinct(real, real) <= 299
    assert count_distinct(real[:1], generated) is None
    assert count_distinct(real, generated[:0]) == 0
