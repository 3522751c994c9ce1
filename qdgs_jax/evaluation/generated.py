"""Generated images by their classes and features, as a judge sees them.

The judge is a classifier of `training.classifier`, trained on balanced real images that nothing
else has seen: neither the generators nor the classifiers that guide, filter or balance them.

    state = classifier.train(config, training, start, keys, data, training.epochs, classes=K)
    classes, features = classifier.read(config, state.params, images, classes=K)
    judged = Judged(features[0], classes[0])  # of one seed
"""

import dataclasses
from typing import Any

import numpy as np

from qdgs_jax.errors import QDGSError
from qdgs_jax.evaluation import neighbours

SPLITS = 10


@dataclasses.dataclass(frozen=True)
class Judged:
    """What the judge says of images; of real ones, the classes are their labels."""

    features: np.ndarray  # [N, F]
    classes: np.ndarray  # [N] int, in [0, K)

    def __post_init__(self) -> None:
        """Raises a QDGSError if the judge's training has diverged."""
        if not np.isfinite(self.features).all():
            raise QDGSError(
                "The judge's features are not finite: train it with a lower `learning_rate`."
            )

    def of(self, number: int) -> np.ndarray:
        """Features [n, F] of the images of a class."""
        chosen: np.ndarray = np.asarray(self.features)[np.asarray(self.classes) == number]
        return chosen


def imbalance(shares: np.ndarray) -> np.ndarray:
    """F of shares [..., K] of all classes, those without images too: [...].

    F = sqrt(sum_k (1/K - n_k/N)^2), 0 if they are even (arXiv 2308.08638). The largest value, of
    one class alone, is sqrt(1 - 1/K).
    """
    shares = np.asarray(shares, np.float64)
    distance: np.ndarray = np.sqrt(np.square(1 / shares.shape[-1] - shares).sum(axis=-1))
    return distance


def imbalance_over_splits(classes: np.ndarray, *, count: int, seed: int = 0) -> dict[str, Any]:
    """`imbalance` over ten disjoint splits of images, at random, of predicted classes [N].

    Args:
        count: number of classes, K.
        seed: of the splits.

    Returns:
        "mean" and "spread", the standard deviation, over "splits" [10]; "shares" [K] of all images;
        and to read F against, "largest" possible, and "even": its root mean square if all classes
        are equally probable, which is not 0, since a split has N / 10 images only:
        sqrt((1 - 1/K) / (N / 10)).

    Raises:
        QDGSError: there are fewer than ten images, or a class beyond K.
    """
    if len(classes) < SPLITS:
        raise QDGSError(f"{len(classes)} images cannot be split in {SPLITS}: generate more.")
    if np.max(classes) >= count:
        raise QDGSError(f"Class {np.max(classes)} is none of {count}: give the number of classes.")
    order = np.random.default_rng(seed).permutation(np.asarray(classes))
    parts = [np.bincount(part, minlength=count) for part in np.array_split(order, SPLITS)]
    values = np.array([imbalance(part / part.sum()) for part in parts])
    return {
        "mean": float(values.mean()),
        "spread": float(values.std(ddof=1)),
        "splits": values.tolist(),
        "shares": (np.sum(parts, axis=0) / len(order)).tolist(),
        "largest": float(np.sqrt(1 - 1 / count)),
        "even": float(np.sqrt((1 - 1 / count) * SPLITS / len(order))),
    }


def frechet_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """Squared Frechet distance of the Gaussians with the moments of features [N, F] and [M, F].

    It is no FID (Heusel et al. 2017, arXiv 1706.08500), whose features are those of Inception:
    values of different judges do not compare. Of fewer images it is larger, even for equal
    distributions: compare generators by equally many images, and with the same real ones.

    Raises:
        QDGSError: a set has at most F images, which determine no covariance of full rank.
    """
    for name, features in (("real", real), ("generated", generated)):
        images, size = features.shape
        if images <= size:
            raise QDGSError(
                f"A Frechet distance over {size} features needs more than {size} {name} images, "
                f"better ten times as many; there are {images}: add images."
            )
    (mean, covariance), (other_mean, other_covariance) = (
        (each.mean(axis=0), np.atleast_2d(np.cov(each, rowvar=False)))
        for each in (np.asarray(real, np.float64), np.asarray(generated, np.float64))
    )
    return gaussian_distance(mean, covariance, other_mean, other_covariance)


def gaussian_distance(
    mean: np.ndarray, covariance: np.ndarray, other_mean: np.ndarray, other_covariance: np.ndarray
) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), of means [F] and covariances [F, F].

    C1 C2 is not symmetric, and singular if a feature is constant, as units that are never active
    are. Then the Schur method of `scipy.linalg.sqrtm` may fail or return complex numbers. C1 C2 has
    the eigenvalues of the symmetric C1^(1/2) C2 C1^(1/2), whose roots are the singular values of
    C1^(1/2) C2^(1/2): real, at least 0, and without the rounding errors of a square.
    """
    root, other_root = (_square_root(each) for each in (covariance, other_covariance))
    cross = np.linalg.svd(root @ other_root, compute_uv=False).sum()
    means = np.square(mean - other_mean).sum()
    distance = means + np.trace(covariance) + np.trace(other_covariance) - 2 * cross
    return max(float(distance), 0.0)


def _square_root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    root: np.ndarray = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return root


def by_class(real: Judged, generated: Judged, *, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Images of each of K = `count` classes compared, those predicted with those really of it.

    Args:
        seed: see `neighbours.diversity`.

    Returns:
        Of each class, the numbers of images "real" and "generated"; `neighbours.compare`;
        "diversity" and "distinct" (see `neighbours`). None where images are too few.
    """
    rows = []
    for number in range(count):
        ours, theirs = generated.of(number), real.of(number)
        rows.append(
            {
                "real": len(theirs),
                "generated": len(ours),
                **neighbours.compare(theirs, ours),
                "diversity": neighbours.diversity(theirs, ours, seed=seed),
                "distinct": neighbours.count_distinct(theirs, ours),
            }
        )
    return rows
