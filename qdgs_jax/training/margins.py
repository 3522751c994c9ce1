"""AdaFace (Kim, Jain and Liu 2022, arXiv 2204.00964): embeddings -> logits of people.

A margin moves the logit of the right person. It is one formula in an image quality z in [-1, 1]:

    g_angle = -m z,  g_add = m z + m,  logit = s (cos(theta + g_angle) - g_add)

AdaFace estimates z by the norm of the embedding. z = -1 is ArcFace, s cos(theta + m), and z = 0 is
CosFace, s (cos(theta) - m) (section 3.3 of the paper).
"""

import jax
import jax.numpy as jnp
from flax import struct

from qdgs_jax.training.config import MarginConfig
from qdgs_jax.typing import Array, Key

EPSILON = 1e-3
"""Distance of cosines from 1 and of angles from 0 and pi, where gradients would be infinite."""
NORMS = (1e-3, 100.0)
"""Norms of embeddings are clipped to this range."""
CONSTANT_QUALITY = {"arcface": -1.0, "cosface": 0.0}


class NormStatistics(struct.PyTreeNode):
    """Running mean and standard deviation of the norms of embeddings."""

    mean: Array  # []
    std: Array  # []


def init_centres(key: Key, embedding_size: int, people: int) -> Array:
    """Random unit vectors [E, P], one for each person."""
    centres = jax.random.normal(key, (embedding_size, people))
    return centres / jnp.linalg.norm(centres, axis=0, keepdims=True)


def init_statistics() -> NormStatistics:
    """As AdaFace's training begins."""
    return NormStatistics(jnp.array(20.0), jnp.array(100.0))


def person_logits(
    config: MarginConfig,
    centres: Array,
    statistics: NormStatistics,
    embeddings: Array,
    labels: Array,
) -> tuple[Array, NormStatistics]:
    """Logits [N, P] of which the right person's has the margin, for a cross-entropy.

    Args:
        centres: [E, P] of any norm.
        statistics: of the batches before.
        embeddings: [N, E] of any norm.
        labels: [N] int, the right person's number.

    Returns:
        Logits, and statistics that include this batch.
    """
    norms = jnp.sqrt(jnp.square(embeddings).sum(axis=1).clip(NORMS[0] ** 2))
    directions = embeddings / norms[:, None]
    columns = centres / jnp.linalg.norm(centres, axis=0, keepdims=True)
    cosines = jnp.matmul(directions, columns, precision="highest")
    cosines = cosines.clip(-1 + EPSILON, 1 - EPSILON)
    norms = jax.lax.stop_gradient(norms).clip(max=NORMS[1])
    statistics = _updated(statistics, norms, config.momentum)
    z = _quality(config, statistics, norms)
    right = jnp.take_along_axis(cosines, labels[:, None], axis=1)[:, 0]
    angle = (jnp.arccos(right) - config.margin * z).clip(EPSILON, jnp.pi - EPSILON)
    right = jnp.cos(angle) - config.margin * (z + 1)
    is_right = labels[:, None] == jnp.arange(cosines.shape[1])[None]
    return config.scale * jnp.where(is_right, right[:, None], cosines), statistics


def _updated(statistics: NormStatistics, norms: Array, momentum: float) -> NormStatistics:
    batch = NormStatistics(norms.mean(), norms.std(ddof=1))
    return jax.tree.map(lambda old, new: old + momentum * (new - old), statistics, batch)


def _quality(config: MarginConfig, statistics: NormStatistics, norms: Array) -> Array:
    """z [N] (equation 14), or the constant of another margin."""
    if config.kind in CONSTANT_QUALITY:
        return jnp.full(norms.shape, CONSTANT_QUALITY[config.kind])
    deviation = (norms - statistics.mean) / (statistics.std + EPSILON)
    return (config.concentration * deviation).clip(-1, 1)
