"""Distinct images, with features on a line."""

import numpy as np

from qdgs_jax.datasets import candidates
from qdgs_jax.datasets.copies import distinct


def test_each_is_compared_with_the_distinct_ones_before() -> None:
    """0.9 is near 0, hence 1.8 is compared with 0 alone; 2.5 is near 1.8."""
    features = np.array([[0, 0.9, 1.8, 2.5, 0, 2.8, 4]]).T
    np.testing.assert_array_equal(
        distinct(features, 1.0), [True, False, True, False, False, False, True]
    )
    assert distinct(features, 0).sum() == 6  # equal ones are copies at any distance
    assert distinct(features[:0], 1).shape == (0,)


def test_people_differ_by_the_cosine() -> None:
    angles = np.deg2rad([0, 54, 56, 111])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = candidates.distinct(embeddings)  # 0.566 is the cosine of 55.5 degrees
    np.testing.assert_array_equal(found, [True, False, True, False])
    np.testing.assert_array_equal(candidates.distinct(embeddings, 0.5), [True, False, False, True])
