"""faceres: a small network that reads an embedding, an age and a presentation from a face.

A MobileNetV1 for face recognition with two outputs more (Savchenko 2019, arXiv 1807.07718), in a
file of TensorFlow.js that `make assets` fetches. What it reads is how a picture looks to a network,
with its stereotypes and mistakes: presentation, not identity.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from qdgs_jax.errors import ConfigError
from qdgs_jax.models import tfjs
from qdgs_jax.models.checkpoint import explained
from qdgs_jax.models.pickles import UnreadableError
from qdgs_jax.typing import Array, Embeddings, Images, Params

NAME = "faceres"
PATH = Path(sys.prefix) / "share/qdgs_jax/faceres/faceres.json"
"""Where `make assets` puts its file, and that of its weights beside it."""
PACKAGE = "npm's @vladmandic/human 3.3.6"
SIDE = 224
"""Of the images that it reads, in pixels."""
MEANS = np.array([103.939, 116.779, 123.68], np.float32)
"""Of blue, green and red in its training, of 255."""

_SHAPES = {"global_pooling/Mean": (2, 1024), "age_pred/BiasAdd": (2, 100),
           "gender_pred/BiasAdd": (2, 1)}  # fmt: skip
_EMBEDDING, _AGE, _PRESENTATION = _SHAPES


def find(name: str) -> Path | None:
    """The file that a name stands for: `faceres`, or the path of a file of JSON."""
    if name == NAME:
        return PATH
    return Path(name).expanduser() if name.endswith(".json") else None


def load(path: Path | None = None) -> tuple[tfjs.Graph, Params]:
    """Loads its file, by default the one that `make assets` fetches.

    Raises:
        ConfigError: that one has not been fetched.
        CheckpointError: the file cannot be read, or holds another network.
    """
    if path in (None, PATH) and not PATH.exists():
        raise ConfigError(
            f"The network {NAME} is not there: run `make assets`, which needs npm, or give the "
            f"path of models/faceres.json of {PACKAGE} in place of its name."
        )
    return load_network(path or PATH, NAME, (2, SIDE, SIDE, 3), _SHAPES)


def fetched(name: str) -> Path:
    """The file of another network of `PACKAGE`, which `make assets` puts beside that of faceres.

    Raises:
        ConfigError: it is not there.
    """
    path = PATH.with_name(f"{name}.json")
    if not path.exists():
        raise ConfigError(f"The network {name} is not there: run `make assets`, which needs npm.")
    return path


def load_network(
    path: Path, name: str, image_shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[tfjs.Graph, Params]:
    """A network of `PACKAGE`, known by its nodes.

    Args:
        name: of its file in `PACKAGE`, without its end.
        image_shape: of a batch.
        shapes: name of a node -> shape of its values for such a batch.

    Raises:
        CheckpointError: the file cannot be read, or holds another network.
    """
    graph, params = tfjs.load(path)
    with explained(path, f"give models/{name}.json of {PACKAGE}"):
        if not shapes.keys() <= {node.name for node in graph.nodes}:
            raise UnreadableError(f"it is not {name}")
        found = jax.eval_shape(
            lambda images: tfjs.apply(graph, params, images, tuple(shapes)),
            jax.ShapeDtypeStruct(image_shape, jnp.float32),
        )
        if any(found[node].shape != shape for node, shape in shapes.items()):
            raise UnreadableError(f"it is not {name}")
    return graph, params


def embed(graph: tfjs.Graph, params: Params, images: Images) -> Embeddings:
    """Unit embeddings [N, 1024] of images [N, H, W, 3]; a person's lie near to each other.

    Images are stretched to a square; faces should fill them.
    """
    embeddings = _apply(graph, params, images, _EMBEDDING)
    return embeddings / jnp.linalg.norm(embeddings, axis=-1, keepdims=True)


def age_logits(graph: tfjs.Graph, params: Params, images: Images) -> Array:
    """Logits [N, 100] of the ages 1 to 100."""
    return _apply(graph, params, images, _AGE)


def presentation_logits(graph: tfjs.Graph, params: Params, images: Images) -> Array:
    """Logits [N, 2] of a female and a male presentation."""
    male = _apply(graph, params, images, _PRESENTATION)
    return jnp.concatenate([jnp.zeros_like(male), male], axis=-1)


def _apply(graph: tfjs.Graph, params: Params, images: Images, node: str) -> Array:
    """A node's values. Those of several nodes of the same images are computed once in a program."""
    shape = (len(images), SIDE, SIDE, 3)
    pixels = 255 * jax.image.resize(images, shape, "linear")[..., ::-1] - MEANS[None, None, None]
    return tfjs.apply(graph, params, pixels, (node,))[node]


@dataclass(frozen=True)
class Reading:
    """Classes of faces that it tells apart."""

    about: str
    """Meaning and range of the expected value."""
    classes: tuple[str, ...]
    values: tuple[float, ...]
    """Numbers that the classes stand for."""
    logits: Callable[[tfjs.Graph, Params, Images], Array]
    """(graph, params, images) -> [N, C]."""


_AGES = range(1, 101)
READINGS = {
    "age": Reading(
        "Age that a network reads from a face, from 1 to 100 years.",
        tuple(map(str, _AGES)), tuple(map(float, _AGES)), age_logits,
    ),
    "presentation": Reading(
        "Probability that a network reads a face as male, from 0 (female) to 1 (male).",
        ("female", "male"), (0.0, 1.0), presentation_logits,
    ),
}  # fmt: skip
