"""Standard normal draws, also fast on a CPU.

A generation of MAP-Elites consists mostly of them. On CPUs `jax.random.normal` runs its rounds as a
loop and drops half of the bits. Here rounds are unrolled and all bits are used, which takes a third
of the time.
"""

import functools
import math

import jax
import jax.numpy as jnp

from qdgs_jax.sharding import replicated
from qdgs_jax.typing import Array, Key

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def standard_normal(key: Key, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Independent draws from N(0, 1); in float32 on a CPU by `_draws`, else by `jax.random.normal`.

    Each of several CPU devices makes all draws, as `_draws` is not divided over them.
    """
    if dtype != jnp.float32:
        return jax.random.normal(key, shape, dtype)
    return jax.lax.platform_dependent(
        key,
        cpu=lambda key: replicated(_on_cpu(key, shape)),
        default=lambda key: jax.random.normal(key, shape, dtype),
    )


def _on_cpu(key: Key, shape: tuple[int, ...]) -> Array:
    first, second = jax.random.bits(key, (2,), jnp.uint32)  # for keys of any kind
    # `cond` is a fusion barrier: without it XLA fuses the draws into their consumer, unvectorised,
    # ten times slower.
    draw = functools.partial(_draws, math.prod(shape))
    draws = jax.lax.cond(first < second, draw, lambda *words: draw(*words[::-1]), first, second)
    return draws.reshape(shape)


def _draws(count: int, first: Array, second: Array) -> Array:
    """Draws [count] from N(0, 1) by inversion."""
    mantissa = (_bits(count, first, second) >> 9) | jnp.uint32(0x3F800000)
    unit = jax.lax.bitcast_convert_type(mantissa, jnp.float32) - 1  # [0, 1), in steps of 2^-23
    uniform = 2 * unit + (2.0**-23 - 1)  # centres of the steps: symmetric, and never -1 or 1
    return jnp.float32(math.sqrt(2)) * jax.lax.erf_inv(uniform)


def _bits(count: int, first: Array, second: Array) -> Array:
    """Random words [count] uint32: threefry-2x32 of 0, 1, 2, ... (Salmon et al. 2011)."""
    schedule = (first, second, first ^ second ^ jnp.uint32(0x1BD11BDA))
    x = jnp.arange((count + 1) // 2, dtype=jnp.uint32) + schedule[0]
    y = jnp.zeros_like(x) + schedule[1]
    for i in range(5):
        for rotation in _ROTATIONS[i % 2]:
            x = x + y
            y = x ^ ((y << rotation) | (y >> (32 - rotation)))
        x = x + schedule[(i + 1) % 3]
        y = y + schedule[(i + 2) % 3] + jnp.uint32(i + 1)
    return jnp.concatenate([x, y])[:count]
