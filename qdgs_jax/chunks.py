"""Batches in chunks, which bound the memory that a batch takes; and what a device has of it."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from qdgs_jax.typing import Array


def in_chunks(function: Callable[..., Any], chunk_size: int) -> Callable[..., Any]:
    """Maps `function`, batched over the first axis of all arrays, over at most `chunk_size` rows.

    It is compiled for one size only: all chunks have equal sizes, and the last row is repeated to
    fill them.
    """

    def chunked(*arrays: Array) -> Any:
        count = len(arrays[0])
        chunks = -(-count // chunk_size)
        if chunks <= 1:
            return function(*arrays)
        size = -(-count // chunks)
        rows = jnp.minimum(jnp.arange(size * chunks), count - 1)

        def split(array: Array) -> Array:
            # Row i goes to chunk i % chunks, so that each chunk of a batch that is sharded over
            # devices lies on all of them; a gather, where not needed, would undo the sharding.
            padded = array if count == size * chunks else array[rows]
            return padded.reshape(size, chunks, *array.shape[1:]).swapaxes(0, 1)

        def join(array: Array) -> Array:
            return array.swapaxes(0, 1).reshape(size * chunks, *array.shape[2:])[:count]

        results = jax.lax.map(lambda chunk: function(*chunk), tuple(map(split, arrays)))
        return jax.tree.map(join, results)

    return chunked


def bytes_of(make: Callable[[], Any]) -> int:
    """Bytes of the arrays that a function would return; it is traced, not run."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(make)))


def device_memory() -> int:
    """Bytes of the first device's memory; of the machine's, where the device does not tell."""
    stats = jax.devices()[0].memory_stats() or {}
    known = stats.get("bytes_limit")
    return known or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
