"""The pre-norm transformer block of CLIP and SigLIP, and images as patches.

Axes: N batch, T tokens, Q queries, C width.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from flax import linen as nn

from qdgs_jax.typing import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # CLIPs trained by OpenAI
    "gelu": partial(jax.nn.gelu, approximate=False),  # most other CLIPs
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),  # SigLIPs
}


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """The size of one transformer."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act {self.hidden_act!r} is none of {sorted(ACTIVATIONS)}")


class Attention(nn.Module):
    """Multi-head attention of queries [N, Q, C] to tokens [N, T, C] -> [N, Q, C]."""

    config: TowerConfig
    causal: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, queries: Array, tokens: Array) -> Array:
        width, heads = self.config.width, self.config.heads
        linear = dense(self.dtype)

        def project(name: str, x: Array) -> Array:  # [N, T, heads, C / heads]
            projected = linear(width, width**-0.5, name=name)(x)
            return projected.reshape(*x.shape[:2], heads, width // heads)

        # This function computes logits and softmax in float32 whatever its arguments' dtype.
        mixed = jax.nn.dot_product_attention(
            project("query", queries), project("key", tokens), project("value", tokens),
            is_causal=self.causal,
        )  # fmt: skip
        std = (2 * self.config.layers * width) ** -0.5
        return linear(width, std, name="out")(mixed.reshape(queries.shape))


class Block(nn.Module):
    """A residual attention block, [N, T, C] -> [N, T, C], or its first `kept` tokens alone."""

    config: TowerConfig
    causal: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, kept: int | None = None) -> Array:
        normed = norm(self.config, self.dtype, "norm1")(x)
        attention = Attention(self.config, self.causal, self.dtype, name="attention")
        x = x[:, :kept] + attention(normed[:, :kept], normed)
        return feed_forward(self.config, self.dtype, x)


def feed_forward(config: TowerConfig, dtype: Any, x: Array) -> Array:
    """x + MLP(norm(x)), by the layers `norm2`, `up` and `down` of the module that calls this."""
    linear = dense(dtype)
    hidden = norm(config, dtype, "norm2")(x)
    hidden = linear(config.mlp_width, (2 * config.width) ** -0.5, name="up")(hidden)
    hidden = ACTIVATIONS[config.hidden_act](hidden)
    std = (2 * config.layers * config.width) ** -0.5
    return x + linear(config.width, std, name="down")(hidden)


def patches(images: Array, size: int) -> Array:
    """[N, H, W, 3] -> [N, patches, size * size * 3]: a strided convolution is then a product.

    Pixels on the right and at the bottom that fill no whole patch are left out.
    """
    n, height, width, channels = images.shape
    rows, columns = height // size, width // size
    whole = images[:, : rows * size, : columns * size]
    grid = whole.reshape(n, rows, size, columns, size, channels)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(n, -1, size * size * channels)


def dense(dtype: Any) -> Callable[..., nn.Dense]:
    """Makes linear layers: (features, std of their kernel at the start, use_bias, name)."""

    def make(features: int, std: float, *, use_bias: bool = True, name: str) -> nn.Dense:
        kernel_init = nn.initializers.normal(std)
        return nn.Dense(features, use_bias, dtype, kernel_init=kernel_init, name=name)

    return make


def norm(config: TowerConfig, dtype: Any, name: str) -> nn.LayerNorm:
    """The layer norm of a tower."""
    # The fast variance E[x^2] - E[x]^2 cancels; statistics are float32 whatever the dtype.
    return nn.LayerNorm(config.layer_norm_eps, dtype, use_fast_variance=False, name=name)
