"""A small SigLIP with what transformers makes of it; see make_golden.py."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdgs_jax.models import siglip

TINY = Path(__file__).parent / "tiny"


@pytest.fixture(scope="session")
def golden() -> Any:
    return np.load(TINY / "golden.npz")


@pytest.fixture(scope="session")
def loaded() -> tuple[siglip.SigLIPConfig, Any]:
    return siglip.load(TINY)
