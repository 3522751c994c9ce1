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
    fill them. Arguments and results may be pytrees.
    """

    def chunked(*rows: Any) -> Any:
        count = len(jax.tree.leaves(rows)[0])
        chunks = -(-count // chunk_size)
        if chunks <= 1:
            return function(*rows)
        size = -(-count // chunks)
        index = jnp.minimum(jnp.arange(size * chunks), count - 1)

        def split(leaf: Array) -> Array:
            padded = leaf if count == size * chunks else leaf[index]
            return padded.reshape(chunks, size, *leaf.shape[1:])

        def join(leaf: Array) -> Array:
            return leaf.reshape(size * chunks, *leaf.shape[2:])[:count]

        results = jax.lax.map(lambda chunk: function(*chunk), jax.tree.map(split, rows))
        return jax.tree.map(join, results)

    return chunked


def bytes_of(make: Callable[[], Any]) -> int:
    """Bytes of the arrays that a function would return; it is traced, not run."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(make)))


def device_memory() -> int:
    """Bytes of this process's first device; of the machine, a share, if the device tells none."""
    stats = jax.local_devices()[0].memory_stats() or {}
    known = stats.get("bytes_limit")
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return known or machine // jax.local_device_count()


def program_memory(program: jax.stages.Compiled) -> int:
    """Bytes that each device holds while a compiled program runs."""
    found: Any = program.memory_analysis()
    held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return int(held + found.temp_size_in_bytes + found.generated_code_size_in_bytes)
