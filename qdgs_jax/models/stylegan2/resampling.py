"""Resampling by 2 without aliasing: StyleGAN2's low-pass filter as sums of shifted phases.

The textbook way up (zeros between samples, then a convolution) multiplies mostly zeros, the way
down computes samples that are dropped, and XLA's dilated and depthwise convolutions are slow on
CPUs. Here even and odd samples are treated separately, along H and then along W. Nothing is
transposed. Pull-backs are written in the same way, and can be differentiated again.
"""

from functools import partial

import jax
import jax.numpy as jnp

from qdgs_jax.typing import Array

Taps = tuple[float, float, float, float]


def upsample(x: Array, taps: Taps) -> Array:
    """[N, H, W, C] -> [N, 2H, 2W, C]: zeros between samples, filter with a gain of 2 per axis.

    Along an axis, padded by 2 before and 1 behind: y[2i] = 2 (f3 x[i-1] + f1 x[i]), and
    y[2i+1] = 2 (f2 x[i] + f0 x[i+1]).
    """
    f0, f1, f2, f3 = (2 * tap for tap in taps)
    n, height, width, channels = x.shape
    for axis, shape in (
        (1, (n, 2 * height, width, channels)),
        (2, (n, 2 * height, 2 * width, channels)),
    ):
        before, here, behind = _neighbours(x, axis)
        x = jnp.stack([f3 * before + f1 * here, f2 * here + f0 * behind], axis + 1).reshape(shape)
    return x


def up_convolve(x: Array, kernel: Array, taps: Taps) -> Array:
    """A 3 x 3 transposed convolution of stride 2, then the filter with a gain of 2 per axis.

    Along an axis, the convolution gives t[2i] = k0 x[i] + k2 x[i-1] and t[2i+1] = k1 x[i], one
    sample more than twice as many. The filter, padded by 1, gives y[m] = 2 (f3 t[m-1] + f2 t[m] +
    f1 t[m+1] + f0 t[m+2]). One matrix product first multiplies x by all nine taps.

    Args:
        x: [N, H, W, C].
        kernel: [C, 3, 3, F].
        taps: The filter's.

    Returns:
        [N, 2H, 2W, F].
    """
    n, height, width, channels = x.shape
    features = kernel.shape[-1]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # so that products beyond the border are 0
    y = (x @ kernel.reshape(channels, -1)).reshape(n, height + 2, width + 2, 3, 3, features)
    for axis, shape in (
        (1, (n, 2 * height, width + 2, 3, features)),
        (2, (n, 2 * height, 2 * width, features)),
    ):
        y = _interleave(taps, axis, y).reshape(shape)
    return y


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def downsample(x: Array, taps: Taps) -> Array:
    """[N, H, W, C] of even sides -> [N, H / 2, W / 2, C]: filter, then every second sample.

    Along an axis, padded by 1: y[i] = f3 x[2i-1] + f2 x[2i] + f1 x[2i+1] + f0 x[2i+2].
    """
    f0, f1, f2, f3 = taps
    for axis in (1, 2):
        even, odd = _phases(x, axis)
        _, here, next_even = _neighbours(even, axis)
        last_odd, here_odd, _ = _neighbours(odd, axis)
        x = f3 * last_odd + f2 * here + f1 * here_odd + f0 * next_even
    return x


def _downsample_forward(x: Array, taps: Taps) -> tuple[Array, None]:
    return downsample(x, taps), None


def _downsample_back(taps: Taps, _: None, cotangent: Array) -> tuple[Array]:
    """The transpose is `upsample` with the filter turned round, but for its gain."""
    f0, f1, f2, f3 = (tap / 2 for tap in taps)
    return (upsample(cotangent, (f3, f2, f1, f0)),)


downsample.defvjp(_downsample_forward, _downsample_back)


