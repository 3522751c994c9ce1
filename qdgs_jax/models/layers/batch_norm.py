"""Batch norm (Ioffe and Szegedy 2015, arXiv 1502.03167) with PyTorch's conventions."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from qdgs_jax.models.precision import widen
from qdgs_jax.typing import Array

EPSILON = 1e-5
MOMENTUM = 0.1
"""Share of a batch in the running statistics."""


class BatchNorm(nn.Module):
    """Normalises each channel of [..., C], in training by the batch, else by running statistics.

    Statistics are float32 whatever the type of x, and those of a batch divided over devices are of
    the whole batch. The running variance is the unbiased one.
    """

    train: bool
    affine: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size, count = x.shape[-1:], math.prod(x.shape[:-1])
        mean = self.variable("batch_stats", "mean", jnp.zeros, size)
        variance = self.variable("batch_stats", "var", jnp.ones, size)
        scale, bias = jnp.ones(size), jnp.zeros(size)
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, size)
            bias = self.param("bias", nn.initializers.zeros, size)
        if not self.train:
            factor = scale * jax.lax.rsqrt(variance.value + EPSILON)
            return _affine(x, factor, bias - mean.value * factor)
        y, batch_mean, batch_variance = batch_normalise(x, scale, bias)
        unbiased = batch_variance * count / max(count - 1, 1)
        mean.value += MOMENTUM * (batch_mean - mean.value)
        variance.value += MOMENTUM * (unbiased - variance.value)
        return y


@jax.custom_vjp
def batch_normalise(x: Array, scale: Array, bias: Array) -> tuple[Array, Array, Array]:
    """x [..., C] with mean `bias` [C] and standard deviation `scale` [C] in each channel.

    Returns:
        The same shape and type as x, and mean and (biased) variance [C] of x, float32; no gradient
        flows through these two.
    """
    return _forward(x, scale, bias)[0]


def _forward(x: Array, scale: Array, bias: Array) -> tuple[tuple[Array, Array, Array], tuple]:
    mean = _mean(widen(x))
    variance = _mean(jnp.square(widen(x) - _spread(mean, x)))
    inverse = jax.lax.rsqrt(variance + EPSILON)
    y = _affine(x, scale * inverse, bias - mean * scale * inverse)
    return (y, mean, variance), (x, scale, mean, inverse)


def _backward(saved: tuple, cotangents: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    """With x' the normalised x: dx = scale / std (dy - mean(dy) - x' mean(dy x'))."""
    x, scale, mean, inverse = saved
    dy, count = widen(cotangents[0]), math.prod(x.shape[:-1])
    normalised = (widen(x) - _spread(mean, x)) * _spread(inverse, x)
    dy_mean, product_mean = _mean(dy), _mean(dy * normalised)
    centred = dy - _spread(dy_mean, x) - normalised * _spread(product_mean, x)
    dx = _spread(scale * inverse, x) * centred
    return dx.astype(x.dtype), count * product_mean, count * dy_mean


batch_normalise.defvjp(_forward, _backward)


def _affine(x: Array, factor: Array, offset: Array) -> Array:
    return (widen(x) * _spread(factor, x) + _spread(offset, x)).astype(x.dtype)


def _spread(values: Array, x: Array) -> Array:
    """[C] with the number of axes of x."""
    return jnp.expand_dims(values, tuple(range(x.ndim - 1)))


def _mean(x: Array) -> Array:
    """Over all axes but the last."""
    return x.mean(axis=tuple(range(x.ndim - 1)))
