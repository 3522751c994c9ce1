"""Fingerprints of arrays: what shows that a number has changed, on any mesh."""

import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from qdgs_jax.typing import Array


def fingerprints(arrays: Mapping[str, Array]) -> Array:
    """Fingerprints [A] uint32 of named arrays, in the order of their names.

    They depend on bits and positions alone, not on the sharding. A single element that changes
    always changes its array's fingerprint; any other change, but for one in 2^32.
    """
    return _program(common_sharding(arrays))(arrays)


def common_sharding(arrays: Mapping[str, Array | jax.ShapeDtypeStruct]) -> Sharding:
    """A sharding that repeats an array on all devices that these arrays, all on one mesh, use."""
    shardings = [array.sharding for _, array in sorted(arrays.items())]
    for sharding in shardings:
        if isinstance(sharding, NamedSharding):
            return NamedSharding(sharding.mesh, PartitionSpec())
    return shardings[0]


@functools.cache
def _program(everywhere: Sharding) -> Callable[[Mapping[str, Array]], Array]:
    return jax.jit(
        lambda arrays: jnp.stack([_fingerprint(arrays[name]) for name in sorted(arrays)]),
        out_shardings=everywhere,
    )


def _fingerprint(array: Array) -> Array:
    """The sum of murmur3's finaliser, a bijection, over bits plus hashed positions, mod 2^32.

    Source: github.com/aappleby/smhasher, MurmurHash3.cpp (`fmix32`).
    """
    if array.dtype == bool:
        array = array.astype(jnp.uint8)
    width = min(array.dtype.itemsize, 4)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[width]
    bits = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    position = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        stride = math.prod(bits.shape[axis + 1 :]) % 2**32
        index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        position += index * np.uint32(stride)
    bits += position * np.uint32(0x9E3779B1)
    bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
    return (bits ^ (bits >> 16)).sum(dtype=jnp.uint32)
