"""Fixtures shared by all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def programs_of_its_own() -> Iterator[None]:
    """Drops what a module compiled: XLA maps memory for each program, and a process may map 65,530
    times at most on Linux; beyond that the compiler crashes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder of goldens computed by the reference implementations, kept outside the project."""
    path = Path(os.environ.get("QDGS_REFERENCE", Path(__file__).parents[2] / "shared/reference"))
    if not path.is_dir():
        pytest.skip("reference goldens are absent: set QDGS_REFERENCE to their folder")
    return path
