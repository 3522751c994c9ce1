"""IResNets: networks that recognise faces."""

from qdgs_jax.models.iresnet.modeling import (
    BLOCKS,
    IResNetConfig,
    embed,
    embed_in_training,
    init,
)
from qdgs_jax.models.iresnet.params import load, save

__all__ = ["BLOCKS", "IResNetConfig", "embed", "embed_in_training", "init", "load", "save"]
