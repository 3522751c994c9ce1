"""Adaptive discriminator augmentation (Karras et al. 2020, arXiv 2006.06676, appendix B).

A discriminator sees only images that were changed at random, real and generated alike. The changes
of an image are one matrix of its coordinates and one of its colours, so it is resampled once.

Different from the paper: resampling is bilinear, without its low-pass filters and without images of
twice the size. Flips, quarter turns and translations by whole pixels are exact nevertheless.
"""

import jax
import jax.numpy as jnp
from flax import struct

from qdgs_jax.errors import ConfigError
from qdgs_jax.models.precision import matmul_precision
from qdgs_jax.training.config import ADAConfig
from qdgs_jax.typing import Array, Images, Key

PIXEL, GEOMETRIC, COLOUR = 3, 5, 5
"""Changes of each family; each happens with its own chance."""
STRENGTHS = 15
"""Random numbers of an image for how strong its changes are."""
LEAST = 2.0**-24
"""The least random number, whose normal deviate is finite."""


class Changes(struct.PyTreeNode):
    """What happens to each image, in this order; the defaults change nothing."""

    flip: Array | float = 0.0  # [N], 1 mirrors left and right
    quarter_turns: Array | int = 0  # [N] int in 0..3, clockwise
    pixels_right: Array | float = 0.0  # [N], whole pixels
    pixels_down: Array | float = 0.0  # [N], whole pixels
    scale: Array | float = 1.0  # [N], above 1 enlarges
    rotation_before: Array | float = 0.0  # [N] radians, clockwise
    stretch: Array | float = 1.0  # [N], width times it, height divided by it
    rotation_after: Array | float = 0.0  # [N] radians, clockwise
    right: Array | float = 0.0  # [N], share of the width
    down: Array | float = 0.0  # [N], share of the height
    brightness: Array | float = 0.0  # [N], added to all colours
    contrast: Array | float = 1.0  # [N], times all colours
    luma_flip: Array | float = 0.0  # [N], 1 negates the grey and keeps hue and saturation
    hue: Array | float = 0.0  # [N] radians about the axis of greys
    saturation: Array | float = 1.0  # [N], times the distance from the axis of greys


def augment(config: ADAConfig, key: Key, probability: Array, images: Images) -> Images:
    """Changes each image at random; differentiable any number of times, and linear in them.

    Args:
        config: which families of changes there are.
        probability: [] in [0, 1], of each change of each image; 0 returns the images as they are.
        images: [N, H, W, C] of 1 or 3 channels, in [-1, 1].

    Returns:
        [N, H, W, C]; colours may leave [-1, 1], as in the paper.

    Raises:
        ConfigError: the images have neither 1 nor 3 channels.
    """
    count, height, width, channels = images.shape
    if channels not in (1, 3):
        raise ConfigError(
            f"images have {channels} channels; augment grey images (1) or RGB images (3)"
        )
    changes = sample_changes(config, key, probability, count, height, width)
    with matmul_precision("highest"):
        if config.pixel or config.geometric:
            images = resample(source_matrices(changes, count, height, width), images)
        if config.colour:
            images = recolour(colour_matrices(changes, count), images)
    return images


