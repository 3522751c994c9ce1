"""Chunks change memory and nothing else."""

import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax.chunks import in_chunks


@pytest.mark.parametrize(
    ("count", "size"), [(9, 3), (8, 4), (7, 4), (4, 4), (3, 3), (1, 1), (0, 0)]
)
def test_chunks_are_equal_no_larger_than_asked_and_compiled_once(count: int, size: int) -> None:
    sizes = []

    def function(x, y):
        sizes.append(len(x))
        return x + 1, {"product": x[:, None] * y}

    x, y = jnp.arange(count), jnp.arange(2 * count).reshape(count, 2)
    total, rest = in_chunks(function, 4)(x, y)
    np.testing.assert_array_equal(total, np.arange(count) + 1)
    np.testing.assert_array_equal(rest["product"], np.asarray(x)[:, None] * np.asarray(y))
    assert sizes == [size]
