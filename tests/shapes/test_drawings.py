"""Drawings show the shapes and colours of their labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax.shapes import drawings as shapes

RGB = np.array(list(shapes.COLOURS.values())) / 255


@pytest.fixture(scope="module")
def drawings():
    drawings = shapes.draw(jax.random.key(0), 500, colour_bias=0.9, image_size=32)
    return jax.tree.map(np.asarray, drawings)


def test_labels_tell_colour_and_shape(drawings):
    ink = 1 - drawings.images
    covered = ink.max(axis=-1) > 0.85  # wholly inside; both colours have ink of 0.88 and more
    for image, mask, colour in zip(drawings.images, covered, drawings.colour, strict=True):
        np.testing.assert_allclose(image[mask].mean(0), RGB[colour], atol=0.02)
    # Second moments of a triangle and a square of the same area differ: 0.192 and 0.167.
    weight = ink.max(axis=-1)
    pixels = (np.arange(32) + 0.5) / 32
    area = weight.sum((1, 2))
    moment = 0.0
    for axis in (1, 2):
        marginal = weight.sum(axis)
        mean = (marginal * pixels).sum(1) / area
        moment += (marginal * (pixels - mean[:, None]) ** 2).sum(1) / area
    ratio = moment / (area / 0.88 / 32**2)
    np.testing.assert_array_equal(ratio < 0.18, drawings.shape == 1)


def test_bias_is_the_share_of_red_triangles_and_blue_squares(drawings):
    agree = drawings.colour == drawings.shape
    assert abs(agree.mean() - 0.9) < 0.04
    assert abs(drawings.shape.mean() - 0.5) < 0.07
    fair = shapes.draw(jax.random.key(1), 500, colour_bias=0.5, image_size=8)
    assert abs((fair.colour == fair.shape).mean() - 0.5) < 0.07


@pytest.mark.parametrize("draw", [shapes.draw, shapes.draw_all])
def test_drawings_lie_inside_and_repeat(draw):
    first, again = (draw(jax.random.key(2), 300, image_size=32) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    images = np.asarray(first.images)
    assert images.shape == (300, 32, 32, 3)
    assert images.min() >= 0
    assert images.max() <= 1
    border = np.concatenate([images[:, [0, -1]], images[:, :, [0, -1]].swapaxes(1, 2)], axis=1)
    np.testing.assert_array_equal(border, 1)
    other = draw(jax.random.key(3), 300, image_size=32)
    assert (np.asarray(other.shape) != first.shape).any()


@pytest.mark.parametrize("shape", range(len(shapes.SHAPES)))
def test_size_is_the_root_of_the_area(shape):
    image = shapes.render(
        jnp.array([shape]),
        jnp.zeros((1, 3)),
        place=jnp.full((1, 2), 0.5),
        size=jnp.array([0.4]),
        angle=jnp.array([0.3]),
    )
    assert float((1 - image).mean()) == pytest.approx(0.16, rel=0.01)
