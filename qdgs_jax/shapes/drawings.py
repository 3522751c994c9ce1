"""Drawings of plane shapes, on which the shapes VAE and classifiers are trained."""

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from qdgs_jax.typing import Array, Images, Key

_OUTLINES = {
    # corners, angle between an edge's normal and the ray to its corner, stretch of the first axis
    "triangle": (3, np.pi / 3, 1.0),
    "square": (4, np.pi / 4, 1.0),
    "circle": (48, np.pi / 48, 1.0),
    "pentagon": (5, np.pi / 5, 1.0),
    "star": (5, np.pi * 0.4, 1.0),
    "ellipse": (48, np.pi / 48, 0.5),
}
SHAPES = tuple(_OUTLINES)
COLOURS = {
    "red": (216, 27, 96),
    "blue": (30, 136, 229),
    "green": (67, 160, 71),
    "yellow": (253, 216, 53),
    "orange": (245, 124, 0),
    "purple": (94, 20, 150),
    "brown": (109, 76, 65),
    "black": (20, 20, 20),
    "gray": (150, 150, 150),
}


class Drawings(NamedTuple):
    """Images with the indices of their shapes in `SHAPES` and of their colours in `COLOURS`."""

    images: Images
    shape: Array  # [N] int32
    colour: Array  # [N] int32


@functools.partial(jax.jit, static_argnames=("n", "image_size"))
def draw(key: Key, n: int, *, colour_bias: float | Array = 0.98, image_size: int = 128) -> Drawings:
    """Draws triangles and squares on white, half each, near the centre, at any rotation.

    Args:
        key: Random key.
        n: Number of drawings.
        colour_bias: The fraction of triangles that are red and of squares that are blue.
        image_size: Pixels a side.
    """
    shape_key, colour_key, place_key, size_key, angle_key = jax.random.split(key, 5)
    shape = jax.random.randint(shape_key, (n,), 0, 2)
    colour = jnp.where(jax.random.uniform(colour_key, (n,)) < colour_bias, shape, 1 - shape)
    images = render(
        shape,
        palette()[colour],
        place=jax.random.uniform(place_key, (n, 2), minval=0.48, maxval=0.52),
        size=jax.random.uniform(size_key, (n,), minval=0.37, maxval=0.4),
        angle=jax.random.uniform(angle_key, (n,), maxval=2 * jnp.pi),
        image_size=image_size,
    )
    return Drawings(images, shape, colour)


@functools.partial(jax.jit, static_argnames=("n", "image_size"))
def draw_all(key: Key, n: int, *, image_size: int = 128) -> Drawings:
    """Draws all `SHAPES` in all `COLOURS`, uniformly, of any size and anywhere inside the image."""
    drawings, _ = draw_anywhere(key, n, image_size=image_size)
    return drawings


def draw_anywhere(key: Key, n: int, *, image_size: int) -> tuple[Drawings, tuple[Array, Array]]:
    """Drawings, with their places [N, 2] and sizes [N]."""
    shape_key, colour_key, place_key, size_key, angle_key = jax.random.split(key, 5)
    shape = jax.random.randint(shape_key, (n,), 0, len(SHAPES))
    colour = jax.random.randint(colour_key, (n,), 0, len(COLOURS))
    size = jax.random.uniform(size_key, (n,), minval=0.2, maxval=0.45)
    room = 0.46 - size[:, None]
    place = 0.5 + room * jax.random.uniform(place_key, (n, 2), minval=-1)
    angle = jax.random.uniform(angle_key, (n,), maxval=2 * jnp.pi)
    images = render(
        shape, palette()[colour], place=place, size=size, angle=angle, image_size=image_size
    )
    return Drawings(images, shape, colour), (place, size)


def render(
    shape: Array, colour: Array, *, place: Array, size: Array, angle: Array, image_size: int = 128
) -> Images:
    """Antialiased shapes [N] (indices in `SHAPES`) of colours [N, 3] on white.

    `place` [N, 2] is the centre and `size` [N] the square root of the area, in image sides; `angle`
    [N] is in radians, counter-clockwise from a corner that points right.
    """
    distance = jax.vmap(functools.partial(distance_to, image_size=image_size))
    cover = jnp.clip(0.5 - distance(shape, place, size, angle), 0, 1)[..., None]
    return 1 - cover * (1 - colour[:, None, None])


def palette() -> Array:
    """RGB of `COLOURS`, [C, 3] in [0, 1]."""
    return jnp.array(list(COLOURS.values())) / 255


def distance_to(shape: Array, place: Array, size: Array, angle: Array, *, image_size: int) -> Array:
    """Signed distance to the outline in pixels [H, W], negative inside.

    By symmetry one edge is enough: the one at the corner nearest in angle.
    """
    corners, tilt, stretch = jnp.array(list(_OUTLINES.values()))[shape]
    half = jnp.pi / corners
    area = corners * jnp.sin(half) * jnp.cos(tilt) / jnp.cos(half - tilt) * stretch
    radius = size / jnp.sqrt(area)
    x, y = offsets(place, image_size)
    u = (jnp.cos(angle) * x + jnp.sin(angle) * y) / stretch
    v = jnp.cos(angle) * y - jnp.sin(angle) * x
    ray = jnp.arctan2(v, u)
    turn = jnp.mod(ray + half, 2 * half) - half  # from the nearest corner, in [-half, half]
    level = jnp.hypot(u, v) * jnp.cos(jnp.abs(turn) - tilt) - radius * jnp.cos(tilt)
    normal = ray - turn + jnp.where(turn < 0, -tilt, tilt)
    return image_size * level / jnp.hypot(jnp.cos(normal) / stretch, jnp.sin(normal))


def offsets(place: Array, image_size: int) -> tuple[Array, Array]:
    """Offsets from a place to all pixels, in image sides: x [1, W] rightwards, y [H, 1] upwards."""
    pixels = (jnp.arange(image_size) + 0.5) / image_size
    return pixels[None] - place[0], place[1] - pixels[:, None]


class Drawn(Protocol):
    """Images with their attributes."""

    @property
    def images(self) -> Images: ...

    def _replace(self, *, images: Images) -> Self: ...


D = TypeVar("D", bound=Drawn)


def in_bytes(draw: Callable[[Key, int], D], key: Key, n: int) -> D:
    """Drawings or scenes with images of uint8, drawn 32 at a time to bound the memory."""
    keys = jax.random.split(key, -(-n // 32))
    batches = jax.lax.map(lambda batch_key: as_bytes(draw(batch_key, min(32, n))), keys)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], batches)


def as_bytes(drawn: D) -> D:
    """The same drawings or scenes, with images of uint8."""
    return drawn._replace(images=jnp.round(255 * drawn.images).astype(jnp.uint8))
