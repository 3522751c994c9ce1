"""Directions of latents that change faces most, and whose they are least."""

import numpy as np

from qdgs_jax.datasets import offsets
from qdgs_jax.datasets.offsets import STEPS, find_directions


def test_the_directions_are_leading_and_orthogonal():
    """By hand: image and identity change by these factors along four turned axes. With the mean of
    squared identity, 2.02 / 4, added to each, the ratios of squares are 6.0, 7.8, 1.9 and 0.7.
    """
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    image, identity = np.array([3, 2, 1, 1]), np.array([1, 0.1, 0.1, 1])
    seen = []

    def look(latents):
        seen.append(latents)
        turned = latents @ axes
        return (turned * image).reshape(-1, 2, 2), turned * identity

    elites = np.random.default_rng(1).normal(size=(40, 4)).astype(np.float32)
    found = find_directions(look, elites, length=0.5)
    np.testing.assert_allclose(np.abs(found @ axes), [[0, 0.5, 0, 0], [0.5, 0, 0, 0]], atol=1e-4)
    assert {each.shape for each in seen} == {(4, 4)}  # one program
    assert len(seen) == 2 * offsets.ELITES


def test_the_second_direction_is_not_the_second_eigenvector_but_orthogonal():
    """Generalised eigenvectors are orthogonal by identity alone: here (1, 0) and (1, -1)."""
    image, identity = np.array([[2.0, 0.2], [0.0, 1.0]]), np.array([[0.1, 0.0], [0.3, 1.0]])
    elites = np.random.default_rng(1).normal(size=(9, 2))
    first, second = find_directions(lambda z: (z @ image, z @ identity), elites, length=2.0)
    np.testing.assert_allclose(np.linalg.norm([first, second], axis=1), 2, rtol=1e-6)
    np.testing.assert_allclose(first @ second, 0, atol=1e-6)


def test_an_offset_of_none_comes_first():
    assert STEPS.shape == (9, 2)
    assert not STEPS[0].any()
    assert len({tuple(step) for step in STEPS.tolist()}) == 9
