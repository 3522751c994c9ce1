"""Scenes: good and bad images of shapes with their attributes, to train the shapes CLIP on."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from qdgs_jax.shapes.drawings import (
    COLOURS,
    SHAPES,
    distance_to,
    draw_anywhere,
    offsets,
    palette,
)
from qdgs_jax.typing import Array, Images, Key


class Scenes(NamedTuple):
    """Images and, for each of `captions.ATTRIBUTES`, the probability [N, V] of each value."""

    images: Images
    truth: dict[str, Array]


@functools.partial(jax.jit, static_argnames=("n", "image_size"))
def draw_plain_scenes(key: Key, n: int, *, image_size: int = 128) -> Scenes:
    """Drawings of `draw_all` with their attributes."""
    drawings, (place, size) = draw_anywhere(key, n, image_size=image_size)
    truth = {
        "shape": jax.nn.one_hot(drawings.shape, len(SHAPES) + 1),
        "colour": jax.nn.one_hot(drawings.colour, len(COLOURS)),
        "edges": jnp.broadcast_to(jnp.array([1.0, 0.0]), (n, 2)),
        **_layout(place, size),
    }
    return Scenes(drawings.images, truth)


@functools.partial(jax.jit, static_argnames=("n", "image_size"))
def draw_scenes(key: Key, n: int, *, image_size: int = 128) -> Scenes:
    """Draws images as a generator of shapes may make them, from good drawings to splatters.

    A quarter each: plain drawings, bent outlines, blends of two drawings, splatters. Attributes are
    probabilities: a slightly bent square is mostly a square, and partly no shape.
    """
    scene = functools.partial(_scene, image_size=image_size)
    return Scenes(*jax.vmap(scene)(jax.random.split(key, n)))


def turn(key: Key, scenes: Scenes) -> Scenes:
    """Rotates and mirrors each scene at random, in one of eight ways."""
    across, down, swap = jax.random.bernoulli(key, shape=(3,))
    images, truth = scenes.images, dict(scenes.truth)
    images = jnp.where(across, images[:, :, ::-1], images)
    truth["across"] = jnp.where(across, truth["across"][:, ::-1], truth["across"])
    images = jnp.where(down, images[:, ::-1], images)
    truth["down"] = jnp.where(down, truth["down"][:, ::-1], truth["down"])
    images = jnp.where(swap, images.swapaxes(1, 2), images)
    truth["across"], truth["down"] = (
        jnp.where(swap, truth[other], truth[one])
        for one, other in (("across", "down"), ("down", "across"))
    )
    return Scenes(images, truth)


def _scene(key: Key, *, image_size: int) -> tuple[Array, dict[str, Array]]:
    draw_key, *keys = jax.random.split(key, 6)
    drawn = iter(jax.random.uniform(draw_key, (40,)))

    def uniform(low: float | Array, high: float | Array) -> Array:
        return low + (high - low) * next(drawn)

    def mostly_first(count: int, first: int) -> Array:
        return jnp.floor(uniform(0, jnp.where(uniform(0, 1) < 0.5, first, count))).astype(int)

    kind = uniform(0, 1)
    bent, blended, splattered = (kind < 0.25, (kind > 0.25) & (kind < 0.5), kind > 0.8)
    shapes = mostly_first(len(SHAPES), 2), mostly_first(len(SHAPES), 2)
    colours = mostly_first(len(COLOURS), 2), mostly_first(len(COLOURS), 2)
    size = jnp.where(uniform(0, 1) < 0.5, uniform(0.3, 0.42), uniform(0.17, 0.5))
    room = jnp.maximum(0.49 - 0.95 * size, 0) * uniform(0, 1)
    place = 0.5 + room * jnp.array([uniform(-1, 1), uniform(-1, 1)])
    first, second = (
        distance_to(shape, place + nudge, size, uniform(0, 2 * jnp.pi), image_size=image_size)
        for shape, nudge in zip(shapes, (jnp.zeros(()), uniform(-0.03, 0.03)), strict=True)
    )
    # Outlines are bent by a fraction of the size; blends mix outlines, or inks.
    bend = bent * jnp.exp(uniform(jnp.log(0.005), jnp.log(0.4))) + (1 - bent) * uniform(0, 0.02)
    morph, ghost = (blended * uniform(0, 1) * (uniform(0, 1) < 0.6) for _ in range(2))
    blur = jnp.where(uniform(0, 1) < 0.5, uniform(0.002, 0.016), uniform(0.002, 0.07))
    ink = jnp.where(uniform(0, 1) < 0.8, 1, uniform(0.3, 1))
    mix = blended * uniform(0, 1) * (uniform(0, 1) < 0.6)
    wave = _noise(keys[0], uniform(0.05, 0.2), image_size)
    level = (1 - morph) * first + morph * second + bend * size * image_size * wave
    cover = (1 - ghost) * jnp.clip(0.5 - level, 0, 1) + ghost * jnp.clip(0.5 - second, 0, 1)
    drops, owner = _splatter(keys[1], image_size)
    cover = _blur(jnp.where(splattered > 0, jnp.clip(0.5 - drops - 4 * wave, 0, 1), cover), blur)

    pigments = palette()[jnp.stack([*colours, mostly_first(len(COLOURS), 2)])]
    one, two = pigments[:2, None, None]
    mottle = uniform(0, 1) ** 2 * _noise(keys[2], uniform(0.05, 0.3), image_size)
    share = jnp.clip(mix + mix * (1 - mix) * 2 * mottle, 0, 1)[..., None]
    paint = jnp.where(
        splattered > 0, pigments[owner], (1 - share) * one + share * two
    ) + 0.04 * jax.random.normal(keys[3], (1, 1, 3))
    paper = 1 - 0.04 * uniform(0, 1) ** 2
    image = paper + ink * cover[..., None] * (paint - paper)
    image += 0.08 * uniform(0, 1) ** 2 * jax.random.uniform(keys[4], image.shape, minval=-1)

    unlike = 4 * jnp.maximum(morph * (1 - morph), ghost * (1 - ghost))
    good = (1 - splattered) * jax.nn.sigmoid((0.05 - bend) / 0.01) * (1 - 0.9 * unlike)
    other = jnp.maximum(_step(morph, 0.5, 0.1), _step(ghost, 0.5, 0.1))
    clear = _step(-blur, -0.027, 0.005) * _step(ink, 0.75, 0.05) * (1 - 3.2 * mix * (1 - mix))
    truth = {
        "shape": _shape_truth(shapes, good, other),
        "colour": _colour_truth(colours, splattered, mix),
        "edges": jnp.array([clear, 1 - clear]),
        **_layout(place, size),
    }
    return jnp.clip(image, 0, 1), truth


def _shape_truth(shapes: tuple[Array, Array], good: Array, other: Array) -> Array:
    """Probabilities of shapes: the second has the share `other`, no shape the share 1 - `good`."""
    named = [jax.nn.one_hot(index, len(SHAPES)) for index in shapes]
    return jnp.append(good * ((1 - other) * named[0] + other * named[1]), 1 - good)


def _colour_truth(colours: tuple[Array, Array], splattered: Array, mix: Array) -> Array:
    """Probabilities of colours: `mix` for the second colour, or equal ones for a splatter."""
    painted = [jax.nn.one_hot(index, len(COLOURS)) for index in colours]
    return jnp.where(
        splattered > 0,
        (painted[0] + painted[1]) / 2,
        (1 - mix) * painted[0] + mix * painted[1],
    )


def _layout(place: Array, size: Array) -> dict[str, Array]:
    """Probabilities of the attributes of places [..., 2] and sizes [...]."""
    return {
        "size": _thirds(size, 0.26, 0.4),
        "across": _thirds(place[..., 0], 0.42, 0.58),
        "down": _thirds(1 - place[..., 1], 0.42, 0.58),
    }


def _step(x: Array, at: float, width: float) -> Array:
    """A smooth step from 0 to 1 at `at`."""
    return jax.nn.sigmoid((x - at) / width)


def _thirds(x: Array, low: float, high: float) -> Array:
    below, above = _step(-x, -low, 0.01), _step(x, high, 0.01)
    return jnp.stack([below, (1 - below) * (1 - above), above], axis=-1)


def _noise(key: Key, scale: Array, image_size: int) -> Array:
    """A smooth random field [H, W] of variance 1, correlated over `scale` image sides."""
    pixels, knots = (jnp.linspace(0, 1, count) for count in (image_size, 24))
    basis = jnp.exp(-(((pixels[:, None] - knots[None]) / scale) ** 2))
    field = basis @ jax.random.normal(key, (24, 24)) @ basis.T
    return field / jnp.sqrt(jnp.mean(field**2))


def _blur(cover: Array, sigma: Array) -> Array:
    """Gaussian blur, `sigma` in image sides."""
    place = jnp.arange(len(cover)) / len(cover)
    weights = jax.nn.softmax(-(((place[:, None] - place[None]) / sigma) ** 2) / 2, axis=-1)
    return weights @ cover @ weights.T


def _splatter(key: Key, image_size: int, drops: int = 12) -> tuple[Array, Array]:
    """Signed distance [H, W] to drops and streaks, and which of three colours each pixel has."""
    keys = jax.random.split(key, 5)
    places = jax.random.uniform(keys[0], (drops, 2), minval=0.2, maxval=0.8)
    radii = jax.random.uniform(keys[1], (drops,), minval=0.01, maxval=0.12)
    radii *= jnp.arange(drops) < jax.random.randint(keys[2], (), 2, drops + 1)
    angle, stretch = jax.random.uniform(keys[3], (2,)) * jnp.array([jnp.pi, 2])
    x, y = jax.vmap(lambda place: offsets(place, image_size))(places)
    u = (jnp.cos(angle) * x + jnp.sin(angle) * y) / (1 + stretch)
    v = jnp.cos(angle) * y - jnp.sin(angle) * x
    distances = jnp.hypot(u, v) - radii[:, None, None]
    palette = jax.random.randint(keys[4], (drops,), 0, 3)
    return image_size * distances.min(0), palette[distances.argmin(0)]
