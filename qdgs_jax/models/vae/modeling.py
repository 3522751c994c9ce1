"""The shapes VAE: a small convolutional VAE of images on a white ground (QDGS, shapes domain)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from qdgs_jax.models.layers.convolutions import StridedConv, TransposedConv
from qdgs_jax.typing import Array, Images, Key, Latents, Params


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Sizes; the defaults are the paper's."""

    latent_size: int = 6
    image_size: int = 128
    """Pixels a side, a multiple of 8."""
    channels: tuple[int, int, int] = (16, 32, 32)
    """Channels of the encoder from the image inwards; the decoder mirrors them."""


class Encoder(nn.Module):
    """Three strided convolutions, then mean and log-variance by two linear maps."""

    config: VAEConfig

    @nn.compact
    def __call__(self, images: Images) -> tuple[Array, Array]:
        x = images
        for i, features in enumerate(self.config.channels, start=1):
            x = nn.relu(StridedConv(features, name=f"conv{i}")(x))
        x = x.reshape(len(x), -1)
        size = self.config.latent_size
        return nn.Dense(size, name="fc_mu")(x), nn.Dense(size, name="fc_logvar")(x)


class Decoder(nn.Module):
    """A linear map to 1/8 of the image's side, then three transposed convolutions."""

    config: VAEConfig

    @nn.compact
    def __call__(self, latents: Latents) -> Images:
        outer, middle, inner = self.config.channels
        side = self.config.image_size // 8
        x = nn.relu(nn.Dense(side * side * inner, name="fc1")(latents))
        x = x.reshape(len(x), side, side, inner)
        x = TransposedConv(middle, nn.relu, name="convT1")(x)
        x = TransposedConv(outer, nn.relu, name="convT2")(x)
        return TransposedConv(3, nn.sigmoid, name="convT3")(x)


def init(config: VAEConfig, key: Key) -> Params:
    """Random weights: {"encoder": ..., "decoder": ...}."""
    encoder_key, decoder_key = jax.random.split(key)
    images = jnp.zeros((1, config.image_size, config.image_size, 3))
    latents = jnp.zeros((1, config.latent_size))
    return {
        "encoder": jax.jit(Encoder(config).init)(encoder_key, images)["params"],
        "decoder": jax.jit(Decoder(config).init)(decoder_key, latents)["params"],
    }


def encode(config: VAEConfig, params: Params, images: Images) -> tuple[Array, Array]:
    """Images [N, H, W, 3] in [0, 1] -> mean [N, D] and log-variance [N, D] of their latents."""
    return Encoder(config).apply({"params": params["encoder"]}, images)


def decode(config: VAEConfig, params: Params, latents: Latents) -> Images:
    """Latents [N, D], standard normal a priori -> images [N, H, W, 3] in [0, 1]."""
    return Decoder(config).apply({"params": params["decoder"]}, latents)
