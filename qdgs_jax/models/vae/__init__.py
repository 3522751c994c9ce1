"""The shapes VAE."""

from qdgs_jax.models.vae.modeling import VAEConfig, decode, encode, init
from qdgs_jax.models.vae.params import load, save

__all__ = ["VAEConfig", "decode", "encode", "init", "load", "save"]