def sample_changes(
    config: ADAConfig, key: Key, probability: Array, count: int, height: int, width: int
) -> Changes:
    """Draws the changes of images from the paper's distributions (appendix B).

    Either rotation has the probability 1 - sqrt(1 - p), so that p is the probability of any.
    """
    # One draw for all, since programs with many generators of random numbers compile slowly.
    total = PIXEL + GEOMETRIC + COLOUR
    numbers = jax.random.uniform(key, (total + STRENGTHS, count), minval=LEAST)
    families = [config.pixel] * PIXEL + [config.geometric] * GEOMETRIC + [config.colour] * COLOUR
    chances = probability * jnp.array(families, jnp.float32)
    chances = chances.at[jnp.array([4, 6])].set(1 - jnp.sqrt(1 - chances[jnp.array([4, 6])]))
    happens, u = numbers[:total] < chances[:, None], numbers[total:]
    signed = 2 * u - 1
    normal = jnp.sqrt(2.0) * jax.lax.erf_inv(signed)

    def log_normal(row: int, deviation: float) -> Array:
        return 2.0 ** (deviation * normal[row])

    return Changes(
        flip=jnp.where(happens[0], jnp.floor(2 * u[0]), 0),
        quarter_turns=jnp.where(happens[1], jnp.floor(4 * u[1]).astype(int), 0),
        pixels_right=jnp.where(happens[2], jnp.round(0.125 * width * signed[2]), 0),
        pixels_down=jnp.where(happens[2], jnp.round(0.125 * height * signed[3]), 0),
        scale=jnp.where(happens[3], log_normal(4, 0.2), 1),
        rotation_before=jnp.where(happens[4], jnp.pi * signed[5], 0),
        stretch=jnp.where(happens[5], log_normal(6, 0.2), 1),
        rotation_after=jnp.where(happens[6], jnp.pi * signed[7], 0),
        right=jnp.where(happens[7], 0.125 * normal[8], 0),
        down=jnp.where(happens[7], 0.125 * normal[9], 0),
        brightness=jnp.where(happens[8], 0.2 * normal[10], 0),
        contrast=jnp.where(happens[9], log_normal(11, 0.5), 1),
        luma_flip=jnp.where(happens[10], jnp.floor(2 * u[12]), 0),
        hue=jnp.where(happens[11], jnp.pi * signed[13], 0),
        saturation=jnp.where(happens[12], log_normal(14, 1.0), 1),
    )


def source_matrices(changes: Changes, count: int, height: int, width: int) -> Array:
    """Matrices [N, 3, 3]: (x, y, 1) of a changed image -> where its colour is in the original.

    x points right and y down, in pixels from the centre.
    """
    ones, zeros = jnp.ones(count), jnp.zeros(count)

    def scaled(x: Array, y: Array) -> Array:
        return _matrices([[x * ones, zeros, zeros], [zeros, y * ones, zeros], [zeros, zeros, ones]])

    def turned(cos: Array, sin: Array) -> Array:
        cos, sin = cos * ones, sin * ones
        return _matrices([[cos, -sin, zeros], [sin, cos, zeros], [zeros, zeros, ones]])

    def moved(x: Array, y: Array) -> Array:
        return _matrices([[ones, zeros, x * ones], [zeros, ones, y * ones], [zeros, zeros, ones]])

    # The inverse of last @ ... @ first is inverse(first) @ ... @ inverse(last).
    c = jax.tree.map(jnp.asarray, changes)
    quarter = jnp.array([[1.0, 0.0, -1.0, 0.0], [0.0, 1.0, 0.0, -1.0]])[:, c.quarter_turns]  # exact
    matrices = scaled(1 - 2 * c.flip, ones)
    for inverse in (
        turned(quarter[0], -quarter[1]),
        moved(-c.pixels_right, -c.pixels_down),
        scaled(1 / c.scale, 1 / c.scale),
        turned(jnp.cos(c.rotation_before), -jnp.sin(c.rotation_before)),
        scaled(1 / c.stretch, c.stretch),
        turned(jnp.cos(c.rotation_after), -jnp.sin(c.rotation_after)),
        moved(-c.right * width, -c.down * height),
    ):
        matrices = matrices @ inverse
    return matrices


def colour_matrices(changes: Changes, count: int) -> Array:
    """Matrices [N, 4, 4]: (R, G, B, 1) of an image -> of the changed image."""
    c = jax.tree.map(lambda x: jnp.broadcast_to(x, count)[:, None, None], changes)
    same = jnp.eye(4)[None]
    grey = jnp.zeros((1, 4, 4)).at[:, :3, :3].set(1 / 3)  # projects on the axis of greys
    colourful = same.at[:, 3, 3].set(0) - grey
    axis = jnp.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / jnp.sqrt(3.0)
    across = jnp.zeros((1, 4, 4)).at[0, :3, :3].set(axis)  # the cross product with the axis
    shift = jnp.zeros((1, 4, 4)).at[:, :3, 3].set(1)
    matrices = same + c.brightness * shift
    for change in (  # each is exactly 0 where nothing happens
        (c.contrast - 1) * (grey + colourful),
        -2 * c.luma_flip * grey,
        (jnp.cos(c.hue) - 1) * colourful + jnp.sin(c.hue) * across,
        (c.saturation - 1) * colourful,
    ):
        matrices = (same + change) @ matrices
    return matrices


