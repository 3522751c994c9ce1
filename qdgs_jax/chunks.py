"""Batches in chunks, which bound the memory that a batch takes."""

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
