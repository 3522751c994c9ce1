"""Generated images compared with real ones by the distances of their features.

Distances are Euclidean. What depends on k-th nearest neighbours depends on the numbers of images
too: compare generators by equally many images, and with the same real ones.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from qdgs_jax.datasets.copies import distinct

MEMORY = 64  # MiB that distances may take at once
MOST = 4096
"""Images of which all pairs are compared for a mean distance."""
COPIES = 0.01
"""Share of the real images that may be taken for copies of others."""


def compare(
    real: np.ndarray, generated: np.ndarray, *, k: int = 3, coverage_k: int = 5
) -> dict[str, float | None]:
    """How far generated images [M, F] are like real ones [N, F], and show all kinds of them.

    Each image is the centre of a ball, whose radius is the distance to its k-th nearest neighbour
    among the other images of its set; the surface belongs to the ball.

    Args:
        k: of precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991).
        coverage_k: of density and coverage (Naeem et al. 2020, arXiv 2002.09797).

    Returns:
        "precision": share of the generated images that are in a ball of real ones; "recall": share
        of the real images that are in a ball of generated ones; "density": real balls that a
        generated image is in, over `coverage_k`, about 1 if both sets are alike, and unbounded;
        "coverage": share of the real balls with a generated image. More is better. None where a
        set has too few images: at most as many as k, and some. Without generated images, recall
        and coverage are 0.
    """
    real_count, count = len(real), len(generated)
    radius, coverage_radius = _radii(real, (k, coverage_k))
    (generated_radius,) = _radii(generated, (k,))
    precise = np.zeros(count, bool)
    recalled, covered = np.zeros((2, real_count), bool)
    inside = 0
    for rows, distances in _blocks(real, generated):
        precise |= (distances <= radius[rows, None]).any(axis=0)
        recalled[rows] = (distances <= generated_radius).any(axis=1)
        in_ball = distances <= coverage_radius[rows, None]
        covered[rows] = in_ball.any(axis=1)
        inside += int(in_ball.sum())
    some, many = count > 0, real_count > coverage_k
    return {
        "precision": float(precise.mean()) if some and real_count > k else None,
        "recall": float(recalled.mean()) if real_count and (count > k or not some) else None,
        "density": inside / (coverage_k * count) if some and many else None,
        "coverage": float(covered.mean()) if many else None,
    }


def diversity(real: np.ndarray, generated: np.ndarray, *, seed: int = 0) -> float | None:
    """Mean distance of two generated images [M, F], relative to that of two real ones [N, F].

    1 is as diverse as real images. None if either set has fewer than 2 images, or all real ones are
    equal.

    Args:
        seed: draws `MOST` images of a set that has more.
    """
    ours, theirs = (mean_distance(features, seed=seed) for features in (generated, real))
    return ours / theirs if ours is not None and theirs else None


def mean_distance(features: np.ndarray, *, seed: int = 0) -> float | None:
    """Mean distance over all pairs of images [n, F], or of `MOST` random ones; None without pairs.

    Args:
        seed: of the draw.
    """
    if len(features) < 2:
        return None
    if len(features) > MOST:
        drawn = np.random.default_rng(seed).choice(len(features), MOST, replace=False)
        features = features[drawn]
    total = sum(float(distances.sum()) for _, distances in _blocks(features))
    return total / (len(features) * (len(features) - 1))


def count_distinct(real: np.ndarray, generated: np.ndarray) -> int | None:
    """Number of generated images [M, F] that are no copies of earlier ones; None without a rule.

    The real images [N, F] of the same kind, at least 2, are the rule: two images are copies unless
    they are further apart than a real image and its nearest neighbour, at the quantile `COPIES` of
    these distances. By this rule nearly all real images are distinct, without a number that was
    chosen by looking at generated ones. Neighbours are closer in larger sets: the classes of a
    reference should have equally many images.
    """
    if len(real) < 2:
        return None
    (nearest,) = _radii(real, (1,))
    return int(distinct(generated, float(np.quantile(nearest, COPIES))).sum())


def _radii(features: np.ndarray, ks: Sequence[int]) -> np.ndarray:
    """Distances [len(ks), n] to the k-th nearest other image; NaN, in no ball, without so many."""
    radii = np.full((len(ks), len(features)), np.nan)
    known = [number for number, k in enumerate(ks) if k < len(features)]
    if known:
        places = [ks[number] for number in known]  # the image itself has place 0
        for rows, distances in _blocks(features):
            radii[known, rows] = np.partition(distances, places, axis=1)[:, places].T
    return radii


def _blocks(
    features: np.ndarray, others: np.ndarray | None = None
) -> Iterator[tuple[slice, np.ndarray]]:
    """Some rows of `features`, and their distances to all of `others`, or of `features` itself."""
    from sklearn.metrics import pairwise_distances_chunked  # type: ignore[import-untyped]  # slow

    if not len(features) or (others is not None and not len(others)):
        return
    features = np.asarray(features, np.float64)
    others = None if others is None else np.asarray(others, np.float64)
    start = 0
    for distances in pairwise_distances_chunked(features, others, working_memory=MEMORY):
        yield slice(start, start + len(distances)), distances
        start += len(distances)
