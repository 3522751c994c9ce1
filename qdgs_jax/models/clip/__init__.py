"""CLIP in JAX: images and texts in one embedding space.

    from qdgs_jax.models import clip

    config, params = clip.load("openai/clip-vit-base-patch32")  # or a folder, or a file
    pixel_values = (images - jnp.array(config.pixel_mean)) / jnp.array(config.pixel_std)
    embeddings = clip.embed_images(config, params, pixel_values)  # [N, E], not of unit norm
    texts = clip.embed_tokens(config, params, input_ids)  # [N, E], from the model's own tokenizer

Weights are arguments: `jax.jit(functools.partial(clip.embed_images, config))` takes them, and
`jax.grad` reaches the pixels. Files are read without PyTorch, and nothing in them is executed.

CLIP's model card puts any deployed use of the model out of scope, and all use for face recognition
and surveillance, whatever its performance. The same applies to embeddings computed here.
"""

from qdgs_jax.models.clip import tokenizer
from qdgs_jax.models.clip.modeling import (
    LEGACY_EOS,
    CLIPConfig,
    embed_images,
    embed_tokens,
    init,
)
from qdgs_jax.models.clip.params import load, save
from qdgs_jax.models.layers.transformer import TowerConfig

__all__ = [
    "LEGACY_EOS",
    "CLIPConfig",
    "TowerConfig",
    "embed_images",
    "embed_tokens",
    "init",
    "load",
    "save",
    "tokenizer",
]
