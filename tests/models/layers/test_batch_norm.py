"""Batch norm, its gradient by a formula of its own, and its running statistics."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax.models.layers.batch_norm import EPSILON, BatchNorm, batch_normalise
from qdgs_jax.typing import Array


@pytest.mark.parametrize("shape", [(3, 4, 5, 2), (6, 3)])
def test_values_and_gradients(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    x, cotangent = 5 + 2 * random.standard_normal((2, *shape), np.float32)
    scale, bias = random.standard_normal((2, shape[-1]), np.float32)

    def plain(x: Array, scale: Array, bias: Array) -> Array:
        rows = x.reshape(-1, shape[-1])
        centred = rows - rows.mean(axis=0, keepdims=True)
        variance = (centred**2).mean(axis=0, keepdims=True)
        normalised = centred / jnp.sqrt(variance + EPSILON)
        return (scale[None] * normalised + bias[None]).reshape(shape)

    def normalise(x: Array, scale: Array, bias: Array) -> Array:
        return batch_normalise(x, scale, bias)[0]

    def both(function: Callable[..., Array]) -> tuple[Array, ...]:
        y, pull_back = jax.vjp(function, x, scale, bias)
        return y, *pull_back(cotangent)

    for ours, expected in zip(*jax.jit(lambda: (both(normalise), both(plain)))(), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_running_statistics_by_hand() -> None:
    x = jnp.array([[1.0], [2.0], [6.0]])
    variables = BatchNorm(train=False).init(jax.random.key(0), x)
    _, updated = BatchNorm(train=True).apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(updated["batch_stats"]["mean"], [0.3], rtol=1e-6)
    np.testing.assert_allclose(updated["batch_stats"]["var"], [0.9 + 0.7], rtol=1e-6)
    y = BatchNorm(train=False).apply({**variables, **updated}, x)
    np.testing.assert_allclose(y[2], (6 - 0.3) / np.sqrt(1.6 + EPSILON), rtol=1e-6)


def test_half_precision_has_float32_statistics() -> None:
    x = 100 + np.random.default_rng(0).standard_normal((512, 2))
    x = jnp.asarray(x, jnp.bfloat16)
    y, mean, variance = jax.jit(batch_normalise)(x, jnp.ones(2), jnp.zeros(2))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(mean, np.asarray(x, np.float64).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(variance, np.asarray(x, np.float64).var(axis=0), rtol=1e-4)
