"""The expression that a small network reads from a face.

A mini-Xception trained on FER2013 (Arriaga, Ploeger and Valdenegro 2017, arXiv 1710.07557), in a
file of TensorFlow.js that `make assets` fetches. It reads how a picture looks to it, not what
anybody feels.
"""

import jax
import jax.numpy as jnp

from qdgs_jax import faceres
from qdgs_jax.image_measures import LUMA
from qdgs_jax.models import tfjs
from qdgs_jax.typing import Array, Images, Params

NAME = "emotion"
SIDE = 64
"""Of the grey images that it reads, in pixels."""
EXPRESSIONS = ("angry", "disgusted", "fearful", "happy", "sad", "surprised", "neutral")

_OUTPUT = "Identity"


def load() -> tuple[tfjs.Graph, Params]:
    """Loads the file that `make assets` fetches.

    Raises:
        ConfigError: it has not been fetched.
        CheckpointError: it cannot be read, or holds another network.
    """
    shapes = {_OUTPUT: (2, len(EXPRESSIONS))}
    return faceres.load_network(faceres.fetched(NAME), NAME, (2, SIDE, SIDE, 1), shapes)


def probabilities(graph: tfjs.Graph, params: Params, images: Images) -> Array:
    """Probabilities [N, 7] of `EXPRESSIONS` for images [N, H, W, 3], which a face should fill."""
    grey = jnp.sum(images * LUMA[None, None, None], axis=-1, keepdims=True)
    small = jax.image.resize(grey, (len(images), SIDE, SIDE, 1), "linear")
    return tfjs.apply(graph, params, 2 * small - 1, (_OUTPUT,))[_OUTPUT]
