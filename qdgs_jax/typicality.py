"""How typical an image is of its generator: quality without prompts.

A generator can render images that it never renders at random. A search finds directions of latents,
as probable as any other, that lead to textures and glare. The distance to random images detects
them. As in the Frechet distance of sets (Heusel et al. 2017), a normal distribution describes the
random images, here of their small versions instead of a network's features.
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
"""Side of the small images, in pixels."""
RIDGE = 1e-3
"""Share of the mean variance that is added to each variance, since some variances are zero."""


class Typical(struct.PyTreeNode):
    """The normal distribution of small versions of a generator's random images; F = 3 SIDE^2."""

    mean: Array  # [F]
    whitening: Array  # [F, F], (image - mean) @ whitening has unit covariance


def fit(generator: Generator, params: Params) -> Typical:
    """Fits the distribution of 2,048 random images of a generator."""

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
    """Excess squared Mahalanobis distance of images to the generator's mean image, [N].

    The squared distance relative to a random image's, which is 1 on average, minus 1 and clipped at
    0: an image at twice the squared distance of random images has 1.
    """
    centred = _small(images) - typical.mean[None]
    whitened = jnp.matmul(centred, typical.whitening, precision="highest")
    return jnp.maximum(jnp.mean(whitened**2, axis=-1) - 1, 0)


def _small(images: Images) -> Array:
    """Small images as rows [N, F]."""
    shape = (len(images), SIDE, SIDE, 3)
    small = jax.image.resize(images, shape, "linear", precision=jax.lax.Precision.HIGHEST)
    return small.reshape(len(images), -1)
