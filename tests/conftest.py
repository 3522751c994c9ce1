"""Fixtures shared by all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest


@pytest.fixture(scope="session", autouse=True)
def programs_on_disk(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keeps what is compiled, for tests that compile the same again."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("programs")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


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
