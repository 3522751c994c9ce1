"""The towers compared with transformers, and the contract with callers."""

import dataclasses
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax.models import siglip

TOLERANCES = {  # relative L2 error to float64; measured on a CPU
    "embedding": 1e-5,  # float32 rounding over the depth of a tower: 2e-7
    "gradient": 1e-4,  # the same, forth and back, and the golden is rounded: 4e-7
}


def error(actual: Any, desired: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(actual) - desired) / np.linalg.norm(desired))


def test_images_and_their_gradients(loaded: Any, golden: Any) -> None:
    config, params = loaded
    mean, std = (np.array(values, ndmin=4) for values in (config.pixel_mean, config.pixel_std))

    @jax.jit
    @partial(jax.value_and_grad, argnums=1, has_aux=True)
    def score(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        embeddings = siglip.embed_images(config, params, (images - mean) / std)
        unit = embeddings / jnp.linalg.norm(embeddings, axis=1, keepdims=True)
        return jnp.sum(unit * golden["cotangent"]), embeddings

    (_, embeddings), gradient = score(params, golden["images"].astype(np.float32) / 255)
    assert embeddings.dtype == jnp.float32
    assert error(embeddings, golden["image_embeddings"]) < TOLERANCES["embedding"]
    assert error(gradient, golden["gradient"]) < TOLERANCES["gradient"]
    assert not np.any(gradient[:, 16:]), "no patch holds the last pixels"


def test_texts(loaded: Any, golden: Any) -> None:
    config, params = loaded
    embeddings = jax.jit(partial(siglip.embed_tokens, config))(params, golden["ids"].astype(int))
    assert embeddings.dtype == jnp.float32
    assert error(embeddings, golden["text_embeddings"]) < TOLERANCES["embedding"]


def test_bf16_casts_weights_and_activations(loaded: Any, golden: Any) -> None:
    config, params = loaded
    for embed, values, attentions in (
        (siglip.embed_images, golden["images"].astype(np.float32), 2),  # a block, and pooling
        (siglip.embed_tokens, golden["ids"].astype(np.int32), 2),
    ):
        program = jax.make_jaxpr(partial(embed, config, precision="bf16"))(params, values)
        products = re.findall(r":(\w+)\[[\d,]*\] = dot_general", str(program))
        assert products.count("f32") == attentions, "the logits of attention"
        assert products.count("bf16") == len(products) - attentions > 8
        assert program.out_avals[0].dtype == jnp.float32


def test_wrong_shapes(loaded: Any) -> None:
    config, params = loaded
    with pytest.raises(ValueError, match=r"\[N, 18, 18, 3\]"):
        siglip.embed_images(config, params, jnp.zeros((2, 3, 18, 18)))
    with pytest.raises(ValueError, match="takes 24"):  # padding is read
        siglip.embed_tokens(config, params, jnp.zeros((2, 8), jnp.int32))
    with pytest.raises(ValueError, match="below patch_size"):
        dataclasses.replace(config, image_size=3)


def test_init(loaded: Any) -> None:
    config, params = loaded
    shapes = jax.eval_shape(partial(siglip.init, config), jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
