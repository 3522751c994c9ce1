"""Random changes of faces in training, as in AdaFace's: flips, crops, lower resolution, colours."""

import math

import jax
import jax.numpy as jnp

from qdgs_jax.models.precision import matmul_precision
from qdgs_jax.training.config import AugmentationConfig
from qdgs_jax.typing import Array, Images, Key

AREA, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)
"""Share of a crop in the image, and its width relative to its height."""
SMALLEST = 0.2
"""Side of the smallest image of low resolution, relative to the image's."""
STRENGTH = 0.5
"""Brightness, contrast and saturation change by at most this share."""
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, of R, G and B


def augment(config: AugmentationConfig, key: Key, images: Images) -> Images:
    """Changes each image [N, H, W, 3] in [0, 1] at random, each way with its own probability."""

    def one(numbers: Array, image: Array) -> Array:
        chances, place, resolution, colours = jnp.split(numbers, (4, 8, 11))
        if config.flip > 0:
            image = jnp.where(chances[0] < config.flip, image[:, ::-1], image)
        for chance, probability, change, own in (
            (chances[1], config.crop, crop, place),
            (chances[2], config.low_resolution, lower_resolution, resolution),
            (chances[3], config.photometric, change_colours, colours),
        ):
            if probability > 0:
                image = jnp.where(chance < probability, change(own, image), image)
        return image

    # One draw for all, since programs with many generators of random numbers compile slowly.
    numbers = jax.random.uniform(key, (len(images), 14))
    with matmul_precision("highest"):
        return jax.vmap(one)(numbers, images)


def crop(numbers: Array, image: Array) -> Array:
    """Keeps a random rectangle where it is; the rest is black. A side too long is the image's.

    Args:
        numbers: [4] uniform in [0, 1).
    """
    height, width = image.shape[:2]
    area = height * width * _between(AREA, numbers[0])
    ratio = jnp.exp(_between((math.log(RATIO[0]), math.log(RATIO[1])), numbers[1]))

    def inside(number: Array, side: int, length: Array) -> Array:
        length = jnp.round(length).clip(1, side)
        start = jnp.floor(number * (side - length + 1))
        return (start <= jnp.arange(side)) & (jnp.arange(side) < start + length)

    rows = inside(numbers[2], height, jnp.sqrt(area / ratio))
    columns = inside(numbers[3], width, jnp.sqrt(area * ratio))
    return jnp.where((rows[:, None] & columns[None])[..., None], image, 0)


def lower_resolution(numbers: Array, image: Array) -> Array:
    """Makes an image smaller and larger again, each time by a random interpolation.

    Interpolations are the nearest pixel, linear and cubic; images are also made smaller by the mean
    of the pixels that a pixel covers. Each is a product of matrices for rows and columns.

    Args:
        numbers: [3] uniform in [0, 1).
    """
    height, width = image.shape[:2]
    share = _between((SMALLEST, 1.0), numbers[0])
    down, up = jnp.floor(numbers[1:] * jnp.array([4, 3])).astype(int)

    def there_and_back(side: int) -> Array:
        small = jnp.floor(share * side).clip(1)
        return _resizing(up, small, side, side) @ _resizing(down, side, small, side)

    changed = jnp.einsum("yh,hwc,xw->yxc", there_and_back(height), image, there_and_back(width))
    return changed.clip(0, 1)


def change_colours(numbers: Array, image: Array) -> Array:
    """Changes brightness, contrast about the mean grey, and saturation, each by its own factor.

    The order does not matter: all three are linear, and each keeps the grey that another mixes with
    or multiplies it by the same factor.

    Args:
        numbers: [3] uniform in [0, 1).
    """
    brightness, contrast, saturation = _between((1 - STRENGTH, 1 + STRENGTH), numbers)
    image = brightness * image
    grey = (image @ jnp.array(GREY))[..., None]
    image = saturation * image + (1 - saturation) * grey
    return (contrast * image + (1 - contrast) * grey.mean()).clip(0, 1)


def _between(ends: tuple[float, float], number: Array) -> Array:
    return ends[0] + (ends[1] - ends[0]) * number


def _resizing(kind: Array, before: Array | float, after: Array | float, most: int) -> Array:
    """The matrix [most, most] that resizes `before` pixels to `after`; other entries are 0.

    Args:
        kind: 0 nearest, 1 linear, 2 cubic (Keys 1981, a = -1/2), 3 mean over what a pixel covers.
    """
    scale = jnp.asarray(before / after, jnp.float32)
    centres = (jnp.arange(most)[:, None] + 0.5) * scale
    edges = jnp.arange(most)[None].astype(jnp.float32)
    x = jnp.abs(centres - 0.5 - edges)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    low, high = centres - scale / 2, centres + scale / 2
    weights = jnp.stack([
        (edges == jnp.floor(centres)).astype(jnp.float32),
        jnp.maximum(1 - x, 0),
        jnp.where(x <= 1, near, jnp.where(x < 2, far, 0)),
        (jnp.minimum(high, edges + 1) - jnp.maximum(low, edges)).clip(0),
    ])[kind]  # fmt: skip
    weights = jnp.where(edges < before, weights, 0)
    weights /= weights.sum(axis=1, keepdims=True) + 1e-9  # at the edges, and rows beyond the image
    return jnp.where(jnp.arange(most)[:, None] < after, weights, 0)
