"""Random keys: one stream for each purpose, and one key for each sample.

`split(key, n)[i]` equals `fold_in(key, i)`, so that two purposes that both begin with a seed's own
key may draw the same numbers. Names keep them apart.
"""

import zlib

import jax
import jax.numpy as jnp

from qdgs_jax.typing import Array, Key


def make_key(seed: int | Array, purpose: str) -> Key:
    """The key of a seed for one purpose, such as "crops of random samples".

    Args:
        seed: in [0, 2^32).
        purpose: different texts give unrelated keys.
    """
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))


def row_keys(key: Key, start: int | Array, count: int) -> Key:
    """The keys [count] of the samples from number `start` on, however many are made at once."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(start + jnp.arange(count))
