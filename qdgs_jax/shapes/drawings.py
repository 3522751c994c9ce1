"""Drawings of plane shapes and captions for them: what the built-in models learn from."""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias, TypeVar

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
ATTRIBUTES = {
    "shape": (*SHAPES, "none"),
    "colour": tuple(COLOURS),
    "edges": ("crisp", "soft"),
    "size": ("small", "medium", "large"),
    "across": ("left", "middle", "right"),
    "down": ("top", "middle", "bottom"),
}
"""What captions speak of, and the values that each can have."""


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
        _palette()[colour],
        place=jax.random.uniform(place_key, (n, 2), minval=0.48, maxval=0.52),
        size=jax.random.uniform(size_key, (n,), minval=0.37, maxval=0.4),
        angle=jax.random.uniform(angle_key, (n,), maxval=2 * jnp.pi),
        image_size=image_size,
    )
    return Drawings(images, shape, colour)


@functools.partial(jax.jit, static_argnames=("n", "image_size"))
def draw_all(key: Key, n: int, *, image_size: int = 128) -> Drawings:
    """Draws all `SHAPES` in all `COLOURS`, uniformly, of any size and anywhere inside the image."""
    drawings, _ = _draw_anywhere(key, n, image_size=image_size)
    return drawings


def _draw_anywhere(key: Key, n: int, *, image_size: int) -> tuple[Drawings, tuple[Array, Array]]:
    """Drawings, with their places [N, 2] and sizes [N]."""
    shape_key, colour_key, place_key, size_key, angle_key = jax.random.split(key, 5)
    shape = jax.random.randint(shape_key, (n,), 0, len(SHAPES))
    colour = jax.random.randint(colour_key, (n,), 0, len(COLOURS))
    size = jax.random.uniform(size_key, (n,), minval=0.2, maxval=0.45)
    room = 0.46 - size[:, None]
    place = 0.5 + room * jax.random.uniform(place_key, (n, 2), minval=-1)
    angle = jax.random.uniform(angle_key, (n,), maxval=2 * jnp.pi)
    images = render(
        shape, _palette()[colour], place=place, size=size, angle=angle, image_size=image_size
    )
    return Drawings(images, shape, colour), (place, size)


def render(
    shape: Array, colour: Array, *, place: Array, size: Array, angle: Array, image_size: int = 128
) -> Images:
    """Antialiased shapes [N] (indices in `SHAPES`) of colours [N, 3] on white.

    `place` [N, 2] is the centre and `size` [N] the square root of the area, in image sides; `angle`
    [N] is in radians, counter-clockwise from a corner that points right.
    """
    distance = jax.vmap(functools.partial(_distance, image_size=image_size))
    cover = jnp.clip(0.5 - distance(shape, place, size, angle), 0, 1)[..., None]
    return 1 - cover * (1 - colour[:, None, None])


def _palette() -> Array:
    return jnp.array(list(COLOURS.values())) / 255


def _distance(shape: Array, place: Array, size: Array, angle: Array, *, image_size: int) -> Array:
    """Signed distance to the outline in pixels [H, W], negative inside.

    By symmetry one edge is enough: the one at the corner nearest in angle.
    """
    corners, tilt, stretch = jnp.array(list(_OUTLINES.values()))[shape]
    half = jnp.pi / corners
    area = corners * jnp.sin(half) * jnp.cos(tilt) / jnp.cos(half - tilt) * stretch
    radius = size / jnp.sqrt(area)
    x, y = _offsets(place, image_size)
    u = (jnp.cos(angle) * x + jnp.sin(angle) * y) / stretch
    v = jnp.cos(angle) * y - jnp.sin(angle) * x
    ray = jnp.arctan2(v, u)
    turn = jnp.mod(ray + half, 2 * half) - half  # from the nearest corner, in [-half, half]
    level = jnp.hypot(u, v) * jnp.cos(jnp.abs(turn) - tilt) - radius * jnp.cos(tilt)
    normal = ray - turn + jnp.where(turn < 0, -tilt, tilt)
    return image_size * level / jnp.hypot(jnp.cos(normal) / stretch, jnp.sin(normal))


