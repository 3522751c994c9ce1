"""Fixtures shared by all tests."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # here and in processes that tests start

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax import cli, encoders, generators
from qdgs_jax.config import Config, parse_config
from qdgs_jax.encoders import Encoder
from qdgs_jax.generators import Generator
from qdgs_jax.runs import verdict

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def programs_on_disk(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keeps what is compiled, for tests that compile the same again, here or in processes that they
    start; never in the user's cache folder."""
    folder = str(tmp_path_factory.mktemp("programs"))
    if cli.can_keep_programs():
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture(scope="module", autouse=True)
def programs_of_its_own() -> Iterator[None]:
    """Drops a module's compiled programs: XLA maps memory for each of them, and on Linux a process
    may have at most 65,530 mappings; beyond that the compiler crashes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder of goldens computed by the reference implementations, kept outside the project."""
    path = Path(os.environ.get("QDGS_REFERENCE", Path(__file__).parents[2] / "shared/reference"))
    if not path.is_dir():
        pytest.skip("reference goldens are absent: set QDGS_REFERENCE to their folder")
    return path


SIDE = 4  # pixels of the toy generator's images
PIXELS = SIDE * SIDE * 3


def toy_images(params: jax.Array, latents: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(latents @ params).reshape(-1, SIDE, SIDE, 3)


def toy_embeddings(params: jax.Array, values: jax.Array) -> jax.Array:
    embeddings = values.reshape(len(values), -1) @ params
    return embeddings / jnp.linalg.norm(embeddings, axis=-1, keepdims=True)


@pytest.fixture(autouse=True, scope="session")
def second_opinion() -> Iterator[Callable[..., float]]:
    """What judges images at the end of a run, which takes seconds; only its own tests call it."""
    judge = verdict.make_typical_share
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdict, "make_typical_share", lambda _: lambda _: 1.0)
        yield judge


def toy_generator() -> tuple[Generator, jax.Array]:
    """A linear generator of 4 x 4 images from 5 latents."""
    generator = Generator(
        name="toy",
        sha256="0" * 64,
        latent_size=5,
        image_size=SIDE,
        sample=lambda key, n: jax.random.normal(key, (n, 5)),
        render=toy_images,
    )
    return generator, jax.random.normal(jax.random.split(jax.random.key(1), 3)[2], (5, PIXELS))


def toy_encoder() -> tuple[Encoder, dict[str, jax.Array]]:
    """A linear encoder that reads text by its length."""
    encoder = Encoder(
        name="toy",
        sha256="1" * 64,
        image_size=SIDE,
        embed_images=lambda params, images: toy_embeddings(params["image"], images - 0.5),
        embed_tokens=lambda params, tokens: toy_embeddings(params["text"], tokens),
        tokenize=lambda texts: jnp.array([[len(t), ord(t[0]) % 9, 1.0] for t in texts]),
        unknown_words=lambda text: [],
    )
    keys = jax.random.split(jax.random.key(1), 3)
    weights = {"image": jax.random.normal(keys[0], (PIXELS, 8))}
    return encoder, {**weights, "text": jax.random.normal(keys[1], (3, 8))}


@pytest.fixture
def toy_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any generator and encoder of a config is the toy one."""
    for module, model in ((generators, toy_generator()), (encoders, toy_encoder())):
        monkeypatch.setattr(module, "load", lambda *_, made=model, **__: made)


@pytest.fixture
def toy_config() -> Config:
    """A brief search with the toy models."""
    return parse_config(
        {
            "objective": {"positive": "good", "negative": "bad thing"},
            "measures": [
                {"name": "a", "low": "one", "high": "twenty two", "cells": 6},
                {"name": "b", "function": "brightness", "cells": 5},
            ],
            "search": {
                "generations": 8, "emitters": 2, "batch_size": 3, "initial_samples": 16,
                "threshold_min": -100, "constraint": "none",
            },
            "run": {"log_every": 2, "checkpoint_every": 4},
        },
        source="test",
    )  # fmt: skip


def write_network(
    path: Path, image_shape: tuple[int, ...], outputs: dict[str, tuple[np.ndarray, list[int]]]
) -> Path:
    """A graph model of TensorFlow.js whose outputs are linear in the mean pixel.

    Args:
        image_shape: of a batch.
        outputs: name -> matrix [C, n], and the shape of the values.
    """
    dim = [{"size": str(size)} for size in (-1, *image_shape[1:])]
    nodes: list[dict[str, Any]] = [
        {"name": "input", "op": "Placeholder", "attr": {"shape": {"shape": {"dim": dim}}}},
        {"name": "mean", "op": "Mean", "input": ["input", "axes"]},
    ]
    constants = {"axes": np.array([1, 2], np.int32)}
    for name, (matrix, shape) in outputs.items():
        constants |= {f"{name}/weights": matrix.astype(np.float32)}
        constants |= {f"{name}/shape": np.array(shape, np.int32)}
        nodes += [
            {"name": f"{name}/flat", "op": "MatMul", "input": ["mean", f"{name}/weights"]},
            {"name": name, "op": "Reshape", "input": [f"{name}/flat", f"{name}/shape"]},
        ]
    nodes += [{"name": name, "op": "Const"} for name in constants]
    weights = [
        {"name": name, "shape": list(each.shape), "dtype": each.dtype.name}
        for name, each in constants.items()
    ]
    path.parent.mkdir(exist_ok=True)
    path.with_suffix(".bin").write_bytes(b"".join(each.tobytes() for each in constants.values()))
    manifest = [{"paths": [f"{path.stem}.bin"], "weights": weights}]
    model = {"modelTopology": {"node": nodes}, "weightsManifest": manifest}
    path.write_text(json.dumps({"format": "graph-model", **model}))
    return path


@pytest.fixture(name="write_network")
def write_network_() -> Callable[..., Path]:
    return write_network
