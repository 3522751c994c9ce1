"""How typical an image is of its generator: quality where no prompt describes it.

A generator shows far more than it does at random: a search finds directions of latents, as probable
as any other, that lead to textures and glare. What random images look like tells them apart. As the
Frechet distance does for sets (Heusel et al. 2017), a normal distribution stands for them, here of
small pictures rather than of a network's features.
"""

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl  # type: ignore[import-untyped]
from flax import struct

from qdgs_jax.chunks import in_chunks
from qdgs_jax.generators import Generator
from qdgs_jax.typing import Array, Images, Params

SAMPLES = 2048
SIDE = 16
"""Pixels of the small pictures, a side."""
RIDGE = 1e-3
"""Part of the mean variance that is added to each, for directions in which images never differ."""


class Typical(struct.PyTreeNode):
    """The normal distribution of a generator's random images, made small; F = 3 SIDE^2."""

    mean: Array  # [F]
    whitening: Array  # [F, F], (image - mean) @ whitening has unit covariance


def fit(generator: Generator, params: Params) -> Typical:
    """What 2,048 random images of a generator are like."""

    @jax.jit
    def render(params: Params, latents: Array) -> Array:
        return in_chunks(lambda some: _small(generator.render(params, some)), 64)(latents)

    small = np.asarray(render(params, generator.sample(jax.random.key(0), SAMPLES)), np.float64)
    with threadpoolctl.threadpool_limits(1, user_api="blas"):  # same sums on any core count
        covariance = np.cov(small, rowvar=False)
        covariance += RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        whitening = np.linalg.inv(np.linalg.cholesky(covariance)).T
    return Typical(
        jnp.asarray(small.mean(axis=0), jnp.float32), jnp.asarray(whitening, jnp.float32)
    )


def excess(typical: Typical, images: Images) -> Array:
    """By how much images are further from the mean than random ones are [N], at least 0.

    It compares squared Mahalanobis distances, a random image's being 1 on average: 0 for all that
    is as near as that, 1 for twice the squared distance.
    """
    whitened = jnp.matmul(_small(images) - typical.mean, typical.whitening, precision="highest")
    return jnp.maximum(jnp.mean(whitened**2, axis=-1) - 1, 0)


def _small(images: Images) -> Array:
    """Small pictures as rows [N, F]."""
    shape = (len(images), SIDE, SIDE, 3)
    small = jax.image.resize(images, shape, "linear", precision=jax.lax.Precision.HIGHEST)
    return small.reshape(len(images), -1)