def _offsets(place: Array, image_size: int) -> tuple[Array, Array]:
    """From a place to all pixels, in image sides: x [1, W] to the right, y [H, 1] upwards."""
    pixels = (jnp.arange(image_size) + 0.5) / image_size
    return pixels[None] - place[0], place[1] - pixels[:, None]


class Scenes(NamedTuple):
    """Images and, for each of `ATTRIBUTES`, the probability [N, V] of each of its values."""

    images: Images
    truth: dict[str, Array]


Drawn = TypeVar("Drawn", Drawings, Scenes)


@functools.partial(jax.jit, static_argnames=("n", "image_size"))
def draw_plain_scenes(key: Key, n: int, *, image_size: int = 128) -> Scenes:
    """Drawings of `draw_all` with the truth about them."""
    drawings, (place, size) = _draw_anywhere(key, n, image_size=image_size)
    truth = {
        "shape": jax.nn.one_hot(drawings.shape, len(SHAPES) + 1),
        "colour": jax.nn.one_hot(drawings.colour, len(COLOURS)),
        "edges": jnp.broadcast_to(jnp.array([1.0, 0.0]), (n, 2)),
        **_layout(place, size),
    }
    return Scenes(drawings.images, truth)


@functools.partial(jax.jit, static_argnames=("n", "image_size"))
def draw_scenes(key: Key, n: int, *, image_size: int = 128) -> Scenes:
    """Draws what a generator of shapes may make, from good drawings to splatters, by degrees.

    A quarter each: plain drawings, outlines out of true, blends of two drawings, splatters. Truth
    is graded as well: a square that is a little bent is mostly a square, and partly no shape.
    """
    scene = functools.partial(_scene, image_size=image_size)
    return Scenes(*jax.vmap(scene)(jax.random.split(key, n)))


def in_bytes(draw: Callable[[Key, int], Drawn], key: Key, n: int) -> Drawn:
    """Drawings or scenes with images of uint8, drawn 32 at once, which memory bears."""
    keys = jax.random.split(key, -(-n // 32))
    batches = jax.lax.map(lambda batch_key: as_bytes(draw(batch_key, min(32, n))), keys)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], batches)


def as_bytes(drawn: Drawn) -> Drawn:
    """The same with images of uint8."""
    return drawn._replace(images=jnp.round(255 * drawn.images).astype(jnp.uint8))


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
        _distance(shape, place + nudge, size, uniform(0, 2 * jnp.pi), image_size=image_size)
        for shape, nudge in zip(shapes, (jnp.zeros(()), uniform(-0.03, 0.03)), strict=True)
    )
    # Out of true by a fraction of the size; blended either in outline or in ink.
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

    pigments = _palette()[jnp.stack([*colours, mostly_first(len(COLOURS), 2)])]
    mottle = uniform(0, 1) ** 2 * _noise(keys[2], uniform(0.05, 0.3), image_size)
    share = jnp.clip(mix + mix * (1 - mix) * 2 * mottle, 0, 1)[..., None]
    paint = jnp.where(
        splattered > 0, pigments[owner], (1 - share) * pigments[0] + share * pigments[1]
    ) + 0.04 * jax.random.normal(keys[3], (3,))
    paper = 1 - 0.04 * uniform(0, 1) ** 2
    image = paper + ink * cover[..., None] * (paint - paper)
    image += 0.08 * uniform(0, 1) ** 2 * jax.random.uniform(keys[4], image.shape, minval=-1)

    unlike = 4 * jnp.maximum(morph * (1 - morph), ghost * (1 - ghost))
    good = (1 - splattered) * jax.nn.sigmoid((0.05 - bend) / 0.01) * (1 - 0.9 * unlike)
    other = jnp.maximum(_step(morph, 0.5, 0.1), _step(ghost, 0.5, 0.1))
    clear = _step(-blur, -0.027, 0.005) * _step(ink, 0.75, 0.05) * (1 - 3.2 * mix * (1 - mix))
    named = [jax.nn.one_hot(index, len(SHAPES)) for index in shapes]
    painted = [jax.nn.one_hot(index, len(COLOURS)) for index in colours]
    truth = {
        "shape": jnp.append(good * ((1 - other) * named[0] + other * named[1]), 1 - good),
        "colour": jnp.where(
            splattered > 0,
            (painted[0] + painted[1]) / 2,
            (1 - mix) * painted[0] + mix * painted[1],
        ),
        "edges": jnp.array([clear, 1 - clear]),
        **_layout(place, size),
    }
    return jnp.clip(image, 0, 1), truth


