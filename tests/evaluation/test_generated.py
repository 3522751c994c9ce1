"""Generated images, with classes and features made by hand."""

from pathlib import Path

import numpy as np
import pytest
from scipy import linalg

from qdgs_jax.errors import QDGSError
from qdgs_jax.evaluation import neighbours
from qdgs_jax.evaluation.figures import draw_class_shares, draw_frechet_distances
from qdgs_jax.evaluation.generated import (
    Judged,
    by_class,
    frechet_distance,
    gaussian_distance,
    imbalance,
    imbalance_over_splits,
)


def test_imbalance_by_hand() -> None:
    base = np.array([65.4, 17.5, 12.1, 3.1, 1.7, 0.3])  # of the paper; they add up to 100.1
    assert imbalance(base / 100) == pytest.approx(0.554, abs=5e-4)
    assert imbalance(np.full(6, 1 / 6)) == 0
    assert imbalance([0.5, 0.5, 0, 0]) == pytest.approx(0.5)  # classes without images count
    assert imbalance([[1, 0, 0, 0], [0, 1, 0, 0]]) == pytest.approx([np.sqrt(3 / 4)] * 2)


def test_imbalance_over_splits() -> None:
    classes = np.repeat([0, 1, 2], [300, 500, 200])
    found = imbalance_over_splits(classes, count=4)
    assert found["shares"] == pytest.approx([0.3, 0.5, 0.2, 0])
    assert len(found["splits"]) == 10
    assert found["mean"] == pytest.approx(np.mean(found["splits"]))
    assert found["spread"] == pytest.approx(np.std(found["splits"], ddof=1))
    assert found["mean"] == pytest.approx(imbalance(found["shares"]), abs=0.02)  # order is random
    assert found["largest"] == imbalance([1, 0, 0, 0])
    assert found == imbalance_over_splits(classes, count=4)
    assert found != imbalance_over_splits(classes, count=4, seed=1)


def test_even_classes_have_the_imbalance_of_chance() -> None:
    classes = np.random.default_rng(0).integers(0, 6, 20_000)
    found = imbalance_over_splits(classes, count=6)
    root_mean_square = np.sqrt(np.square(found["splits"]).mean())
    assert root_mean_square == pytest.approx(found["even"], rel=0.3)


def test_impossible_splits_are_refused() -> None:
    with pytest.raises(QDGSError, match="9 images cannot be split in 10"):
        imbalance_over_splits(np.zeros(9, int), count=2)
    with pytest.raises(QDGSError, match="Class 2 is none of 2"):
        imbalance_over_splits(np.full(10, 2), count=2)


def test_distances_of_gaussians() -> None:
    """Covariances that commute: |m1 - m2|^2 + sum (s1 - s2)^2. Others: SciPy's square root."""
    turn = linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    one, two = (turn @ np.diag(np.square(s)) @ turn.T for s in ([1, 2, 3], [4, 2, 0]))
    mean = np.array([1.0, 2, 2])
    assert gaussian_distance(mean, one, 0 * mean, two) == pytest.approx(9 + 9 + 0 + 9)
    other = np.array([[2.0, 1, 0], [1, 3, 1], [0, 1, 2]])
    expected = np.trace(one + other - 2 * linalg.sqrtm(one @ other).real)
    assert gaussian_distance(mean, one, mean, other) == pytest.approx(expected)
    assert gaussian_distance(mean, other, mean, one) == pytest.approx(expected)


def test_distances_of_sets() -> None:
    """A constant feature makes both covariances singular."""
    features = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32) * [1, 2, 3, 0]
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(features, features + np.array([3, 0, 0, 4])) == pytest.approx(25)
    variances = features.var(axis=0, ddof=1).sum()
    assert frechet_distance(features, 3 * features - 2 * features.mean(axis=0)) == pytest.approx(
        4 * variances
    )
    assert frechet_distance(features[:, :1], features[:, :1] + 2) == pytest.approx(4)
    for few in ((features[:4], features), (features, features[:4])):
        with pytest.raises(QDGSError, match=r"needs more than 4 (real|generated) images"):
            frechet_distance(*few)


def test_classes_are_compared_apart() -> None:
    random = np.random.default_rng(0)
    real = Judged(random.normal(size=(60, 2)), np.repeat([0, 1, 2], 20))
    generated = Judged(random.normal(size=(30, 2)), np.repeat([0, 2], [29, 1]))
    zero, one, two = by_class(real, generated, count=3)
    theirs, ours = real.features[:20], generated.features[:29]
    assert zero == {
        "real": 20,
        "generated": 29,
        **neighbours.compare(theirs, ours),
        "diversity": neighbours.diversity(theirs, ours),
        "distinct": neighbours.count_distinct(theirs, ours),
    }
    assert None not in zero.values()
    assert (one["generated"], one["coverage"], one["distinct"]) == (0, 0, 0)
    assert one["diversity"] is None
    assert (two["generated"], two["distinct"]) == (1, 1)
    assert two["diversity"] is two["recall"] is None
    with pytest.raises(QDGSError, match="not finite"):
        Judged(np.array([[np.nan]]), np.zeros(1, int))


def test_figures(tmp_path: Path) -> None:
    draw_frechet_distances(tmp_path / "a.png", {"biased GAN": ([1, 2], [4, 5]), "ours": ([3], [1])})
    shares = {"biased GAN": np.array([[0.7, 0.3], [0.9, 0.1]]), "ours": np.array([[0.5, 0.5]])}
    draw_class_shares(tmp_path / "b.png", shares, ["bag", "boot"])
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("a.png", "b.png"))
