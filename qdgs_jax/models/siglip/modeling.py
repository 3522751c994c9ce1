"""SigLIP (Zhai et al. 2023, arXiv 2303.15343): an image and a text tower with one embedding space.

Both are pre-norm transformers without masks. An image's embedding is what one learned query
attends to, a text's is read at the last of its tokens, which pad it to a fixed length. The models
of SigLIP 2 (Tschannen et al. 2025, arXiv 2502.14786) that read one image size are the same
networks. Axes: N batch, T tokens, C width, E embedding.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from qdgs_jax.models.layers.transformer import (
    Attention,
    Block,
    TowerConfig,
    dense,
    feed_forward,
    norm,
    patches,
)
from qdgs_jax.models.precision import Precision, activation_dtype, matmul_precision, widen
from qdgs_jax.typing import Array, Key, Params

_BASE = TowerConfig(768, 12, 12, 3072, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)


@dataclasses.dataclass(frozen=True)
class SigLIPConfig:
    """Everything about a SigLIP but its weights; the defaults are those of ViT-B/16."""

    vision: TowerConfig = _BASE
    """Its width is also that of embeddings, E."""
    text: TowerConfig = _BASE
    image_size: int = 224
    patch_size: int = 16
    """The last pixels of images of which it is no divisor are not read: 384 - 27 * 14 = 6."""
    context_length: int = 64
    vocabulary_size: int = 32000
    pixel_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    pixel_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if self.image_size < self.patch_size:
            raise ValueError(f"image_size {self.image_size} is below patch_size {self.patch_size}")


class AttentionPooling(nn.Module):
    """One learned query's attention to tokens [N, T, C], and an MLP: -> [N, C]."""

    config: TowerConfig
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = self.config.width
        probe = self.param("probe", nn.initializers.normal(width**-0.5), (width,))
        queries = jnp.broadcast_to(probe.astype(x.dtype), (len(x), 1, width))
        attention = Attention(self.config, causal=False, dtype=self.dtype, name="attention")
        return feed_forward(self.config, self.dtype, attention(queries, x))[:, 0]


class VisionTower(nn.Module):
    """Normalised pixels [N, H, W, 3] -> [N, E]."""

    config: SigLIPConfig
    dtype: Any = None

    @nn.compact
    def __call__(self, pixel_values: Array) -> Array:
        config, tower = self.config, self.config.vision
        x = patches(pixel_values, config.patch_size)
        x = dense(self.dtype)(tower.width, 0.02, name="patch_embedding")(x)
        normal = nn.initializers.normal(tower.width**-0.5)
        position = self.param("position_embedding", normal, x.shape[1:])
        x = x + position[None].astype(x.dtype)
        for i in range(tower.layers):
            x = Block(tower, causal=False, dtype=self.dtype, name=f"block{i}")(x)
        x = norm(tower, self.dtype, "norm_post")(x)
        return AttentionPooling(tower, self.dtype, name="pooling")(x)


class TextTower(nn.Module):
    """Token ids [N, T] -> [N, E]."""

    config: SigLIPConfig
    dtype: Any = None

    @nn.compact
    def __call__(self, input_ids: Array) -> Array:
        config, tower = self.config, self.config.text
        normal = nn.initializers.normal(tower.width**-0.5)
        x = nn.Embed(
            config.vocabulary_size,
            tower.width,
            embedding_init=normal,
            dtype=self.dtype,
            name="token_embedding",
        )(input_ids)
        position = self.param("position_embedding", normal, (config.context_length, tower.width))
        x = x + position[None].astype(x.dtype)
        for i in range(tower.layers):
            x = Block(tower, causal=False, dtype=self.dtype, name=f"block{i}")(x)
        last = norm(tower, self.dtype, "norm_post")(x[:, -1])
        return dense(self.dtype)(config.vision.width, tower.width**-0.5, name="projection")(last)


class SigLIP(nn.Module):
    """The two towers, and scale and bias of the logits of pairs, which are trained with them."""

    config: SigLIPConfig
    dtype: Any = None

    def setup(self) -> None:
        self.vision = VisionTower(self.config, self.dtype)
        self.text = TextTower(self.config, self.dtype)
        constant = nn.initializers.constant
        self.logit_scale = self.param("logit_scale", constant(math.log(10)), (1,))
        self.logit_bias = self.param("logit_bias", constant(-10.0), (1,))

    def __call__(self, pixel_values: Array, input_ids: Array) -> tuple[Array, Array]:
        return self.vision(pixel_values), self.text(input_ids)


def init(config: SigLIPConfig, key: Key) -> Params:
    """Random float32 weights, with the scale and bias of the start of SigLIP's training.

    The tree has the branches `vision` and `text`, and the leaves `logit_scale` and `logit_bias` of
    one number: image and text of unit embeddings x and y belong together with probability
    sigmoid(exp(logit_scale) x . y + logit_bias).
    """
    pixel_values = jnp.zeros((1, config.image_size, config.image_size, 3))
    input_ids = jnp.zeros((1, config.context_length), jnp.int32)
    return jax.jit(SigLIP(config).init)(key, pixel_values, input_ids)["params"]


def embed_images(
    config: SigLIPConfig, params: Params, pixel_values: Array, *, precision: Precision = "highest"
) -> Array:
    """Embed images; differentiable.

    Args:
        config: The network's shape.
        params: Its weights.
        pixel_values: [N, image_size, image_size, 3], RGB in [0, 1] less `pixel_mean`, divided by
            `pixel_std`.
        precision: Of matrix products; see `qdgs_jax.models.clip.embed_images`.

    Returns:
        [N, E] float32, not of unit norm.

    Raises:
        ValueError: The images have another shape.
    """
    size = config.image_size
    if pixel_values.shape[1:] != (size, size, 3):
        raise ValueError(
            f"images are {pixel_values.shape}, this SigLIP takes [N, {size}, {size}, 3]"
        )
    with matmul_precision(precision):
        tower = VisionTower(config, activation_dtype(precision))
        return widen(tower.apply({"params": params["vision"]}, pixel_values))


def embed_tokens(
    config: SigLIPConfig, params: Params, input_ids: Array, *, precision: Precision = "highest"
) -> Array:
    """Embed texts.

    Args:
        config: The network's shape.
        params: Its weights.
        input_ids: [N, context_length] integers: a text, its end, and the tokenizer's padding, which
            is read too.
        precision: See `embed_images`.

    Returns:
        [N, E] float32, not of unit norm.

    Raises:
        ValueError: The texts have another length.
    """
    if input_ids.shape[1] != config.context_length:
        raise ValueError(
            f"texts of {input_ids.shape[1]} tokens: this SigLIP takes {config.context_length}"
        )
    with matmul_precision(precision):
        tower = TextTower(config, activation_dtype(precision))
        return widen(tower.apply({"params": params["text"]}, input_ids))
