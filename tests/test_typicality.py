"""Typical images have no excess, others an excess by their distance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax import typicality
from qdgs_jax.generators import Generator

SIDE = 32


def render(params, latents):
    """Smooth images of normal pixels, whose standard deviation is a tenth."""
    images = 0.5 + 0.1 * latents.reshape(-1, 16, 16, 3)
    return jnp.repeat(jnp.repeat(images, 2, axis=1), 2, axis=2) * params


@pytest.fixture(scope="module")
def generator():
    return Generator("noise", 768, SIDE, lambda key, n: jax.random.normal(key, (n, 768)), render)


@pytest.fixture(scope="module")
def typical(generator):
    return typicality.fit(generator, jnp.float32(1))


def test_whitened_samples_have_unit_covariance(generator, typical):
    latents = generator.sample(jax.random.key(0), typicality.SAMPLES)
    small = typicality._small(render(1.0, latents))
    whitened = np.asarray((small - typical.mean[None]) @ typical.whitening)
    np.testing.assert_allclose(np.cov(whitened, rowvar=False), np.eye(768), atol=0.01)


def test_excess_grows_with_the_distance(generator, typical):
    latents = generator.sample(jax.random.key(1), 64)
    excess = [typicality.excess(typical, render(1.0, scale * latents)) for scale in (0.5, 1.0, 2.0)]
    assert (excess[0] == 0).all()
    assert excess[1].mean() < 1.5  # 768 directions of as few as 2,048 images: not 0
    np.testing.assert_allclose(1 + excess[2], 4 * (1 + excess[1]), rtol=0.3)


def test_gradients_lead_back(generator, typical):
    image = render(1.0, 2 * generator.sample(jax.random.key(2), 1))

    def loss(image):
        return typicality.excess(typical, image).sum()

    assert loss(image - 0.01 * jnp.sign(jax.grad(loss)(image))) < loss(image)
