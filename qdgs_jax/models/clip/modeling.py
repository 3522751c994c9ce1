"""CLIP (Radford et al. 2021): an image tower and a text tower with one embedding space.

Both are pre-norm transformers. Axes: N batch, T tokens, C width, E embedding.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from qdgs_jax.models.layers.transformer import Block, TowerConfig, dense, norm, patches
from qdgs_jax.models.precision import Precision, activation_dtype, matmul_precision, widen
from qdgs_jax.typing import Array, Key, Params

LEGACY_EOS = 2
"""OpenAI's configs have this id by mistake; it means that the highest id of a text ends it."""


_VISION = TowerConfig(width=768, layers=12, heads=12, mlp_width=3072)
_TEXT = TowerConfig(width=512, layers=12, heads=8, mlp_width=2048)


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Everything about a CLIP but its weights; the defaults are OpenAI's ViT-B/32."""

    vision: TowerConfig = _VISION
    text: TowerConfig = _TEXT
    embedding_size: int = 512
    image_size: int = 224
    patch_size: int = 32
    context_length: int = 77
    vocabulary_size: int = 49408
    eos_token_id: int = LEGACY_EOS
    """A text's embedding is read at the first token with this id; if it is 2, at the highest id."""
    pixel_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    pixel_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )


class VisionTower(nn.Module):
    """Normalised pixels [N, H, W, 3] -> [N, E]."""

    config: CLIPConfig
    dtype: Any = None

    @nn.compact
    def __call__(self, pixel_values: Array) -> Array:
        config, tower = self.config, self.config.vision
        std, linear = tower.width**-0.5, dense(self.dtype)
        x = patches(pixel_values, config.patch_size)
        x = linear(tower.width, 0.02, use_bias=False, name="patch_embedding")(x)
        normal = nn.initializers.normal(std)
        class_token = self.param("class_embedding", normal, (tower.width,))
        class_tokens = jnp.broadcast_to(class_token.astype(x.dtype), (len(x), 1, tower.width))
        x = jnp.concatenate([class_tokens, x], axis=1)
        position = self.param("position_embedding", normal, (x.shape[1], tower.width))
        x = x + position[None].astype(x.dtype)
        x = norm(tower, self.dtype, "norm_pre")(x)
        for i in range(tower.layers):
            # Of the last block, only what makes the class token is of use.
            kept = 1 if i == tower.layers - 1 else None
            x = Block(tower, causal=False, dtype=self.dtype, name=f"block{i}")(x, kept)
        pooled = norm(tower, self.dtype, "norm_post")(x[:, 0])
        return linear(config.embedding_size, std, use_bias=False, name="projection")(pooled)


class TextTower(nn.Module):
    """Token ids [N, T] -> [N, E]."""

    config: CLIPConfig
    dtype: Any = None

    @nn.compact
    def __call__(self, input_ids: Array) -> Array:
        config, tower = self.config, self.config.text
        embed = nn.Embed(
            config.vocabulary_size,
            tower.width,
            embedding_init=nn.initializers.normal(0.02),
            dtype=self.dtype,
            name="token_embedding",
        )
        position = self.param(
            "position_embedding",
            nn.initializers.normal(0.01),
            (config.context_length, tower.width),
        )
        x = embed(input_ids)
        x = x + position[None, : input_ids.shape[1]].astype(x.dtype)
        for i in range(tower.layers):
            x = Block(tower, causal=True, dtype=self.dtype, name=f"block{i}")(x)
        x = norm(tower, self.dtype, "norm_post")(x)
        pooled = x[jnp.arange(len(x)), end_of_text(config, input_ids)]
        std, linear = tower.width**-0.5, dense(self.dtype)
        return linear(config.embedding_size, std, use_bias=False, name="projection")(pooled)


class CLIP(nn.Module):
    """The two towers, and the temperature, which is trained with them."""

    config: CLIPConfig
    dtype: Any = None

    def setup(self) -> None:
        self.vision = VisionTower(self.config, self.dtype)
        self.text = TextTower(self.config, self.dtype)
        self.logit_scale = self.param(
            "logit_scale", nn.initializers.constant(math.log(1 / 0.07)), ()
        )

    def __call__(self, pixel_values: Array, input_ids: Array) -> tuple[Array, Array]:
        return self.vision(pixel_values), self.text(input_ids)


def init(config: CLIPConfig, key: Key) -> Params:
    """Random float32 weights, distributed as CLIP's are at the start of its training.

    The tree has the branches `vision` and `text`, and the scalar leaf `logit_scale`.
    """
    pixel_values = jnp.zeros((1, config.image_size, config.image_size, 3))
    input_ids = jnp.zeros((1, config.context_length), jnp.int32)
    return jax.jit(CLIP(config).init)(key, pixel_values, input_ids)["params"]


def embed_images(
    config: CLIPConfig, params: Params, pixel_values: Array, *, precision: Precision = "highest"
) -> Array:
    """Embed images; differentiable.

    Args:
        config: The network's shape.
        params: Its weights.
        pixel_values: [N, image_size, image_size, 3], RGB in [0, 1] less `pixel_mean`, divided by
            `pixel_std`.
        precision: Of matrix products. `highest`: float32 on every device. `default`: what the
            device prefers (TF32 on recent GPUs, bfloat16 on TPUs). `bf16`: weights and activations
            in bfloat16, with float32 statistics and softmax.

    Returns:
        [N, E] float32, not of unit norm.

    Raises:
        ValueError: The images have another shape.
    """
    size = config.image_size
    if pixel_values.shape[1:] != (size, size, 3):
        raise ValueError(f"images are {pixel_values.shape}, this CLIP takes [N, {size}, {size}, 3]")
    with matmul_precision(precision):
        tower = VisionTower(config, activation_dtype(precision))
        return widen(tower.apply({"params": params["vision"]}, pixel_values))


def embed_tokens(
    config: CLIPConfig, params: Params, input_ids: Array, *, precision: Precision = "highest"
) -> Array:
    """Embed texts.

    Args:
        config: The network's shape.
        params: Its weights.
        input_ids: [N, T] integers, T <= context_length; each row holds an end-of-text token, and
            what comes after it has no influence.
        precision: See `embed_images`.

    Returns:
        [N, E] float32, not of unit norm.

    Raises:
        ValueError: The texts are too long.
    """
    if input_ids.shape[1] > config.context_length:
        raise ValueError(
            f"texts of {input_ids.shape[1]} tokens: this CLIP takes {config.context_length}"
        )
    with matmul_precision(precision):
        tower = TextTower(config, activation_dtype(precision))
        return widen(tower.apply({"params": params["text"]}, input_ids))


def end_of_text(config: CLIPConfig, input_ids: Array) -> Array:
    """Position [N] of the token that carries a text's embedding, for ids [N, T]."""
    if config.eos_token_id == LEGACY_EOS:
        return jnp.argmax(input_ids, axis=1)
    return jnp.argmax(input_ids == config.eos_token_id, axis=1)
