"""The block compared with its equations written out in numpy."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from qdgs_jax.models.layers.transformer import Block, TowerConfig, patches

ROUNDING = 1e-5  # float32 against float64, over one block
TOWER = TowerConfig(width=24, layers=2, heads=3, mlp_width=40)


def close(actual: Any, desired: np.ndarray) -> bool:
    error = np.linalg.norm(np.asarray(actual, np.float64) - desired)
    return bool(error <= ROUNDING * np.linalg.norm(desired))


def norm(weights: Any, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return normed * weights["scale"] + weights["bias"]


def dense(weights: Any, x: np.ndarray) -> np.ndarray:
    return x @ weights["kernel"] + weights["bias"]


def attention(weights: Any, x: np.ndarray, heads: int, causal: bool) -> np.ndarray:
    """One row, one head, one token at a time."""
    query, key, value = (dense(weights[name], x) for name in ("query", "key", "value"))
    size = x.shape[-1] // heads
    mixed = np.zeros_like(x)
    for n, t, head in np.ndindex(x.shape[0], x.shape[1], heads):
        seen, part = slice(t + 1 if causal else None), slice(head * size, (head + 1) * size)
        logits = key[n, seen, part] @ query[n, t, part] / np.sqrt(size)
        weight = np.exp(logits - logits.max())
        mixed[n, t, part] = weight / weight.sum() @ value[n, seen, part]
    return dense(weights["out"], mixed)


GELU: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
    "gelu_pytorch_tanh": lambda x: (
        x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2
    ),
}


@pytest.mark.parametrize(
    ("activation", "causal", "kept"),
    [("quick_gelu", True, None), ("gelu", False, None), ("gelu_pytorch_tanh", False, 2)],
)
def test_block(activation: str, causal: bool, kept: int | None) -> None:
    tower, random = dataclasses.replace(TOWER, hidden_act=activation), np.random.default_rng(2)
    x = random.normal(size=(2, 5, tower.width))
    block = Block(tower, causal)
    shapes = jax.eval_shape(block.init, jax.random.key(0), x)["params"]
    w = jax.tree.map(lambda leaf: random.normal(0.1, 0.3, leaf.shape), shapes)
    desired = x + attention(w["attention"], norm(w["norm1"], x), tower.heads, causal)
    hidden = GELU[activation](dense(w["up"], norm(w["norm2"], desired)))
    desired = desired + dense(w["down"], hidden)

    w, x = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (w, x))
    assert close(block.apply({"params": w}, x, kept), desired[:, :kept])


def test_patches_are_the_convolution() -> None:
    random = np.random.default_rng(3)
    images, kernel = random.normal(size=(3, 16, 18, 3)), random.normal(size=(4, 4, 3, 5))
    desired = [
        np.einsum("nhwc,hwcf->nf", images[:, i : i + 4, j : j + 4], kernel)
        for i in range(0, 16, 4)
        for j in range(0, 16, 4)
    ]
    found = patches(jnp.asarray(images, jnp.float32), 4)
    assert close(found @ kernel.reshape(-1, 5), np.stack(desired, axis=1))


def test_config_is_checked_and_hashable() -> None:
    assert hash(TOWER) == hash(dataclasses.replace(TOWER))
    with pytest.raises(ValueError, match="heads"):
        dataclasses.replace(TOWER, heads=5)
    with pytest.raises(ValueError, match="relu"):
        dataclasses.replace(TOWER, hidden_act="relu")