def resample(matrices: Array, images: Images) -> Images:
    """Images [N, H, W, C] at where matrices [N, 3, 3] point; bilinear, mirrored at the edges."""
    count, height, width, channels = images.shape
    x = jnp.arange(width)[None, None] - (width - 1) / 2
    y = jnp.arange(height)[None, :, None] - (height - 1) / 2
    # Elementwise, since products of matrices may round coordinates.
    m = matrices[:, :, :, None, None]
    across = _mirrored(m[:, 0, 0] * x + m[:, 0, 1] * y + m[:, 0, 2] + (width - 1) / 2, width)
    along = _mirrored(m[:, 1, 0] * x + m[:, 1, 1] * y + m[:, 1, 2] + (height - 1) / 2, height)
    left, top = jnp.floor(across), jnp.floor(along)
    pixels = images.reshape(count, height * width, channels)

    def tap(rows: Array, columns: Array, weights: Array) -> Array:
        places = rows.clip(0, height - 1) * width + columns.clip(0, width - 1)
        places = places.astype(int).reshape(count, height * width, 1)
        return jnp.take_along_axis(pixels, places, axis=1) * weights.reshape(places.shape)

    a, b = across - left, along - top
    changed = tap(top, left, (1 - a) * (1 - b)) + tap(top, left + 1, a * (1 - b))
    changed += tap(top + 1, left, (1 - a) * b) + tap(top + 1, left + 1, a * b)
    return changed.reshape(images.shape)


def recolour(matrices: Array, images: Images) -> Images:
    """Colours [N, H, W, C] times matrices [N, 4, 4]; a grey image stays grey."""
    linear, constant = matrices[:, :3, :3], matrices[:, :3, 3]
    if images.shape[-1] == 1:  # R = G = B before and after: one factor for all
        linear, constant = linear[:, :1].sum(axis=2, keepdims=True), constant[:, :1]
    return jnp.einsum("ndc,nhwc->nhwd", linear, images) + constant[:, None, None]


class ADAState(struct.PyTreeNode):
    """The probability of changes, and signs of the discriminator's outputs since its update."""

    probability: Array  # [] in [0, 1]
    signs: Array  # [], sum over batches of the mean sign of each
    batches: Array  # [] int


def init_ada() -> ADAState:
    """No changes at the start, as in the paper."""
    return ADAState(jnp.zeros(()), jnp.zeros(()), jnp.zeros((), int))


def update_ada(config: ADAConfig, state: ADAState, logits: Array) -> ADAState:
    """Counts a batch; each `config.interval` batches the probability is updated.

    It rises by a constant if the mean sign, the paper's r_t, is above the target, and falls by as
    much if it is below: from 0 to 1 within `config.images` real images.

    Args:
        logits: [N], the discriminator's outputs for real images, changed as in its training. With
            a batch that is sharded under `jit`, N counts the images of all devices.
    """
    signs, batches = state.signs + jnp.sign(logits).mean(), state.batches + 1
    due = batches == config.interval
    step = logits.size * config.interval / config.images
    moved = state.probability + step * jnp.sign(signs / config.interval - config.target)
    return ADAState(
        jnp.where(due, moved.clip(0, 1), state.probability),
        jnp.where(due, 0, signs),
        jnp.where(due, 0, batches),
    )


def _matrices(rows: list[list[Array]]) -> Array:
    """[N, 3, 3] of rows of entries [N]."""
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def _mirrored(places: Array, side: int) -> Array:
    """Places on a line of pixels that repeats mirrored, without its last pixel twice."""
    period = max(2 * (side - 1), 1)
    places = places % period
    return jnp.minimum(places, period - places).clip(0, side - 1)
