"""A CLIP small enough for milliseconds."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax.models import clip


@pytest.fixture(scope="session")
def config() -> clip.CLIPConfig:
    return clip.CLIPConfig(
        vision=clip.TowerConfig(width=24, layers=2, heads=3, mlp_width=40),
        text=clip.TowerConfig(width=16, layers=1, heads=2, mlp_width=28),
        embedding_size=12,
        image_size=16,
        patch_size=4,
        context_length=7,
        vocabulary_size=30,
    )


@pytest.fixture(scope="session")
def params(config: clip.CLIPConfig) -> Any:
    """Weights larger than `init` draws them, without compiling its program."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(partial(clip.init, config), jax.random.key(0))
    return jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(0.1, 0.3, leaf.shape), jnp.float32), shapes
    )


@pytest.fixture(scope="session")
def pixel_values() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(3, 16, 16, 3)).astype(np.float32)
