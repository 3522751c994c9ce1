"""A DCGAN's discriminator (Radford et al., arXiv 1511.06434): strided convolutions.

Without the paper's batch norm, whose running statistics go neither with a gradient penalty for each
image nor with few data. A conditional one has a logit for each class.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from qdgs_jax.models.layers.convolutions import HalvingConv
from qdgs_jax.models.layers.discriminators import append_deviation, check_inputs
from qdgs_jax.models.precision import Precision, activation_dtype, matmul_precision, widen
from qdgs_jax.typing import Array, Key, Params


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """Sizes; the defaults are the paper's for 64 x 64 pixels, at half its width."""

    channels: tuple[int, ...] = (512, 256, 128, 64)
    """Channels at 4 x 4 pixels, at 8 x 8 pixels, and so on up to half the image's side, in the
    order of the generator's."""
    first_side: int = 4
    """Pixels a side in place of the first 4."""
    image_channels: int = 3
    """3 for RGB, 1 for grey."""
    label_size: int = 0
    """Classes of a conditional discriminator; 0 for an unconditional one."""
    group_size: int = 4
    """Images whose standard deviation the last layer sees; 1: it sees none."""

    @property
    def image_size(self) -> int:
        """Pixels a side."""
        return self.first_side * 2 ** len(self.channels)


class Discriminator(nn.Module):
    """4 x 4 convolutions that halve the side, then a linear map of all that is left."""

    config: DiscriminatorConfig

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """[N, H, W, C] -> logits [N, classes], or [N, 1] without classes."""
        x = images
        for i, features in reversed(list(enumerate(self.config.channels))):
            x = nn.leaky_relu(HalvingConv(features, name=f"down{i}")(x), 0.2)
        x = widen(x)
        if self.config.group_size > 1:
            x = append_deviation(x, self.config.group_size)
        return nn.Dense(max(self.config.label_size, 1), name="logits")(x.reshape(len(x), -1))


def init(config: DiscriminatorConfig, key: Key) -> Params:
    """Random weights."""
    images = jnp.zeros((1, config.image_size, config.image_size, config.image_channels))
    return jax.jit(Discriminator(config).init)(key, images)["params"]


def discriminate(
    config: DiscriminatorConfig,
    params: Params,
    images: Array,
    labels: Array | None = None,
    *,
    precision: Precision = "highest",
) -> Array:
    """Logits [N] of images being real, or real ones of their class; differentiable twice in reverse
    mode.

    An image's logit depends on the others of its group, see `append_deviation`.

    Args:
        config: The network's shape.
        params: Its weights.
        images: [N, H, W, C] in [-1, 1]; N is at most `group_size` or a multiple of it.
        labels: [N, label_size], one-hot; only for conditional networks.
        precision: Of convolutions and products. `highest`: float32 on every device. `default`:
            what the device prefers. `bf16`: kernels and activations in bfloat16, but the logits.

    Raises:
        ValueError: Images or labels have another shape, or labels are missing or superfluous.
    """
    check_inputs(config, images, labels)
    with matmul_precision(precision):
        images = images.astype(activation_dtype(precision) or images.dtype)
        logits = Discriminator(config).apply({"params": params}, images)
    return logits[:, 0] if labels is None else (logits * labels).sum(axis=-1)
