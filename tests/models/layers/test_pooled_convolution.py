"""Convolution, pooling and ReLU in one: equal to XLA's, gradient included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax.models.layers import pooled_convolution as module
from qdgs_jax.models.layers.pooled_convolution import in_parts, pooled_convolution
from qdgs_jax.typing import Array


def make(height: int, width: int, channels: int) -> tuple[Array, Array, Array]:
    """Small whole numbers, so that sums are exact and outputs of one pool are often equal."""
    random = np.random.default_rng(height * width * channels)
    shapes = (3, height, width, channels), (3, 3, channels, 4), (4,)
    return tuple(jnp.asarray(random.integers(-2, 3, shape), jnp.float32) for shape in shapes)


@pytest.mark.parametrize("size", [(8, 10), (9, 11)])
@pytest.mark.parametrize("channels", [3, 9])
def test_equals_xla(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], channels: int) -> None:
    values = make(*size, channels)
    ours, pull_back = jax.vjp(pooled_convolution, *values)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    theirs, their_pull_back = jax.vjp(pooled_convolution, *values)
    assert ours.shape == (3, size[0] // 2, size[1] // 2, 4)
    np.testing.assert_array_equal(ours, theirs)
    cotangent = jnp.asarray(np.random.default_rng(0).integers(-2, 3, ours.shape), jnp.float32)
    for a, b in zip(pull_back(cotangent), their_pull_back(cotangent), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("count", [1, 5, 6])
def test_parts_make_no_difference(count: int) -> None:
    images = jnp.arange(count * 4.0).reshape(count, 2, 2)
    seen = []

    def double(some: Array) -> Array:
        seen.append(len(some))
        return some.sum(axis=1) * 2

    np.testing.assert_array_equal(in_parts(double, images), images.sum(axis=1) * 2)
    assert max(seen) <= module.PART
