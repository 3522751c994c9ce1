"""CLIP in JAX."""

from qdgs_jax.models.clip.modeling import (
    CLIPConfig,
    TowerConfig,
    embed_images,
    embed_tokens,
    init,
)
from qdgs_jax.models.clip.params import load, save

__all__ = ["CLIPConfig", "TowerConfig", "embed_images", "embed_tokens", "init", "load", "save"]
