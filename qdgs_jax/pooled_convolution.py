"""A 3 x 3 convolution, 2 x 2 max pooling and ReLU as one operation, with its gradient.

Accelerators get XLA's own convolution. On CPUs, inside a `lax.scan`, the gradient of that is many
times slower than products of matrices; here both directions are such products.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from qdgs_jax.typing import Array

PART = 2
"""Images that a CPU works on together; the windows of more would leave its caches."""


def pooled_convolution(x: Array, kernel: Array, bias: Array) -> Array:
    """relu(max_pool(convolution(x)) + bias), with padding 1.

    Args:
        x: [N, H, W, C].
        kernel: [3, 3, C, F].
        bias: [F].

    Returns:
        [N, H // 2, W // 2, F]; an odd last row or column is not pooled.
    """
    if jax.default_backend() == "cpu":
        return _by_products(x, kernel, bias)
    y = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    n, height, width, features = y.shape
    height, width = height // 2, width // 2
    y = y[:, : 2 * height, : 2 * width].reshape(n, height, 2, width, 2, features)
    return nn.relu(y.max(axis=(2, 4)) + bias)


def in_parts(function: Callable[[Array], Array], images: Array) -> Array:
    """function(images), on CPUs for a few images at a time: [N, ...] -> [N, ...]."""
    count = len(images)
    part = math.gcd(count, PART) if jax.default_backend() == "cpu" else count
    results = jax.lax.map(function, images.reshape(-1, part, *images.shape[1:]))
    return results.reshape(count, *results.shape[2:])


@jax.custom_vjp
def _by_products(x: Array, kernel: Array, bias: Array) -> Array:
    return _forward(x, kernel, bias)[0]


def _forward(x: Array, kernel: Array, bias: Array) -> tuple[Array, Any]:
    n, height, width, channels = x.shape
    features, side = len(bias), _block(channels)
    y = _windows(x, side) @ _widen(kernel, side)
    # What is pooled together: 2 / side blocks in each direction, and all outputs of a block.
    y = y.reshape(n, height // 2, 2 // side, width // 2, 2 // side, side**2, features)
    largest = y.max(axis=(2, 4, 5), keepdims=True)
    pooled = nn.relu(largest + bias)
    chosen = (y == largest) & (pooled > 0)
    return pooled.reshape(n, height // 2, width // 2, features), (x, kernel, chosen)


def _backward(residuals: Any, gradient: Array) -> tuple[Array, Array, Array]:
    x, kernel, chosen = residuals
    side = _block(x.shape[-1])
    ties = chosen.sum(axis=(2, 4, 5))  # share the gradient
    gradient /= jnp.maximum(ties, 1)
    dy = jnp.where(chosen, jnp.expand_dims(gradient, (2, 4, 5)), 0)
    d_bias = (gradient * ties).sum(axis=(0, 1, 2))
    windows = _windows(x, side)
    dy = dy.reshape(*windows.shape[:3], -1)
    # Eigen multiplies in this order twice as fast as windows' transpose by dy.
    d_wide = jnp.tensordot(dy, windows, axes=[(0, 1, 2)] * 2).T
    (d_kernel,) = jax.linear_transpose(lambda k: _widen(k, side), kernel)(d_wide)
    (dx,) = jax.linear_transpose(lambda x: _windows(x, side), x)(dy @ _widen(kernel, side).T)
    return dx, d_kernel, d_bias


_by_products.defvjp(_forward, _backward)


def _block(channels: int) -> int:
    """Side of the block of outputs that one window gives.

    Windows of 3 x 3 colours make thin products, which waste a processor's vectors; of 4 x 4, for
    2 x 2 outputs, nearly half of the factors are zero, and still it is faster.
    """
    return 2 if channels < 8 else 1


def _windows(x: Array, side: int) -> Array:
    """What each block of outputs sees of x [N, H, W, C]: [N, H / side, W / side, window]."""
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    offsets = range(side + 2)
    return jnp.concatenate(
        [x[:, i : i + height : side, j : j + width : side] for i in offsets for j in offsets],
        axis=-1,
    )


def _widen(kernel: Array, side: int) -> Array:
    """The matrix [window, side * side * F] that does to a window what the kernel does."""
    places = [(i, j) for i in range(side) for j in range(side)]
    moved = [
        jnp.pad(kernel, ((i, side - 1 - i), (j, side - 1 - j), (0, 0), (0, 0))) for i, j in places
    ]
    return jnp.stack(moved, axis=-2).reshape(-1, len(places) * kernel.shape[-1])
