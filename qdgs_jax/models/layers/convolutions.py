"""Convolutions with small kernels, in the forms that are fast on CPUs.

XLA's own convolutions with strides, and its gradients of convolutions, are slow inside a `lax.scan`
on a CPU, where searches and trainings run.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from qdgs_jax.typing import Array

LECUN_NORMAL = nn.initializers.lecun_normal()


class StridedConv(nn.Module):
    """A 3 x 3 convolution of stride 2 and padding 1."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel, bias = _weights(self, 3, x.shape[-1], self.features)
        return convolve_strided(x, kernel) + bias


class HalvingConv(nn.Module):
    """A 4 x 4 convolution of stride 2 and padding 1: of even sides H and W, [N, H / 2, W / 2, F].

    Blocks of 2 x 2 pixels are made channels first. Windows are 2 x 2 blocks then, cut out without
    strides.
    """

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        n, height, width, channels = x.shape
        height, width = height // 2, width // 2
        kernel, bias = _weights(self, 4, channels, self.features, nn.initializers.he_normal())
        blocks = _padded(x).reshape(n, height + 1, 2, width + 1, 2, channels)
        blocks = blocks.transpose(0, 1, 3, 2, 4, 5).reshape(n, height + 1, width + 1, 4 * channels)
        windows = [blocks[:, a : a + height, b : b + width] for a in (0, 1) for b in (0, 1)]
        # [a, p, b, q, C, F]: blocks a, b; their pixels p, q
        kernel = kernel.reshape(2, 2, 2, 2, channels, self.features).transpose(0, 2, 1, 3, 4, 5)
        kernel = kernel.reshape(16 * channels, self.features).astype(x.dtype)
        return jnp.concatenate(windows, axis=-1) @ kernel + bias.astype(x.dtype)


class TransposedConv(nn.Module):
    """A 4 x 4 transposed convolution of stride 2 and padding 1 (PyTorch's convention).

    Along one axis, output 2i-1 is x[i-1] k[2] + x[i] k[0], output 2i is x[i-1] k[3] + x[i] k[1].
    Hence a 2 x 2 convolution gives the four phases of each 2 x 2 block of outputs. The activation,
    elementwise, is applied before the phases are interleaved: rows of four times the channels fill
    a CPU's vectors.
    """

    features: int
    activation: Callable[[Array], Array] = lambda x: x

    @nn.compact
    def __call__(self, x: Array) -> Array:
        n, height, width, channels = x.shape
        kernel, bias = _weights(self, 4, channels, self.features)
        taps = np.array([[2, 3], [0, 1]])  # [input x[i-1] or x[i], output 2i-1 or 2i]
        # [a, b, C, p, q, F]: input offsets a, b; output phases p, q
        phases = kernel[taps[:, None, :, None], taps[None, :, None, :]].transpose(0, 1, 4, 2, 3, 5)
        settings: Any = jax.config
        precision = settings.jax_default_matmul_precision  # also for what is pulled back later
        y = _convolve(precision, x, phases.reshape(2, 2, channels, 4 * self.features))
        y = self.activation(y + jnp.tile(bias, 4))
        y = y.reshape(n, height + 1, width + 1, 2, 2, self.features)
        y = y.transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * height + 2, 2 * width + 2, self.features)
        return y[:, 1:-1, 1:-1]


def convolve(x: Array, kernel: Array) -> Array:
    """A convolution of odd size and padding "SAME": [N, H, W, C], [S, S, C, F] -> [N, H, W, F]."""
    settings: Any = jax.config
    return _same(settings.jax_default_matmul_precision, x, kernel)


def convolve_strided(x: Array, kernel: Array) -> Array:
    """A convolution of stride 2 and padding 1: [N, H, W, C], [3, 3, C, F] -> [N, H / 2, W / 2, F],
    with sides rounded up."""
    return _columns(x, size=3, stride=2) @ kernel.reshape(-1, kernel.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _same(precision: str | None, x: Array, kernel: Array) -> Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision,
    )  # fmt: skip


