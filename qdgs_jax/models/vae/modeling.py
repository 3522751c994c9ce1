"""The shapes VAE: a small convolutional autoencoder of images on white (QDGS, shapes domain)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

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
        x = nn.relu(TransposedConv(middle, name="convT1")(x))
        x = nn.relu(TransposedConv(outer, name="convT2")(x))
        return nn.sigmoid(TransposedConv(3, name="convT3")(x))


class StridedConv(nn.Module):
    """A 3 x 3 convolution of stride 2 and padding 1."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel, bias = _weights(self, 3, x.shape[-1], self.features)
        return _columns(x, size=3, stride=2) @ kernel.reshape(-1, self.features) + bias


class TransposedConv(nn.Module):
    """A 4 x 4 transposed convolution of stride 2 and padding 1 (PyTorch's convention).

    Along one axis, output 2i-1 is x[i-1] k[2] + x[i] k[0], output 2i is x[i-1] k[3] + x[i] k[1].
    So a product with 2 x 2 windows gives the four phases of each 2 x 2 block of outputs.
    """

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        n, height, width, channels = x.shape
        kernel, bias = _weights(self, 4, channels, self.features)
        taps = np.array([[2, 3], [0, 1]])  # [input x[i-1] or x[i], output 2i-1 or 2i]
        # [a, b, C, p, q, F]: input offsets a, b; output phases p, q
        phases = kernel[taps[:, None, :, None], taps[None, :, None, :]].transpose(0, 1, 4, 2, 3, 5)
        y = _columns(x, size=2, stride=1) @ phases.reshape(4 * channels, 4 * self.features)
        y = y.reshape(n, height + 1, width + 1, 2, 2, self.features)
        y = y.transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * height + 2, 2 * width + 2, self.features)
        return y[:, 1:-1, 1:-1] + bias


def _weights(module: nn.Module, size: int, n_in: int, n_out: int) -> tuple[Array, Array]:
    kernel = module.param("kernel", nn.initializers.lecun_normal(), (size, size, n_in, n_out))
    return kernel, module.param("bias", nn.initializers.zeros, (n_out,))


def _columns(x: Array, *, size: int, stride: int) -> Array:
    """Windows [N, H', W', size * size * C] of x [N, H, W, C] padded by 1.

    Products with windows in place of XLA's convolutions: inside a `lax.scan` on CPU, where searches
    and trainings run, their gradients are 2 (inputs) to 5 times (kernels) as fast.
    """
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = (length - size + 1 for length in x.shape[1:3])
    windows = [
        x[:, a : a + rows : stride, b : b + columns : stride]
        for a in range(size)
        for b in range(size)
    ]
    return jnp.concatenate(windows, axis=-1)


def init(config: VAEConfig, key: Key) -> Params:
    """Random weights: {"encoder": ..., "decoder": ...}."""
    encoder_key, decoder_key = jax.random.split(key)
    images = jnp.zeros((1, config.image_size, config.image_size, 3))
    return {
        "encoder": Encoder(config).init(encoder_key, images)["params"],
        "decoder": Decoder(config).init(decoder_key, jnp.zeros((1, config.latent_size)))["params"],
    }


def encode(config: VAEConfig, params: Params, images: Images) -> tuple[Array, Array]:
    """Images [N, H, W, 3] in [0, 1] -> mean [N, D] and log-variance [N, D] of their latents."""
    return Encoder(config).apply({"params": params["encoder"]}, images)


def decode(config: VAEConfig, params: Params, latents: Latents) -> Images:
    """Latents [N, D], standard normal a priori -> images [N, H, W, 3] in [0, 1]."""
    return Decoder(config).apply({"params": params["decoder"]}, latents)
