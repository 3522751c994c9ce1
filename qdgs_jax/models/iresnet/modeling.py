"""IResNets: ArcFace's improved residual networks (Deng et al. 2019, arXiv 1801.07698).

Weights are {"params": ..., "batch_stats": ...}: what is trained, and the running statistics of the
batch norms.
"""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from qdgs_jax.models.layers.batch_norm import BatchNorm
from qdgs_jax.models.layers.convolutions import convolve, convolve_strided
from qdgs_jax.models.precision import Precision, activation_dtype, matmul_precision, widen
from qdgs_jax.typing import Array, Images, Key, Params

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 101: (3, 13, 30, 3)}
"""Depth, as in the names IR-18 to IR-101 -> blocks of each stage."""

_INIT = nn.initializers.zeros  # `init` draws the kernels


@dataclasses.dataclass(frozen=True)
class IResNetConfig:
    """Sizes; the defaults are an IR-18's."""

    blocks: tuple[int, ...] = BLOCKS[18]
    """Blocks of each stage, which halves the side."""
    channels: tuple[int, ...] = (64, 128, 256, 512)
    """Channels of each stage."""
    image_size: int = 112
    """Pixels a side."""
    embedding_size: int = 512
    dropout: float = 0.4
    """Fraction of the last stage's values that training sets to 0."""
    insightface: bool = False
    """InsightFace's variant: a 1 x 1 convolution in the first shortcut of every stage, and scale
    and bias of the embeddings' batch norm. AdaFace's has neither where channels stay."""


class Convolution(nn.Module):
    """A 1 x 1 or 3 x 3 convolution without bias, of stride 1 or 2."""

    features: int
    size: int = 3
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", _INIT, shape).astype(x.dtype)
        if self.size == 1:
            return x[:, :: self.stride, :: self.stride] @ kernel[0, 0]
        return convolve(x, kernel) if self.stride == 1 else convolve_strided(x, kernel)


class PReLU(nn.Module):
    """x where it is positive, else x times a slope of its channel (He et al., arXiv 1502.01852)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        slope = self.param("slope", nn.initializers.constant(0.25), x.shape[-1:]).astype(x.dtype)
        return jnp.where(x > 0, x, jnp.expand_dims(slope, tuple(range(x.ndim - 1))) * x)


class Block(nn.Module):
    """A residual block: [N, H, W, C] -> [N, H / stride, W / stride, features], rounded up."""

    features: int
    stride: int
    projected: bool
    """Whether the shortcut is a 1 x 1 convolution, not a choice of pixels."""
    train: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shortcut = x[:, :: self.stride, :: self.stride]
        if self.projected:
            shortcut = Convolution(self.features, size=1, name="shortcut")(shortcut)
            shortcut = BatchNorm(self.train, name="shortcut_norm")(shortcut)
        x = BatchNorm(self.train, name="norm1")(x)
        x = Convolution(self.features, name="conv1")(x)
        x = PReLU(name="prelu")(BatchNorm(self.train, name="norm2")(x))
        x = Convolution(self.features, stride=self.stride, name="conv2")(x)
        return BatchNorm(self.train, name="norm3")(x) + shortcut


class IResNet(nn.Module):
    """Images [N, H, W, 3] in [0, 1] -> embeddings [N, E]."""

    config: IResNetConfig
    train: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: Images) -> Array:
        config, train = self.config, self.train
        x = (2 * images - 1).astype(self.dtype or images.dtype)
        x = Convolution(config.channels[0], name="stem")(x)
        x = PReLU(name="stem_prelu")(BatchNorm(train, name="stem_norm")(x))
        for stage, (count, features) in enumerate(
            zip(config.blocks, config.channels, strict=True), start=1
        ):
            for i in range(count):
                projected = i == 0 and (config.insightface or features != x.shape[-1])
                block = Block(features, 1 if i else 2, projected, train, name=f"stage{stage}_{i}")
                x = block(x)
        x = BatchNorm(train, name="norm")(x)
        x = nn.Dropout(config.dropout, deterministic=not train)(x)
        dense = nn.Dense(config.embedding_size, dtype=self.dtype, kernel_init=_INIT, name="dense")
        x = widen(dense(x.reshape(len(x), -1)))
        return BatchNorm(train, affine=config.insightface, name="dense_norm")(x)


@functools.partial(jax.jit, static_argnums=0)
def init(config: IResNetConfig, key: Key) -> Params:
    """Random float32 weights, with batch statistics of mean 0 and variance 1.

    Kernels are normal with variance 2 / fan-out (He et al., arXiv 1502.01852).
    """
    # All are drawn at once: to compile a generator of random numbers for each takes minutes.
    images = jnp.zeros((1, config.image_size, config.image_size, 3))
    leaves, structure = jax.tree.flatten(IResNet(config).init(key, images))
    ends = np.cumsum([leaf.size if leaf.ndim > 1 else 0 for leaf in leaves])
    normals = jax.random.normal(key, (int(ends[-1]),))
    for i, (leaf, end) in enumerate(zip(leaves, ends, strict=True)):
        if leaf.ndim > 1:
            fan_out = leaf.size // leaf.shape[-2]
            drawn = normals[end - leaf.size : end].reshape(leaf.shape)
            leaves[i] = math.sqrt(2 / fan_out) * drawn
    return jax.tree.unflatten(structure, leaves)


def embed(
    config: IResNetConfig, params: Params, images: Images, *, precision: Precision = "highest"
) -> Array:
    """Embeds faces by the running statistics; differentiable.

    Args:
        config: the network's shape.
        params: its weights.
        images: [N, image_size, image_size, 3], RGB in [0, 1], aligned as those of its training.
        precision: see `qdgs_jax.models.clip.embed_images`.

    Returns:
        [N, E] float32, not of unit norm: the norm grows with the quality of the image.
    """
    with matmul_precision(precision):
        return IResNet(config, dtype=activation_dtype(precision)).apply(params, images)


def embed_in_training(
    config: IResNetConfig,
    params: Params,
    key: Key,
    images: Images,
    *,
    precision: Precision = "highest",
) -> tuple[Array, Params]:
    """Embeds faces by the statistics of their batch, with dropout.

    Args:
        key: of the dropout.

    Returns:
        [N, E] float32 as `embed` returns them, and the updated branch "batch_stats" of the weights.
    """
    with matmul_precision(precision):
        network = IResNet(config, train=True, dtype=activation_dtype(precision))
        embeddings, updated = network.apply(
            params, images, rngs={"dropout": key}, mutable=["batch_stats"]
        )
    return embeddings, updated["batch_stats"]
