"""Fingerprints: any number that changes or moves changes them."""

import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax.runs.fingerprints import fingerprints


def reference(array: np.ndarray) -> int:
    """murmur3's finaliser in Python's integers."""
    total = 0
    unsigned = array.view(f"u{min(array.itemsize, 4)}").ravel().tolist()
    for position, bits in enumerate(unsigned):
        mixed = (bits + position * 0x9E3779B1) % 2**32
        mixed = (mixed ^ mixed >> 16) * 0x85EBCA6B % 2**32
        mixed = (mixed ^ mixed >> 13) * 0xC2B2AE35 % 2**32
        total += mixed ^ mixed >> 16
    return total % 2**32


@pytest.mark.parametrize("dtype", ["bool", "int8", "float16", "float32", "int32"])
def test_they_are_sums_of_hashes_in_the_order_of_names(dtype: str) -> None:
    numbers = np.random.default_rng(0).integers(0, 100, (3, 4, 5)).astype(dtype)
    found = fingerprints({"b": jnp.asarray(numbers), "a": jnp.zeros((), dtype)})
    assert found.tolist() == [reference(np.zeros((), dtype)), reference(numbers)]


def test_what_changes_or_moves_is_noticed() -> None:
    numbers = np.random.default_rng(0).normal(size=(6, 7)).astype(np.float32)
    negated, swapped, cleared = numbers.copy(), numbers.copy(), numbers.copy()
    negated[:2] *= -1  # an even number of equal changes of one bit
    swapped[[0, 1]] = swapped[[1, 0]]
    cleared[3, 3] = np.nextafter(cleared[3, 3], np.float32(9))
    arrays = dict(zip("abcd", map(jnp.asarray, (numbers, negated, swapped, cleared)), strict=True))
    assert len(set(fingerprints(arrays).tolist())) == 4
