"""BlazeFace: finds the face of an image and four points of it, by which faces are aligned.

The detector for faces at some distance of MediaPipe (Bazarevsky et al. 2019, arXiv 1907.05047), in
a file of TensorFlow.js that `make assets` fetches.
"""

import jax
import jax.numpy as jnp
import numpy as np

from qdgs_jax import faceres
from qdgs_jax.models import tfjs
from qdgs_jax.typing import Array, Images, Params

NAME = "blazeface"
SIDE = 256
"""Of the canvases that it reads, in pixels."""
INNER = 214
"""Longer side of an image on a canvas. Of faces that fill their image, the detector finds more with
a border."""
GREY = 0.5
"""Of the border."""
ALIGNED = 112
"""Side of aligned faces, in pixels."""
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [56.1396, 92.2848]], np.float32
)
"""Where an aligned face has its eyes (that on the left of the image first), the tip of its nose and
its mouth: x and y in pixels, as ArcFace (Deng et al. 2019) aligns faces; the mouth is the middle of
its corners."""
FOUND = 0.5
"""Least probability of a face that is found, as in MediaPipe."""

# Confidences and boxes of two anchors in each of 16 x 16 cells, and of six in each of 8 x 8. A box
# is its middle and its sides, then six points of which four are used; pixels from the anchor.
_SHAPES = {"Identity": (1, 512, 1), "Identity_1": (1, 384, 1),
           "Identity_2": (1, 512, 16), "Identity_3": (1, 384, 16)}  # fmt: skip


def load() -> tuple[tfjs.Graph, Params]:
    """Loads the file that `make assets` fetches.

    Raises:
        ConfigError: it has not been fetched.
        CheckpointError: it cannot be read, or holds another network.
    """
    return faceres.load_network(faceres.fetched(NAME), NAME, (1, SIDE, SIDE, 3), _SHAPES)


def canvases(images: Images) -> Images:
    """Images [N, H, W, 3] in their proportions in the middle of grey ones [N, 256, 256, 3]."""
    N, H, W, C = images.shape
    scale = INNER / max(H, W)
    corner = jnp.array([(SIDE - scale * H) / 2, (SIDE - scale * W) / 2])
    return GREY + jax.image.scale_and_translate(
        images - GREY, (N, SIDE, SIDE, C), (1, 2), jnp.full(2, scale), corner, "linear"
    )


def find(graph: tfjs.Graph, params: Params, canvases: Images) -> tuple[Array, Array]:
    """The most probable face of each canvas [N, 256, 256, 3].

    Returns:
        Its probability [N], and its points [N, 4, 2] in the order of `TEMPLATE`, x and y in pixels
        of the canvas; they mean something where there is a face.
    """

    def one(canvas: Array) -> tuple[Array, Array]:
        values = tfjs.apply(graph, params, 2 * canvas[None] - 1, tuple(_SHAPES))
        fine, coarse, fine_boxes, coarse_boxes = (values[name][0] for name in _SHAPES)
        logits = jnp.concatenate([fine, coarse])[:, 0]
        best = jnp.argmax(logits)
        box = jnp.concatenate([fine_boxes, coarse_boxes])[best]
        return jax.nn.sigmoid(logits[best]), box[4:12].reshape(4, 2) + _anchors()[best][None]

    return jax.vmap(one)(canvases)  # the file is of a network for one image


def align(canvases: Images, points: Array) -> Images:
    """Faces [N, 112, 112, 3] with their points [N, 4, 2] as near to `TEMPLATE` as a rotation, a
    scale and a shift bring them (least squares); outside of a canvas its edge continues."""
    middle = TEMPLATE.mean(axis=0)
    x, y = (TEMPLATE - middle).T

    # From the template to the canvas: z -> a z + b, in complex numbers.
    u, v = jnp.moveaxis(points - points.mean(axis=1, keepdims=True), -1, 0)
    squares = (x**2 + y**2).sum()
    real = (u * x[None] + v * y[None]).sum(axis=1) / squares
    imaginary = (v * x[None] - u * y[None]).sum(axis=1) / squares

    down, right = np.mgrid[:ALIGNED, :ALIGNED].astype(np.float32) + 0.5
    down, right = down - middle[1], right - middle[0]

    def one(canvas: Array, a: Array, b: Array, centre: Array) -> Array:
        rows = b * right + a * down + centre[1] - 0.5
        columns = a * right - b * down + centre[0] - 0.5
        sample = jax.vmap(
            lambda channel: jax.scipy.ndimage.map_coordinates(
                channel, [rows, columns], order=1, mode="nearest"
            ),
            in_axes=-1,
            out_axes=-1,
        )
        return sample(canvas)

    return jax.vmap(one)(canvases, real, imaginary, points.mean(axis=1))


def _anchors() -> Array:
    """Middles of the cells [896, 2], x and y in pixels, once for each anchor."""
    found = []
    for cells, anchors in ((16, 2), (8, 6)):
        centres = (np.arange(cells, dtype=np.float32) + 0.5) / cells * SIDE
        x, y = np.meshgrid(centres, centres)
        found.append(np.stack([x, y], axis=-1).reshape(-1, 2).repeat(anchors, axis=0))
    return jnp.asarray(np.concatenate(found))
