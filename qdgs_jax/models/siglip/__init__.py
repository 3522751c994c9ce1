"""SigLIP in JAX: images and texts in one embedding space.

    from qdgs_jax.models import siglip

    config, params = siglip.load("google/siglip2-base-patch16-224")  # or a folder
    pixel_values = (images - jnp.array(config.pixel_mean)) / jnp.array(config.pixel_std)
    embeddings = siglip.embed_images(config, params, pixel_values)  # [N, E], not of unit norm
    texts = siglip.embed_tokens(config, params, input_ids)  # [N, E], ids padded to [N, 64]

Weights are arguments, files are read without PyTorch, and nothing in them is executed.
"""

from qdgs_jax.models.siglip import tokenizer
from qdgs_jax.models.siglip.modeling import SigLIPConfig, embed_images, embed_tokens, init
from qdgs_jax.models.siglip.params import load

__all__ = ["SigLIPConfig", "embed_images", "embed_tokens", "init", "load", "tokenizer"]
