"""Measures that a classifier reads, whose weights are arguments of the search."""

import dataclasses
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qdgs_jax as qdgs
from qdgs_jax import image_measures, search
from qdgs_jax.config import Config, MeasureConfig, parse_config
from qdgs_jax.errors import ConfigError
from qdgs_jax.image_measures import Classifier
from qdgs_jax.problem import load_problem

WEIGHTS = np.array([[4.0, 0.0, -4.0]], np.float32)


def logits(params: jax.Array, images: jax.Array) -> jax.Array:
    """Of dark, grey and bright images."""
    return (0.5 - images.mean(axis=(1, 2, 3)))[:, None] * params * 10


MADE = Classifier("light", ("dark", "grey", "bright"), logits, values=(0.0, 50.0, 100.0))


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package with a classifier, importable by its name."""
    module = types.ModuleType("own_classifier")
    module.make = lambda: (MADE, jnp.asarray(WEIGHTS))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_classifier", module)
    return module


def measure(**options: object) -> MeasureConfig:
    return MeasureConfig(name="m", classifier="own_classifier:make", **options)  # type: ignore[arg-type]


IMAGES = jnp.stack([jnp.full((4, 4, 3), level) for level in (0.1, 0.5, 0.9)])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"output": "class"}, [0, 0, 2]),
        ({"output": "logit", "target": "dark"}, [16, 0, -16]),
        ({"output": "probability", "target": "bright"}, [0, 1 / 3, 1]),
        ({"output": "expected"}, [0, 50, 100]),
    ],
)
def test_outputs(options: dict[str, str], expected: list[float]) -> None:
    read = image_measures.of_classifier(measure(**options), MADE, WEIGHTS, (4, 4))
    np.testing.assert_allclose(read(WEIGHTS, IMAGES), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "options", "sentence"),
    [
        ({}, {"output": "logit", "target": "brigth"}, r"no class 'brigth' \(did you mean 'bright'"),
        ({"values": (1.0,)}, {"output": "expected"}, "1 `values` for 3 classes"),
        ({"classes": ("a", "b")}, {}, r"returns float32 \(2, 3\): let it return \[2, 2\]"),
        ({"logits": lambda params, images: images.sum}, {}, "classifier 'own_classifier:make' of"),
    ],
)
def test_mistakes_get_a_sentence(
    changes: dict[str, Any], options: dict[str, str], sentence: str
) -> None:
    made = dataclasses.replace(MADE, **changes)
    with pytest.raises(ConfigError, match=sentence):
        image_measures.of_classifier(measure(**options), made, WEIGHTS, (4, 4))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"function": "brightness"}, "a `function`, or a `classifier`"),
        ({"output": "logit"}, "need the name of a class in `target`"),
        ({"target": "dark"}, "need the name of a class in `target`"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        measure(**options)


def config(algorithm: str, **options: object) -> Config:
    return parse_config(
        {
            "objective": {"positive": "good", "negative": "bad thing"},
            "measures": [
                {"name": "m", "classifier": "own_classifier:make", **options},
                {"name": "b", "function": "brightness", "cells": 5},
            ],
            "search": {
                "algorithm": algorithm, "generations": 10, "initial_samples": 16, "emitters": 2,
                "batch_size": 4, "constraint": "none",
            },
        },
        source="test",
    )  # fmt: skip


@pytest.mark.usefixtures("toy_models", "package")
def test_a_class_is_an_axis_of_its_own_cells() -> None:
    made = load_problem(config("map_elites"), allow_code=True)
    assert made.config.measures[0].range == (-0.5, 2.5)
    assert made.search.archive.cells[0] == 3
    assert list(made.provenance()["classifiers"]) == ["own_classifier:make"]
    run = jax.jit(search.run, static_argnums=(0, 3))
    state = search.init(made.search, made.params, *made.initial_latents())
    state, _ = run(made.search, made.params, state, 10)
    classes = state.elites.measures[state.elites.occupied][:, 0]
    assert set(classes.tolist()) <= {0.0, 1.0, 2.0}


@pytest.mark.usefixtures("toy_models", "package")
def test_weights_are_arguments() -> None:
    made = load_problem(config("cma_maega", output="probability", target="dark"), allow_code=True)
    score = jax.jit(made.score)
    _, latents = made.initial_latents()
    before = score(made.params, jax.random.key(0), latents, ())[0].measures[:, 0]
    classifiers = {"own_classifier:make": -jnp.asarray(WEIGHTS)}
    other = score({**made.params, "classifiers": classifiers}, jax.random.key(0), latents, ())
    assert not np.allclose(before, other[0].measures[:, 0])


@pytest.mark.usefixtures("toy_models", "package")
def test_code_needs_permission() -> None:
    with pytest.raises(ConfigError, match="'own_classifier:make' of measure 'm' is code"):
        load_problem(config("map_elites"))


@pytest.mark.usefixtures("toy_models")
def test_a_measure_outside_of_jax_has_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    def outside(images: jax.Array) -> jax.Array:
        shape = jax.ShapeDtypeStruct((len(images),), jnp.float32)
        return jax.pure_callback(
            lambda x: np.asarray(x).mean((1, 2, 3), dtype=np.float32), shape, images
        )

    monkeypatch.setitem(image_measures.IMAGE_MEASURES, "outside", outside)
    wanted = config("cma_maega")
    measures = (MeasureConfig(name="m", function="outside"),)
    wanted = dataclasses.replace(wanted, measures=measures)
    with pytest.raises(ConfigError, match="'outside' of measure 'm' has no gradients"):
        load_problem(wanted)
    search_ = dataclasses.replace(wanted.search, algorithm="cma_me")
    made = load_problem(dataclasses.replace(wanted, search=search_))
    _, latents = made.initial_latents()
    scores, _ = jax.jit(made.score)(made.params, jax.random.key(0), latents, ())
    assert np.isfinite(scores.measures).all()


def test_the_name_is_public() -> None:
    assert qdgs.Classifier is Classifier