def _layout(place: Array, size: Array) -> dict[str, Array]:
    """Truth about places [..., 2] and sizes [...]."""
    return {
        "size": _thirds(size, 0.26, 0.4),
        "across": _thirds(place[..., 0], 0.42, 0.58),
        "down": _thirds(1 - place[..., 1], 0.42, 0.58),
    }


def _step(x: Array, at: float, width: float) -> Array:
    """From 0 to 1 around a place."""
    return jax.nn.sigmoid((x - at) / width)


def _thirds(x: Array, low: float, high: float) -> Array:
    below, above = _step(-x, -low, 0.01), _step(x, high, 0.01)
    return jnp.stack([below, (1 - below) * (1 - above), above], axis=-1)


def _noise(key: Key, scale: Array, image_size: int) -> Array:
    """A smooth random field [H, W] of variance 1, correlated over `scale` image sides."""
    pixels, knots = (jnp.linspace(0, 1, count) for count in (image_size, 24))
    basis = jnp.exp(-(((pixels[:, None] - knots) / scale) ** 2))
    field = basis @ jax.random.normal(key, (24, 24)) @ basis.T
    return field / jnp.sqrt(jnp.mean(field**2))


def _blur(cover: Array, sigma: Array) -> Array:
    """Gaussian blur, `sigma` in image sides."""
    place = jnp.arange(len(cover)) / len(cover)
    weights = jax.nn.softmax(-(((place[:, None] - place) / sigma) ** 2) / 2, axis=-1)
    return weights @ cover @ weights.T


def _splatter(key: Key, image_size: int, drops: int = 12) -> tuple[Array, Array]:
    """Signed distance [H, W] to drops and streaks, and which of three colours each pixel has."""
    keys = jax.random.split(key, 5)
    places = jax.random.uniform(keys[0], (drops, 2), minval=0.2, maxval=0.8)
    radii = jax.random.uniform(keys[1], (drops,), minval=0.01, maxval=0.12)
    radii *= jnp.arange(drops) < jax.random.randint(keys[2], (), 2, drops + 1)
    angle, stretch = jax.random.uniform(keys[3], (2,)) * jnp.array([jnp.pi, 2])
    x, y = jax.vmap(lambda place: _offsets(place, image_size))(places)
    u = (jnp.cos(angle) * x + jnp.sin(angle) * y) / (1 + stretch)
    v = jnp.cos(angle) * y - jnp.sin(angle) * x
    distances = jnp.hypot(u, v) - radii[:, None, None]
    palette = jax.random.randint(keys[4], (drops,), 0, 3)
    return image_size * distances.min(0), palette[distances.argmin(0)]


Allows: TypeAlias = dict[str, tuple[str, ...]]
"""For each attribute that a text speaks of, the values that it allows."""
Phrases: TypeAlias = dict[str, Allows]


class Caption(NamedTuple):
    """A text, without article and full stop, and what it says."""

    text: str
    allows: Allows


