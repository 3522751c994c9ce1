"""Scenes are images with their attributes, which follow rotations and mirroring."""

import jax
import numpy as np
import pytest

from qdgs_jax.shapes.captions import ATTRIBUTES
from qdgs_jax.shapes.scenes import Scenes, draw_scenes, turn


@pytest.mark.slow
def test_scenes_are_images_with_their_truth():
    scenes = jax.tree.map(np.asarray, draw_scenes(jax.random.key(0), 64, image_size=32))
    assert scenes.images.shape == (64, 32, 32, 3)
    assert (scenes.images >= 0).all()
    assert (scenes.images <= 1).all()
    assert scenes.images.std() > 0.1
    assert set(scenes.truth) == set(ATTRIBUTES)
    for attribute, values in ATTRIBUTES.items():
        assert scenes.truth[attribute].shape == (64, len(values))
        np.testing.assert_allclose(scenes.truth[attribute].sum(1), 1, atol=1e-5)
    none = scenes.truth["shape"][:, -1]
    assert ((none < 0.1).mean() > 0.2) & ((none > 0.9).mean() > 0.2)


def test_turned_scenes_keep_their_truth():
    """Attributes follow the place of a small shape, left or right, top or bottom."""
    image = np.full((1, 16, 16, 3), 255, np.uint8)
    image[0, 2:5, 3:6] = 0  # top left
    truth = {
        attribute: np.full((1, len(values)), 1 / len(values), np.float32)
        for attribute, values in ATTRIBUTES.items()
    }
    truth["across"] = np.array([[0.9, 0.1, 0.0]])
    truth["down"] = np.array([[0.8, 0.2, 0.0]])
    ways = set()
    for seed in range(60):
        turned = turn(jax.random.key(seed), Scenes(image, truth))
        ink = (255 - np.asarray(turned.images[0, ..., 0], np.float32)) / 255
        rows, columns = np.nonzero(ink)
        top, left = rows.mean() < 8, columns.mean() < 8
        assert left == (turned.truth["across"][0, 0] > 0.5)
        assert top == (turned.truth["down"][0, 0] > 0.5)
        ways.add((top, left, int(rows.min())))
    assert len(ways) == 8
