"""The generator of a DCGAN."""

from qdgs_jax.models.dcgan.modeling import DCGANConfig, generate, init
from qdgs_jax.models.dcgan.params import LAYOUT, find, load, save

__all__ = ["LAYOUT", "DCGANConfig", "find", "generate", "init", "load", "save"]
