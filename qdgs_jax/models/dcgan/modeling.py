"""The generator of a DCGAN (Radford et al., arXiv 1511.06434), of transposed convolutions.

Batch norms have fixed statistics here. Each is an affine map, and `params.load` folds it into the
convolution before it.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from qdgs_jax.models.layers.convolutions import TransposedConv
from qdgs_jax.typing import Images, Key, Latents, Params


@dataclasses.dataclass(frozen=True)
class DCGANConfig:
    """Sizes; the defaults are the paper's for 64 x 64 pixels, at half its width."""

    latent_size: int = 100
    channels: tuple[int, ...] = (512, 256, 128, 64)
    """Channels at 4 x 4 pixels, at 8 x 8 pixels, and so on up to half the image's side."""
    first_side: int = 4
    """Pixels a side in place of the first 4."""
    image_channels: int = 3
    """3 for RGB, 1 for grey."""

    @property
    def image_size(self) -> int:
        """Pixels a side."""
        return self.first_side * 2 ** len(self.channels)


class Generator(nn.Module):
    """A linear map to the first pixels, then transposed convolutions that double the side."""

    config: DCGANConfig

    @nn.compact
    def __call__(self, latents: Latents) -> Images:
        first, *others = self.config.channels
        side, end = self.config.first_side, len(self.config.channels)
        x = nn.Dense(side * side * first, name="project")(latents)
        x = nn.relu(x.reshape(len(x), side, side, first))
        for i, features in enumerate(others, start=1):
            x = TransposedConv(features, nn.relu, name=f"up{i}")(x)
        return TransposedConv(self.config.image_channels, jnp.tanh, name=f"up{end}")(x)


def init(config: DCGANConfig, key: Key) -> Params:
    """Random weights."""
    return jax.jit(Generator(config).init)(key, jnp.zeros((1, config.latent_size)))["params"]


def generate(config: DCGANConfig, params: Params, latents: Latents) -> Images:
    """Latents [N, D], standard normal a priori -> images [N, H, W, 1 or 3] in [0, 1]."""
    return (Generator(config).apply({"params": params}, latents) + 1) / 2
