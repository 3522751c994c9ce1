"""Exact gradients, precision, and the contract with callers."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax.models import clip
from qdgs_jax.models.clip import modeling

ROUNDING = 1e-5  # of float32, over one tower


def close(actual: Any, desired: np.ndarray, tolerance: float = ROUNDING) -> bool:
    error = np.linalg.norm(np.asarray(actual, np.float64) - desired)
    return bool(error <= tolerance * np.linalg.norm(desired))


def test_end_of_text(config: clip.CLIPConfig) -> None:
    ids = jnp.array([[28, 3, 29, 29, 29], [28, 4, 5, 2, 29], [28, 2, 29, 0, 0]])
    legacy = modeling.end_of_text(config, ids)  # eos_token_id 2: the highest id, not the id 2
    explicit = modeling.end_of_text(dataclasses.replace(config, eos_token_id=29), ids)
    other = modeling.end_of_text(dataclasses.replace(config, eos_token_id=5), ids[1:2])
    assert legacy.tolist() == explicit.tolist() == [2, 4, 2]
    assert other.tolist() == [2]


def test_text_after_its_end_has_no_influence(config: clip.CLIPConfig, params: Any) -> None:
    ids = jnp.array([[28, 3, 4, 29, 0, 0, 0], [28, 3, 4, 29, 9, 1, 5], [28, 4, 3, 29, 0, 0, 0]])
    padded = jax.jit(partial(clip.embed_tokens, config))(params, ids)
    short = jax.jit(partial(clip.embed_tokens, config))(params, ids[:1, :4])
    assert padded.shape == (3, 12)
    assert padded.dtype == jnp.float32
    assert close(padded[1], np.asarray(padded[0]))
    assert close(short[0], np.asarray(padded[0]))
    assert not close(padded[2], np.asarray(padded[0]), 1e-3)


def test_pixel_gradients_are_exact(
    config: clip.CLIPConfig, params: Any, pixel_values: np.ndarray
) -> None:
    """Gradients equal central differences along random directions."""
    config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, layers=1))
    random = np.random.default_rng(4)
    cotangent = random.normal(size=(3, 12)).astype(np.float32)

    def score(x: jax.Array) -> jax.Array:
        return jnp.sum(clip.embed_images(config, params, x) * cotangent)

    x = jnp.asarray(pixel_values)
    directions = jnp.asarray(random.normal(size=(4, *x.shape)), jnp.float32)
    steps = jnp.concatenate([x[None] + 0.01 * directions, x[None] - 0.01 * directions])
    ahead, behind = jnp.split(jax.jit(jax.vmap(score))(steps), 2)
    gradient = jax.jit(jax.grad(score))(x)
    error = directions.reshape(4, -1) @ gradient.ravel() - (ahead - behind) / 0.02
    assert jnp.abs(error).max() < 0.01 * jnp.linalg.norm(gradient)


def operations(jaxpr: Any, name: str) -> Iterator[Any]:
    """All operations of one name in a program and the programs within."""
    for operation in jaxpr.eqns:
        if operation.primitive.name == name:
            yield operation
        for value in operation.params.values():
            if hasattr(value, "jaxpr"):
                yield from operations(value.jaxpr, name)


@pytest.mark.parametrize("precision", ["highest", "default"])
def test_precision_reaches_every_product(
    config: clip.CLIPConfig, params: Any, pixel_values: np.ndarray, precision: Any
) -> None:
    def score(x: jax.Array) -> jax.Array:
        return clip.embed_images(config, params, x, precision=precision).sum()

    program = jax.make_jaxpr(jax.grad(score))(pixel_values).jaxpr
    products = [product.params["precision"] for product in operations(program, "dot_general")]
    highest = (jax.lax.Precision.HIGHEST,) * 2
    assert len(products) > 20
    assert set(products) == {highest if precision == "highest" else None}


def test_bf16_is_close(config: clip.CLIPConfig, params: Any, pixel_values: np.ndarray) -> None:
    exact = jax.jit(partial(clip.embed_images, config))(params, pixel_values)
    rough = jax.jit(partial(clip.embed_images, config, precision="bf16"))(params, pixel_values)
    assert rough.dtype == jnp.float32
    assert close(rough, np.asarray(exact), 0.05)
    assert not close(rough, np.asarray(exact), 1e-4)


def test_bf16_casts_weights_and_activations(
    config: clip.CLIPConfig, params: Any, pixel_values: np.ndarray
) -> None:
    embed = partial(clip.embed_images, config, precision="bf16")
    program = jax.make_jaxpr(embed)(params, pixel_values).jaxpr
    products = list(operations(program, "dot_general"))
    softmaxes = list(operations(program, "exp"))
    roots = list(operations(program, "rsqrt"))
    assert {x.aval.dtype.name for product in products for x in product.invars} == {"bfloat16"}
    assert {softmax.outvars[0].aval.dtype.name for softmax in softmaxes} == {"float32"}
    assert {root.outvars[0].aval.dtype.name for root in roots} == {"float32"}
    assert len(softmaxes) == config.vision.layers


def test_config_is_checked_and_hashable(config: clip.CLIPConfig) -> None:
    assert hash(config) == hash(dataclasses.replace(config))
    with pytest.raises(ValueError, match="patch_size"):
        dataclasses.replace(config, patch_size=5)


def test_wrong_shapes(config: clip.CLIPConfig, params: Any) -> None:
    with pytest.raises(ValueError, match=r"\[N, 16, 16, 3\]"):
        clip.embed_images(config, params, jnp.zeros((2, 3, 16, 16)))
    with pytest.raises(ValueError, match="takes 7"):
        clip.embed_tokens(config, params, jnp.zeros((2, 8), jnp.int32))


def test_init() -> None:
    tower = clip.TowerConfig(width=24, layers=1, heads=1, mlp_width=24)
    params = clip.init(
        clip.CLIPConfig(tower, tower, embedding_size=24, vocabulary_size=9), jax.random.key(0)
    )
    assert set(params) == {"vision", "text", "logit_scale"}
    assert params["logit_scale"] == pytest.approx(np.log(1 / 0.07))
    kernel = params["vision"]["block0"]["attention"]["query"]["kernel"]
    assert float(kernel.std()) == pytest.approx(24**-0.5, rel=0.2)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