def down_convolve(x: Array, kernel: Array, taps: Taps) -> Array:
    """The filter, then a 3 x 3 convolution of stride 2.

    Along an axis, the filter, padded by 2, gives t[m] = f3 x[m-2] + f2 x[m-1] + f1 x[m] +
    f0 x[m+1], and the convolution y[i] = k0 t[2i] + k1 t[2i+1] + k2 t[2i+2]. That is the transpose
    of `up_convolve`. One matrix product multiplies all nine t's of each output by the kernel.

    Args:
        x: [N, H, W, C] of even sides.
        kernel: [3, 3, C, F].
        taps: The filter's.

    Returns:
        [N, H / 2, W / 2, F].
    """
    f0, f1, f2, f3 = (tap / 2 for tap in taps)  # `_separate` has the gain of 2 of upsampling
    for axis in (2, 1):
        n, *sides = x.shape[: axis + 1]
        x = x.reshape(n, *sides[:-1], sides[-1] // 2, 2, *x.shape[axis + 1 :])
        x = _separate((f3, f2, f1, f0), axis, x)
        x = jax.lax.slice_in_dim(x, 1, x.shape[axis] - 1, axis=axis)
    return x.reshape(*x.shape[:3], -1) @ kernel.reshape(-1, kernel.shape[-1])


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _interleave(taps: Taps, axis: int, y: Array) -> Array:
    """Filters the products on axis 3; even and odd outputs are on a new axis behind `axis`."""
    f0, f1, f2, f3 = (2 * tap for tap in taps)
    y0, y1, y2 = (jax.lax.index_in_dim(y, i, 3, keepdims=False) for i in range(3))
    _, here0, behind0 = _windows(y0, axis)
    before1, here1, behind1 = _windows(y1, axis)
    before2, here2, _ = _windows(y2, axis)
    even, next_even = here0 + before2, behind0 + here2
    return jnp.stack(
        [
            f3 * before1 + f2 * even + f1 * here1 + f0 * next_even,
            f3 * even + f2 * here1 + f1 * next_even + f0 * behind1,
        ],
        axis + 1,
    )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _separate(taps: Taps, axis: int, y: Array) -> Array:
    """The transpose of `_interleave`; JAX's own sums padded arrays and takes twice the time.

    Each product, also beyond the border, sums over the outputs that it contributes to.
    """
    f0, f1, f2, f3 = (2 * tap for tap in taps)
    padded = jnp.pad(y, [(2 * (i == axis),) * 2 for i in range(y.ndim)])
    even, odd = (jax.lax.index_in_dim(padded, i, axis + 1, keepdims=False) for i in range(2))
    even0, even1, even2 = _windows(even, axis)
    odd0, odd1, odd2 = _windows(odd, axis)
    return jnp.stack(
        [
            f0 * even0 + f2 * even1 + f1 * odd0 + f3 * odd1,
            f1 * even1 + f3 * even2 + f0 * odd0 + f2 * odd1,
            f0 * even1 + f2 * even2 + f1 * odd1 + f3 * odd2,
        ],
        3,
    )


_interleave.defvjp(
    lambda taps, axis, y: (_interleave(taps, axis, y), None),
    lambda taps, axis, _, cotangent: (_separate(taps, axis, cotangent),),
)
_separate.defvjp(
    lambda taps, axis, y: (_separate(taps, axis, y), None),
    lambda taps, axis, _, cotangent: (_interleave(taps, axis, cotangent),),
)


def _phases(x: Array, axis: int) -> tuple[Array, Array]:
    """x[2i] and x[2i+1] along an axis."""
    x = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
    even, odd = (jax.lax.index_in_dim(x, i, axis + 1, keepdims=False) for i in range(2))
    return even, odd


def _neighbours(x: Array, axis: int) -> tuple[Array, Array, Array]:
    """x[i-1], x[i], x[i+1] along an axis, zero beyond the border."""
    return _windows(jnp.pad(x, [(int(i == axis),) * 2 for i in range(x.ndim)]), axis)


def _windows(x: Array, axis: int) -> tuple[Array, Array, Array]:
    """`_neighbours` of an x that is already padded."""
    before, here, behind = (
        jax.lax.slice_in_dim(x, i, x.shape[axis] - 2 + i, axis=axis) for i in range(3)
    )
    return before, here, behind
