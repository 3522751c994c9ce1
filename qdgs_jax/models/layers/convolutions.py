"""Convolutions with small kernels as matrix products with windows.

XLA's own convolutions are slow inside a `lax.scan` on a CPU, where searches and trainings run.
Gradients here are 2 times (inputs) to 5 times (kernels) as fast.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from qdgs_jax.typing import Array


class StridedConv(nn.Module):
    """A 3 x 3 convolution of stride 2 and padding 1."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel, bias = _weights(self, 3, x.shape[-1], self.features)
        return _columns(x, size=3, stride=2) @ kernel.reshape(-1, self.features) + bias


class TransposedConv(nn.Module):
    """A 4 x 4 transposed convolution of stride 2 and padding 1 (PyTorch's convention).

    Along one axis, output 2i-1 is x[i-1] k[2] + x[i] k[0], output 2i is x[i-1] k[3] + x[i] k[1].
    Hence a product with 2 x 2 windows gives the four phases of each 2 x 2 block of outputs.
    """

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        n, height, width, channels = x.shape
        kernel, bias = _weights(self, 4, channels, self.features)
        taps = np.array([[2, 3], [0, 1]])  # [input x[i-1] or x[i], output 2i-1 or 2i]
        # [a, b, C, p, q, F]: input offsets a, b; output phases p, q
        phases = kernel[taps[:, None, :, None], taps[None, :, None, :]].transpose(0, 1, 4, 2, 3, 5)
        y = _columns(x, size=2, stride=1) @ phases.reshape(4 * channels, 4 * self.features)
        y = y.reshape(n, height + 1, width + 1, 2, 2, self.features)
        y = y.transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * height + 2, 2 * width + 2, self.features)
        return y[:, 1:-1, 1:-1] + bias


def _weights(module: nn.Module, size: int, n_in: int, n_out: int) -> tuple[Array, Array]:
    """Kernel [size, size, C, F] and bias [1, 1, 1, F]."""
    kernel = module.param("kernel", nn.initializers.lecun_normal(), (size, size, n_in, n_out))
    bias = module.param("bias", nn.initializers.zeros, (n_out,))
    return kernel, bias[None, None, None]


def _columns(x: Array, *, size: int, stride: int) -> Array:
    """Windows [N, H', W', size * size * C] of x [N, H, W, C] padded by 1."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = (length - size + 1 for length in x.shape[1:3])
    windows = [
        x[:, a : a + rows : stride, b : b + columns : stride]
        for a in range(size)
        for b in range(size)
    ]
    return jnp.concatenate(windows, axis=-1)
