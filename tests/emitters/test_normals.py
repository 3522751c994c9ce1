"""The generator of normal draws."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32
from scipy import stats

from qdgs_jax.emitters import normals
from qdgs_jax.emitters.normals import standard_normal

KEY = jax.random.key(3)


def test_bits_are_those_of_threefry() -> None:
    words = jax.random.bits(KEY, (2,), jnp.uint32)
    counts = jnp.concatenate([jnp.arange(50, dtype=jnp.uint32), jnp.zeros(50, jnp.uint32)])
    np.testing.assert_array_equal(normals._bits(100, *words), threefry_2x32(words, counts))


def test_draws_are_standard_normal_and_uncorrelated() -> None:
    draws = np.asarray(standard_normal(KEY, (400, 251), jnp.float32))
    assert stats.kstest(draws.ravel(), "norm").pvalue > 0.01
    assert np.abs(draws).max() < 5.3
    np.testing.assert_allclose(np.cov(draws[:, ::25].T), np.eye(11), atol=0.25)
    other = np.asarray(standard_normal(jax.random.key(4), (400, 251), jnp.float32))
    assert abs(np.corrcoef(draws.ravel(), other.ravel())[0, 1]) < 0.01


def test_any_key_and_dtype_serve() -> None:
    for key in (jax.random.key(0), jax.random.key(0, impl="rbg"), jax.random.PRNGKey(0)):
        assert standard_normal(key, (3, 5), jnp.float32).std() > 0.3
    with jax.enable_x64(True):
        draws = standard_normal(jax.random.key(0), (4,), jnp.float64)
        np.testing.assert_array_equal(draws, jax.random.normal(jax.random.key(0), (4,)))
