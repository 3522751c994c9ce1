"""What faceres reads as measures; a toy network takes its place."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax import catalogue, faceres
from qdgs_jax.config import Config, parse_config
from qdgs_jax.errors import CheckpointError, ConfigError
from qdgs_jax.problem import load_problem

TFJS = Path(__file__).parent / "models/tfjs/model.json"
AGES, MALE = np.zeros((3, 100), np.float32), np.array([[0.0], [0.0], [0.02]], np.float32)
AGES[:, 29], AGES[:, 69] = 0.01, (0.02, 0.01, 0.0)  # ages 30 and 70


@pytest.fixture(autouse=True)
def file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_network: Callable[..., Path]
) -> Path:
    """A file of faceres whose outputs are linear in the mean pixel; it stands at its place."""
    outputs = {
        "global_pooling/Mean": (np.eye(3, 1024), [-1, 1024]),
        "age_pred/BiasAdd": (AGES, [-1, 100]),
        "gender_pred/BiasAdd": (MALE, [-1, 1]),
    }
    path = write_network(tmp_path / "faceres/faceres.json", (2, 224, 224, 3), outputs)
    monkeypatch.setattr(faceres, "PATH", path)
    return path


COLOURS = jnp.array([[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]])  # orange and blue
IMAGES = jnp.broadcast_to(COLOURS[:, None, None], (2, 9, 5, 3))
PIXELS = 255 * np.asarray(COLOURS)[:, ::-1] - [103.939, 116.779, 123.68]  # as it was trained


def test_it_reads_the_pixels_that_it_was_trained_on() -> None:
    graph, params = faceres.load()
    embeddings = faceres.embed(graph, params, IMAGES)
    expected = PIXELS / np.linalg.norm(PIXELS, axis=1, keepdims=True)
    np.testing.assert_allclose(embeddings[:, :3], expected, atol=1e-5)
    logits = faceres.presentation_logits(graph, params, IMAGES)
    np.testing.assert_allclose(logits, np.pad(PIXELS @ MALE, [(0, 0), (1, 0)]), atol=1e-4)


def config(*names: str, **options: Any) -> Config:
    """Of measures by function."""
    values: dict[str, Any] = {
        "objective": {"positive": "good", "negative": "bad thing"},
        "notice": "faces",
        "measures": [
            {"name": f"m{i}", "function": name, "range": [0, 1], "cells": 4}
            for i, name in enumerate(names)
        ],
        "search": {
            "initial_samples": 16, "emitters": 2, "batch_size": 4, "threshold_min": -100,
            "constraint": "none",
        },
    }  # fmt: skip
    return parse_config({**values, **options}, source="test")


@pytest.mark.usefixtures("toy_models")
def test_measures_are_expected_values_by_weights_that_are_arguments(file: Path) -> None:
    names = ("faceres:age", "faceres:presentation", f"{file}:presentation")
    made = load_problem(config(*names))
    sha256 = hashlib.sha256(file.with_suffix(".bin").read_bytes()).hexdigest()
    assert made.provenance()["classifiers"] == dict.fromkeys(names, sha256)
    weights = made.params["classifiers"]
    assert set(weights) == {"faceres", str(file)}  # each file once

    _, latents = made.initial_latents()
    score = jax.jit(made.score)
    found = score(made.params, jax.random.key(0), latents, ())[0].measures
    images = made.generator.render(made.params["generator"], latents)
    colours = jax.image.resize(images, (len(images), 224, 224, 3), "linear").mean(axis=(1, 2))
    pixels = 255 * np.asarray(colours)[:, ::-1] - faceres.MEANS
    ages = jax.nn.softmax(pixels @ AGES) @ np.arange(1.0, 101.0)
    np.testing.assert_allclose(found[:, 0], ages, rtol=1e-3)
    np.testing.assert_allclose(found[:, 1], jax.nn.sigmoid(pixels @ MALE)[:, 0], rtol=1e-3)
    np.testing.assert_array_equal(found[:, 2], found[:, 1])

    other = {**weights, "faceres": jax.tree.map(jnp.zeros_like, weights["faceres"])}
    found = score({**made.params, "classifiers": other}, jax.random.key(0), latents, ())[0].measures
    np.testing.assert_allclose(found[:, :2], [[50.5, 0.5]] * len(found), rtol=1e-5)


@pytest.mark.usefixtures("toy_models")
@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("faceres:gender", {}, "'faceres:gender' of measure 'm0' .* age and presentation are read"),
        ("faceres:ages", {}, r"\(did you mean 'age'\?\)"),
        ("faceres:age", {"notice": ""}, "'m0' reads faces: set `notice = "),
        (f"{TFJS}:age", {}, "it is not faceres: give models/faceres.json"),
        ("nowhere.json:age", {}, "nowhere.json cannot be read"),
    ],
)
def test_mistakes_get_a_sentence(name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises((CheckpointError, ConfigError), match=sentence):
        load_problem(config(name, **options))


def test_where_it_is_missing_a_sentence_says_how_to_get_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faceres, "PATH", file.with_name("other.json"))
    with pytest.raises(ConfigError, match=r"run `make assets`, .* or give the path"):
        faceres.load()
    rows = {row["function"]: row["value"] for row in catalogue.measures()}
    assert rows["faceres:age"].endswith("Needs `make assets`.")


def test_the_catalogue_lists_it() -> None:
    rows = {row["function"]: row["value"] for row in catalogue.measures()}
    assert rows.keys() > {"faceres:age", "faceres:presentation"}
    assert "make assets" not in rows["faceres:age"]
