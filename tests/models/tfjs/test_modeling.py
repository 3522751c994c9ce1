"""Every operation agrees with TensorFlow.js; the model and its values are by make_golden.py."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax.models import tfjs
from qdgs_jax.models.tfjs.modeling import OPERATIONS

HERE = Path(__file__).parent
GOLDEN = np.load(HERE / "golden.npz")
NODES = sorted(name.removeprefix("node ") for name in GOLDEN.files if name != "images")
GRAPH, PARAMS = tfjs.load(HERE / "model.json")


@pytest.mark.parametrize("name", NODES)
def test_a_node_agrees_with_tensorflow_js(name: str) -> None:
    found = tfjs.apply(GRAPH, PARAMS, GOLDEN["images"], (name,))[name]
    expected = GOLDEN[f"node {name}"]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_every_operation_is_compared() -> None:
    compared = {node.op for node in GRAPH.nodes if node.name in NODES}
    assert compared == set(OPERATIONS)


def test_the_models_own_outputs_are_the_default() -> None:
    assert GRAPH.outputs == ("probabilities",)
    assert GRAPH.input_shape == (None, 9, 8, 3)
    found = tfjs.apply(GRAPH, PARAMS, GOLDEN["images"])
    assert list(found) == ["probabilities"]
    np.testing.assert_allclose(found["probabilities"].sum(axis=1), 1, rtol=1e-6)


def test_it_is_jitted_and_differentiable_with_weights_as_arguments() -> None:
    def first(params: dict, images: jax.Array) -> jax.Array:
        return tfjs.apply(GRAPH, params, images)["probabilities"][:, 0].sum()

    images = jnp.asarray(GOLDEN["images"])
    gradient = jax.jit(jax.grad(first, 1))(PARAMS, images)
    moved = first(PARAMS, images + 1e-3 * gradient / jnp.linalg.norm(gradient))
    slope = (moved - first(PARAMS, images)) / 1e-3
    np.testing.assert_allclose(slope, jnp.linalg.norm(gradient), rtol=2e-2)
    assert jax.make_jaxpr(first)(PARAMS, images).consts == []
