"""IResNets: networks that recognise faces.

Train them on synthetic people, or on people who agreed. Terms of use of FFHQ forbid to develop face
recognition with its images, and CLIP's model card puts that out of its scope.
"""

from qdgs_jax.models.iresnet.modeling import (
    BLOCKS,
    IResNetConfig,
    embed,
    embed_in_training,
    init,
)
from qdgs_jax.models.iresnet.params import load, save

__all__ = ["BLOCKS", "IResNetConfig", "embed", "embed_in_training", "init", "load", "save"]
