"""The generator of a DCGAN."""

from qdgs_jax.models.dcgan.modeling import DCGANConfig, generate, init
from qdgs_jax.models.dcgan.params import load

__all__ = ["DCGANConfig", "generate", "init", "load"]