SENTENCES = (
    "{text}", "{a} {text}", "{a} {text}.", "an image of {a} {text}.", "a drawing of {a} {text}",
    "a picture of {a} {text}.", "a photo of {a} {text}",
)  # fmt: skip


def sentence(caption: Caption, template: str) -> str:
    """A caption in one of `SENTENCES`."""
    first = caption.text.split()[0]
    article = "" if first.endswith("s") else "an" if first[0] in "aeiou" else "a"
    return " ".join(template.format(a=article, text=caption.text).split())


def captions() -> list[list[Caption]]:
    """Families of captions; the members of a family are alike in what they speak of."""
    names: dict[str, tuple[str, ...]] = {shape: (shape,) for shape in SHAPES}
    names |= {"square": ("square", "square or diamond", "diamond"), "ellipse": ("ellipse", "oval")}
    nouns = {name: shape for shape in SHAPES for name in names[shape]}
    noun: Phrases = {name: {"shape": (shape,)} for name, shape in nouns.items()}
    either: Phrases = {
        f"{one} or {a}{other}": {"shape": (nouns[one], nouns[other])}
        for one, other in itertools.permutations(nouns, 2)
        for a in ("", "a ")
        if nouns[one] != nouns[other]
    }
    cornered: Phrases = {
        f"{name} with {number} {part}": {"shape": (shape,)}
        for shape, numbers in {
            "triangle": ("3", "three"), "square": ("4", "four"), "pentagon": ("5", "five"),
        }.items()
        for name, number in itertools.product((*names[shape], "shape"), numbers)
        for part in ("edges", "sides", "corners")
    }  # fmt: skip
    colour: Phrases = {name: {"colour": (name,)} for name in COLOURS}
    either_colour: Phrases = {
        f"{c} or {d}": {"colour": (c, d)} for c, d in itertools.permutations(COLOURS, 2)
    }
    good: Phrases = {
        word: {"edges": ("crisp",)} for word in ("regular", "sharp", "clean", "perfect")
    }
    bad: Phrases = {word: {"edges": ("soft",)} for word in ("blurry", "faint", "soft", "pale")}
    some: Phrases = {"shape": {"shape": SHAPES}}
    sizes = {"small": "small", "tiny": "small", "large": "large", "big": "large"}
    size: Phrases = {word: {"size": (value,)} for word, value in sizes.items()}
    place: Phrases = {f"on the {side}": {"across": (side,)} for side in ("left", "right")}
    place |= {f"at the {side}": {"down": (side,)} for side in ("top", "bottom")}
    words = ("splatter", "splatters", "smear", "smears", "stain", "blots", "blob", "scribbles")
    mess: Phrases = {word: {"shape": ("none",)} for word in words}
    return [
        _combine("{}", noun),
        _combine("{}", cornered),
        _combine("{}", either),
        _combine("{} shape", colour),
        _combine("{} shape", either_colour),
        _combine("shape in {}", colour) + _combine("shape of {} color", colour),
        _combine("{} {}", colour, noun),
        _combine("{} in {}", noun, colour),
        _combine("{} {}", colour, cornered),
        _combine("{} {}", good, noun | some),
        _combine("{} {}", good, either),
        _combine("{} {}", bad, noun | some),
        _combine("{} {}", size, noun) + _combine("{} {} shape", size, colour),
        _combine("{} {}", noun, place) + _combine("{} shape {}", colour, place),
        _combine("{} of {}", mess, {"colors": {}, "paint": {}, "color": {}}),
        _combine("{} of {}", mess, colour),
        _combine("{}", mess) + _combine("{} {}", colour, mess),
    ]


def _combine(template: str, *parts: Phrases) -> list[Caption]:
    """Each choice of one phrase from every part."""
    return [
        Caption(
            template.format(*(phrase for phrase, _ in choice)),
            dict(item for _, allows in choice for item in allows.items()),
        )
        for choice in itertools.product(*(part.items() for part in parts))
    ]
