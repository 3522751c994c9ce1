"""StyleGAN2's discriminator (Karras et al., arXiv 1912.04958; conditional as in arXiv 2006.06676).

Blocks of two 3 x 3 convolutions halve an image's sides down to 4 x 4. All weights have equalised
learning rates: variance 1, scaled when used.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from qdgs_jax.models.layers.convolutions import convolve
from qdgs_jax.models.layers.discriminators import append_deviation, check_inputs
from qdgs_jax.models.precision import Precision, activation_dtype, matmul_precision, widen
from qdgs_jax.models.stylegan2.modeling import Dense, clamp, leaky_relu, normalize
from qdgs_jax.models.stylegan2.resampling import down_convolve, downsample
from qdgs_jax.typing import Array, Key, Params


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """Everything about a discriminator but its weights; the defaults are usual for FFHQ at 256."""

    label_size: int = 0
    """Classes of a conditional discriminator; 0 for an unconditional one."""
    mapping_sizes: tuple[int, ...] = (512,) * 8
    """Outputs of the layers that map a label to the direction its logit is read along; unused
    without labels."""
    mapping_rate: float = 0.01
    """Learning rate multiplier of the mapping network."""
    channels: tuple[int, ...] = (512, 512, 512, 512, 256, 128, 64)
    """Feature maps at 4 x 4, 8 x 8, 16 x 16, ..., in the order of the generator's."""
    image_channels: int = 3
    architecture: Literal["resnet", "orig"] = "resnet"
    """Blocks are residual (resnet) or plain (orig)."""
    group_size: int = 4
    """Images whose standard deviation the last layers see; 1: they see none."""
    clamp: float | None = None
    """Limit of every activation, for networks trained in half precision."""
    filter_taps: tuple[float, float, float, float] = (0.125, 0.375, 0.375, 0.125)
    """The low-pass filter of downsampling, along either axis; its sum is one."""

    @property
    def image_size(self) -> int:
        """Pixels a side."""
        return 2 << len(self.channels)


class Convolution(nn.Module):
    """A convolution with bias and leaky ReLU: [N, H, W, C] -> [N, H, W, F], or of half the sides
    if it has the taps of a filter."""

    features: int
    size: int
    limit: float | None
    taps: tuple[float, float, float, float] | None = None
    gain: float = 1.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(1.0), shape)
        kernel = (kernel / math.sqrt(math.prod(shape[:3]))).astype(x.dtype)
        y = down_convolve(x, kernel, self.taps) if self.taps else convolve(x, kernel)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = leaky_relu(y + bias[None, None, None].astype(x.dtype), self.gain)
        return clamp(y, self.limit, self.gain)


class Block(nn.Module):
    """[N, H, W, C] -> [N, H / 2, W / 2, F]."""

    config: DiscriminatorConfig
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config, fan_in = self.config, x.shape[-1]
        residual = config.architecture == "resnet"
        gain = math.sqrt(0.5) if residual else 1.0
        y = Convolution(fan_in, 3, config.clamp, name="conv0")(x)
        y = Convolution(
            self.features, 3, config.clamp, config.filter_taps, gain, name="conv1"
        )(y)  # fmt: skip
        if residual:
            shape = (fan_in, self.features)
            kernel = self.param("shortcut", nn.initializers.normal(1.0), shape)
            kernel = kernel * (gain / math.sqrt(fan_in))
            y = y + downsample(x, config.filter_taps) @ kernel.astype(x.dtype)
        return y


class LabelMapping(nn.Module):
    """Labels [N, classes] -> directions [N, M]."""

    config: DiscriminatorConfig

    @nn.compact
    def __call__(self, labels: Array) -> Array:
        config = self.config
        x = normalize(Dense(config.mapping_sizes[-1], name="embedding")(labels))
        for i, size in enumerate(config.mapping_sizes):
            x = leaky_relu(Dense(size, config.mapping_rate, name=f"dense{i}")(x))
        return x


class Discriminator(nn.Module):
    """Images [N, H, W, C] and labels [N, classes] -> logits [N]."""

    config: DiscriminatorConfig

    @nn.compact
    def __call__(self, images: Array, labels: Array | None) -> Array:
        config = self.config
        *others, finest = config.channels
        x = Convolution(finest, 1, config.clamp, name="from_image")(images)
        for i, features in reversed(list(enumerate(others))):
            x = Block(config, features, name=f"block{8 << i}")(x)
        x = widen(x)
        if config.group_size > 1:
            x = append_deviation(x, config.group_size)
        x = Convolution(config.channels[0], 3, config.clamp, name="conv")(x)
        x = leaky_relu(Dense(config.channels[0], name="dense")(x.reshape(len(x), -1)))
        if labels is None:
            return Dense(1, name="logit")(x)[:, 0]
        directions = LabelMapping(config, name="mapping")(labels)
        x = Dense(directions.shape[-1], name="logit")(x)
        return (x * directions).sum(axis=-1) / math.sqrt(directions.shape[-1])


def init(config: DiscriminatorConfig, key: Key) -> Params:
    """Random float32 weights, distributed as at the start of a training."""
    images = jnp.zeros((1, config.image_size, config.image_size, config.image_channels))
    labels = jnp.zeros((1, config.label_size)) if config.label_size else None
    return jax.jit(Discriminator(config).init)(key, images, labels)["params"]


def discriminate(
    config: DiscriminatorConfig,
    params: Params,
    images: Array,
    labels: Array | None = None,
    *,
    precision: Precision = "highest",
) -> Array:
    """Logits [N] of images being real; differentiable twice in reverse mode.

    An image's logit depends on the others of its group, see `append_deviation`.

    Args:
        config: The network's shape.
        params: Its weights.
        images: [N, H, W, C] in [-1, 1]; N is at most `group_size` or a multiple of it.
        labels: [N, label_size], one-hot; only for conditional networks.
        precision: As `synthesize` has it. `bf16`: the layers at 4 x 4 pixels stay in float32.

    Raises:
        ValueError: Images or labels have another shape, or labels are missing or superfluous.
    """
    check_inputs(config, images, labels)
    with matmul_precision(precision):
        images = images.astype(activation_dtype(precision) or images.dtype)
        return Discriminator(config).apply({"params": params}, images, labels)