def _same_forward(precision: str | None, x: Array, kernel: Array) -> tuple[Array, Any]:
    return _same(precision, x, kernel), (x, kernel)


def _same_back(
    precision: str | None, saved: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    """To x by a convolution with the kernel turned round; XLA's transpose takes five times as long
    in a scan on a CPU, and that to the kernel a hundred times as long as products."""
    x, kernel = saved
    product = functools.partial(_same.fun, precision)

    def transposed(x: Array, cotangent: Array) -> Array:
        return jax.linear_transpose(functools.partial(product, x), kernel)(cotangent)[0]

    by_rows = functools.partial(_kernel_gradient, precision, len(kernel))
    weights = jax.lax.platform_dependent(x, cotangent, cpu=by_rows, default=transposed)
    # By `_same`, so that gradients of gradients are as fast.
    return _same(precision, cotangent, kernel.swapaxes(2, 3)[::-1, ::-1]), weights


def _kernel_gradient(precision: str | None, size: int, x: Array, cotangent: Array) -> Array:
    """[S, S, C, F] by S products, with windows of one row each."""
    border = size // 2
    height, width, channels = x.shape[1:]
    features = cotangent.shape[-1]
    x = jnp.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
    windows = jnp.concatenate([x[:, :, b : b + width] for b in range(size)], axis=-1)
    product = functools.partial(jnp.tensordot, axes=((0, 1, 2), (0, 1, 2)), precision=precision)
    rows = [product(cotangent, windows[:, a : a + height]) for a in range(size)]
    return jnp.stack(rows).transpose(0, 2, 1).reshape(size, size, channels, features)


_same.defvjp(_same_forward, _same_back)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(precision: str | None, x: Array, kernel: Array) -> Array:
    """x [N, H, W, C], padded by 1, times kernel [2, 2, C, F]: [N, H + 1, W + 1, F]."""
    return jax.lax.conv_general_dilated(
        _padded(x), kernel, (1, 1), "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision,
    )  # fmt: skip


def _forward(precision: str | None, x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(precision, x, kernel), (x, kernel)


def _pull_back(
    precision: str | None, saved: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    """By products with windows."""
    x, kernel = saved
    n, height, width, channels = x.shape
    flat = kernel.reshape(4 * channels, -1)
    product = functools.partial(jnp.matmul, precision=precision)
    windows = product(cotangent, flat.T).reshape(n, height + 1, width + 1, 2, 2, channels)
    pulled = sum(
        windows[:, 1 - a : 1 - a + height, 1 - b : 1 - b + width, a, b]
        for a in (0, 1)
        for b in (0, 1)
    )
    rows = _columns(x, size=2, stride=1).reshape(-1, 4 * channels)
    weights = product(rows.T, cotangent.reshape(len(rows), -1))
    return jnp.asarray(pulled), weights.reshape(kernel.shape)


_convolve.defvjp(_forward, _pull_back)


def _padded(x: Array) -> Array:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _weights(
    module: nn.Module, size: int, n_in: int, n_out: int, initializer: Any = LECUN_NORMAL
) -> tuple[Array, Array]:
    """Kernel [size, size, C, F] and bias [1, 1, 1, F]."""
    kernel = module.param("kernel", initializer, (size, size, n_in, n_out))
    bias = module.param("bias", nn.initializers.zeros, (n_out,))
    return kernel, bias[None, None, None]


def _columns(x: Array, *, size: int, stride: int) -> Array:
    """Windows [N, H', W', size * size * C] of x [N, H, W, C] padded by 1."""
    x = _padded(x)
    rows, columns = (length - size + 1 for length in x.shape[1:3])
    windows = [
        x[:, a : a + rows : stride, b : b + columns : stride]
        for a in range(size)
        for b in range(size)
    ]
    return jnp.concatenate(windows, axis=-1)
