"""A 3 x 3 convolution, 2 x 2 max pooling and ReLU as one operation, with its gradient.

Accelerators use XLA's own convolution. Inside a `lax.scan` on a CPU, its gradient is many times
slower than matrix products, so CPUs use matrix products for the operation and its gradient.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from qdgs_jax.typing import Array

PART = 4
"""Images processed at once on a CPU; the windows of more do not fit into its caches."""


def pooled_convolution(x: Array, kernel: Array, bias: Array) -> Array:
    """relu(max_pool(convolution(x)) + bias), with padding 1.

    If outputs of one pool are equal, the first gets the gradient, as in PyTorch.

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
    return nn.relu(nn.max_pool(y, (2, 2), (2, 2)) + bias[None, None, None])


def in_parts(function: Callable[[Array], Array], images: Array) -> Array:
    """function(images), on CPUs for a few images at a time: [N, ...] -> [N, ...]."""
    if jax.default_backend() != "cpu":
        return function(images)
    count = len(images)
    part = math.gcd(count, PART)
    results = jax.lax.map(function, images.reshape(-1, part, *images.shape[1:]))
    return results.reshape(count, *results.shape[2:])


@jax.custom_vjp
def _by_products(x: Array, kernel: Array, bias: Array) -> Array:
    return _forward(x, kernel, bias)[0]


def _forward(x: Array, kernel: Array, bias: Array) -> tuple[Array, Any]:
    algorithm = _algorithm(kernel)
    pairs = zip(algorithm.windows(x), algorithm.matrices(kernel), strict=True)
    y = algorithm.outputs([window @ matrix for window, matrix in pairs])
    largest = jnp.maximum(jnp.maximum(y[0], y[1]), jnp.maximum(y[2], y[3]))
    pooled = nn.relu(largest + bias[None])
    chosen = jnp.select([pooled <= 0, *(each == largest for each in y[:3])], [4, 0, 1, 2], 3)
    n, height, width, _ = x.shape
    shaped = pooled.reshape(n, height // 2, width // 2, -1)
    return shaped, (x, kernel, chosen.astype(jnp.uint8))


def _backward(residuals: Any, gradient: Array) -> tuple[Array, Array, Array]:
    x, kernel, chosen = residuals
    algorithm = _algorithm(kernel)
    gradient = _rows(gradient)
    dy = [jnp.where(chosen == i, gradient, 0) for i in range(4)]
    windows, pull_windows = jax.vjp(algorithm.windows, x)  # recomputing is faster than keeping
    matrices, pull_matrices = jax.vjp(algorithm.matrices, kernel)
    products = jax.eval_shape(
        lambda: [window @ matrix for window, matrix in zip(windows, matrices, strict=True)]
    )
    (d_products,) = jax.linear_transpose(algorithm.outputs, products)(dy)
    (dx,) = pull_windows([d @ matrix.T for d, matrix in zip(d_products, matrices, strict=True)])
    # In this order, Eigen's product is twice as fast as that of window.T and d.
    pairs = zip(d_products, windows, strict=True)
    (d_kernel,) = pull_matrices([jnp.tensordot(d, window, axes=(0, 0)).T for d, window in pairs])
    d_bias = jnp.where(chosen < 4, gradient, 0).sum(axis=0)
    return dx, d_kernel, d_bias


_by_products.defvjp(_forward, _backward)


class _Algorithm(NamedTuple):
    """The four outputs of each pool: outputs([w @ m for w, m in zip(windows(x), matrices(k))]).

    All three functions are linear. T = N * (H // 2) * (W // 2) pools, each of which sees 4 x 4
    pixels.
    """

    windows: Callable[[Array], list[Array]]  # [N, H, W, C] -> each [T, K]
    matrices: Callable[[Array], list[Array]]  # [3, 3, C, F] -> each [K, L]
    outputs: Callable[[list[Array]], list[Array]]  # each [T, L] -> four [T, F], row by row


def _algorithm(kernel: Array) -> _Algorithm:
    """Winograd's; for few channels whole windows, since its thin matrices waste vector lanes."""
    return _WHOLE if kernel.shape[2] < 8 else _WINOGRAD


def _quarters(x: Array) -> list[Array]:
    """The 4 x 4 pixels of each pool in x [N, H, W, C], by 2 x 2 quarters: four [N, h, w, 4C]."""
    n, height, width, channels = x.shape
    h, w = height // 2, width // 2
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))[:, : 2 * h + 2, : 2 * w + 2]
    x = x.reshape(n, h + 1, 2, w + 1, 2 * channels).swapaxes(2, 3).reshape(n, h + 1, w + 1, -1)
    return [x[:, i : i + h, j : j + w] for i in (0, 1) for j in (0, 1)]


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _whole_windows(x: Array) -> list[Array]:
    """All 4 x 4 pixels: [T, 16C]."""
    return [_rows(jnp.concatenate(_quarters(x), axis=-1))]


def _whole_matrices(kernel: Array) -> list[Array]:
    """[16C, 4F], of which nearly half is zero."""
    moved = [
        jnp.pad(kernel, ((i, 1 - i), (j, 1 - j), (0, 0), (0, 0))) for i in (0, 1) for j in (0, 1)
    ]
    wide = jnp.concatenate(moved, axis=-1)  # [4, 4, C, 4F]
    quarters = wide.reshape(2, 2, 2, 2, *wide.shape[2:]).swapaxes(1, 2)
    return [_rows(quarters)]


def _whole_outputs(products: list[Array]) -> list[Array]:
    return jnp.split(products[0], 4, axis=-1)


def _winograd_windows(x: Array) -> list[Array]:
    """B' d B for the 4 x 4 pixels d: 16 of [T, C] (Lavin and Gray 2016, F(2 x 2, 3 x 3))."""
    quarters = [jnp.split(quarter, 4, axis=-1) for quarter in _quarters(x)]
    pixels = [
        quarters[2 * (i // 2) + j // 2][2 * (i % 2) + j % 2] for i in range(4) for j in range(4)
    ]
    moved = _both_ways(lambda a, b, c, d: (a - c, b + c, c - b, b - d), pixels)
    return [_rows(each) for each in moved]


def _winograd_matrices(kernel: Array) -> list[Array]:
    """G k G': 16 of [C, F]."""
    entries = [kernel[i, j] for i in range(3) for j in range(3)]
    return _both_ways(lambda a, b, c: (a, (a + b + c) / 2, (a - b + c) / 2, c), entries)


def _winograd_outputs(products: list[Array]) -> list[Array]:
    """A' m A for the 16 products m."""
    return _both_ways(lambda a, b, c, d: (a + b + c, b - c - d), products)


def _both_ways(function: Callable[..., tuple], square: list[Array]) -> list[Array]:
    """The function for each row of a square that is listed row by row, then for each column."""
    side = math.isqrt(len(square))
    rows = [function(*square[i : i + side]) for i in range(0, len(square), side)]
    columns = [function(*column) for column in zip(*rows, strict=True)]
    return [each for row in zip(*columns, strict=True) for each in row]


_WHOLE = _Algorithm(_whole_windows, _whole_matrices, _whole_outputs)
_WINOGRAD = _Algorithm(_winograd_windows, _winograd_matrices, _winograd_outputs)
