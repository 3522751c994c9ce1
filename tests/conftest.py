"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder of goldens computed by the reference implementations, kept outside the project."""
    path = Path(os.environ.get("QDGS_REFERENCE", Path(__file__).parents[2] / "shared/reference"))
    if not path.is_dir():
        pytest.skip("reference goldens are absent: set QDGS_REFERENCE to their folder")
    return path
