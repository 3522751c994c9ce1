"""What networks and a formula read from the faces of images, with confidence where they tell one.

Faces are found, aligned and read on the device in batches of one shape, so that one program is
compiled for any folder.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from scipy import ndimage

from qdgs_jax import blazeface, expressions, faceres, sharding
from qdgs_jax.datasets.image_files import read_image
from qdgs_jax.errors import QDGSError
from qdgs_jax.image_measures import LUMA, TONE_EDGES, TONES, skin_tone
from qdgs_jax.models import tfjs
from qdgs_jax.typing import Array, Images, Params

BATCH = 32
"""Images on a device at once."""
MIN_COLOUR = 0.01
"""Least mean difference between the largest and the smallest of red, green and blue."""
PREFIX = "read_"
"""Of all columns: a column `age` may be a truth that somebody knows."""
COLUMNS = {
    "read_face_found": ("bool", "whether the next column is {found} or more; if not, what is read "
                        "from faces is null"),
    "read_face_probability": ("float64", "of the most probable face, by {blazeface}"),
    "read_age": ("float64", "expected age in years, 1 to 100, by {faceres}"),
    "read_age_deviation": ("float64", "standard deviation of its distribution, in years"),
    "read_presentation": ("string", "`female` or `male`, by {faceres}; not identity"),
    "read_presentation_probability": ("float64", "of that answer, 0.5 to 1"),
    "read_expression": ("string", "{expressions}, by {emotion}"),
    "read_expression_probability": ("float64", "of that answer"),
    "read_skin_tone": ("float64", "individual typology angle in degrees, from the colour of the "
                       "face, which light changes as skin does; null if grey"),
    "read_skin_tone_class": ("string", "of that angle: {tones}"),
    "read_sharpness": ("float64", "variance of the Laplacian of the whole image's luma (0 to 255); "
                       "compare images of one size"),
}  # fmt: skip
"""Column -> its type in Hugging Face `datasets`, and what it holds."""


@dataclasses.dataclass(frozen=True)
class Networks:
    """What finds and reads faces, by name, and the weights."""

    graphs: dict[str, tfjs.Graph]
    params: dict[str, Params]

    def describe(self) -> dict[str, str]:
        """Column -> what it holds, with the name and the SHA-256 of its network."""
        words = {
            name: f"the network {name} (SHA-256 `{graph.sha256}`)"
            for name, graph in self.graphs.items()
        }
        words["expressions"] = _listed(expressions.EXPRESSIONS)
        words["tones"] = (
            f"{_listed(TONES)}, with {', '.join(f'{e:g}' for e in TONE_EDGES)} between them"
        )
        words["found"] = str(blazeface.FOUND)
        return {column: about.format(**words) for column, (_, about) in COLUMNS.items()}


def load_networks() -> Networks:
    """Loads the networks that `make assets` fetches.

    Raises:
        ConfigError: one has not been fetched.
        CheckpointError: one cannot be read.
    """
    loaded = {module.NAME: module.load() for module in (blazeface, faceres, expressions)}
    graphs, params = ({name: each[i] for name, each in loaded.items()} for i in (0, 1))
    return Networks(graphs, params)


def read_images(networks: Networks, paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """The columns of each image, in order; all are None for an image that cannot be read.

    While the devices of the ambient mesh read a batch, the next images are opened.
    """
    size = BATCH * sharding.devices()
    params = sharding.on_all_devices(networks.params)
    read = jax.jit(sharding.rowwise(functools.partial(_read, networks.graphs), BATCH))
    waiting: tuple[list[_Opened | None], dict[str, Array]] | None = None
    for start in range(0, len(paths), size):
        opened = [_open(path) for path in paths[start : start + size]]
        pixels = np.zeros((size, blazeface.SIDE, blazeface.SIDE, 3), np.uint8)
        for row, image in enumerate(opened):
            pixels[row] = image.canvas if image else 0
        values = read(params, pixels)
        if waiting:
            yield from _records(*waiting)
        waiting = opened, values
    if waiting:
        yield from _records(*waiting)


@dataclasses.dataclass(frozen=True)
class _Opened:
    canvas: np.ndarray  # [256, 256, 3] uint8, as of `blazeface.canvases`
    sharpness: float


def _open(path: Path) -> _Opened | None:
    try:
        pixels = read_image(path)
    except QDGSError:
        return None
    edges = ndimage.laplace(pixels @ LUMA, mode="mirror")
    return _Opened(canvas_of(pixels), float(edges.var(dtype=np.float64)))


def canvas_of(pixels: np.ndarray) -> np.ndarray:
    """An image [H, W, 3] uint8 on a canvas [256, 256, 3] uint8, as by `blazeface.canvases`."""
    height, width, _ = pixels.shape
    scale = blazeface.INNER / max(height, width)
    size = max(1, round(scale * width)), max(1, round(scale * height))
    small = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
    grey = round(255 * blazeface.GREY)
    canvas = Image.new("RGB", (blazeface.SIDE, blazeface.SIDE), (grey, grey, grey))
    canvas.paste(small, tuple((blazeface.SIDE - each) // 2 for each in size))
    return np.asarray(canvas)


def _read(
    graphs: dict[str, tfjs.Graph], params: dict[str, Params], pixels: Array
) -> dict[str, Array]:
    """Values [N] of canvases [N, 256, 256, 3] uint8."""

    def network(name: str) -> tuple[tfjs.Graph, Params]:
        return graphs[name], params[name]

    canvases = pixels / jnp.float32(255)
    found, points = blazeface.find(*network(blazeface.NAME), canvases)
    faces = blazeface.align(canvases, points)
    ages = jax.nn.softmax(faceres.age_logits(*network(faceres.NAME), faces))
    years = jnp.arange(1.0, ages.shape[1] + 1)
    age = ages @ years
    presentations = jax.nn.softmax(faceres.presentation_logits(*network(faceres.NAME), faces))
    shown = expressions.probabilities(*network(expressions.NAME), faces)
    return {
        "face": found,
        "age": age,
        "age_deviation": jnp.sqrt(jnp.sum(ages * (years[None] - age[:, None]) ** 2, axis=1)),
        "male": presentations[:, 1],
        "expression": jnp.argmax(shown, axis=1),
        "expression_probability": jnp.max(shown, axis=1),
        "skin_tone": jnp.where(_is_grey(faces), jnp.nan, skin_tone(faces)),
    }


def _is_grey(images: Images) -> Array:
    """Whether images [N, H, W, 3] have no colour, [N]."""
    return jnp.mean(jnp.max(images, -1) - jnp.min(images, -1), axis=(1, 2)) < MIN_COLOUR


def _records(opened: list[_Opened | None], values: dict[str, Array]) -> Iterator[dict[str, Any]]:
    """The columns of the images of a batch."""
    fetched = jax.device_get(values)
    for row, image in enumerate(opened):
        found = {name: each[row] for name, each in fetched.items()}
        record = dict.fromkeys(COLUMNS)
        if image:
            record |= {
                "read_face_found": bool(found["face"] >= blazeface.FOUND),
                "read_face_probability": _rounded(found["face"]),
                "read_sharpness": _rounded(image.sharpness),
            }
        if record["read_face_found"]:
            record |= _of_face(found)
        yield record


def _of_face(found: dict[str, Any]) -> dict[str, Any]:
    tone = found["skin_tone"]
    grey = np.isnan(tone)
    return {
        "read_age": _rounded(found["age"]),
        "read_age_deviation": _rounded(found["age_deviation"]),
        "read_presentation": "male" if found["male"] > 0.5 else "female",
        "read_presentation_probability": _rounded(max(found["male"], 1 - found["male"])),
        "read_expression": expressions.EXPRESSIONS[found["expression"]],
        "read_expression_probability": _rounded(found["expression_probability"]),
        "read_skin_tone": None if grey else _rounded(tone),
        "read_skin_tone_class": None if grey else TONES[np.digitize(tone, TONE_EDGES)],
    }


def _rounded(value: Any) -> float:
    return round(float(value), 4)


def _listed(words: Sequence[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)
