"""Networks of faces agree with TensorFlow.js; the values are by make_faceres_golden.py."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax import blazeface, expressions, faceres
from qdgs_jax.models import tfjs

pytestmark = pytest.mark.skipif(
    not faceres.PATH.exists(), reason="needs faceres, by `make assets` where npm is"
)
GOLDEN = np.load(Path(__file__).parent / "faceres.npz")
PIXELS = GOLDEN["images"].repeat(7, axis=1).repeat(7, axis=2).astype(np.float32)


def test_it_agrees_with_tensorflow_js() -> None:
    graph, params = faceres.load()
    assert len(graph.outputs) == 3
    found = jax.jit(lambda params, x: tfjs.apply(graph, params, x))(params, PIXELS)
    for name, values in found.items():
        np.testing.assert_allclose(values, GOLDEN[f"node {name}"], atol=1e-4)


needs_others = pytest.mark.skipif(
    not faceres.PATH.with_name("emotion.json").exists(), reason="needs a newer `make assets`"
)


@needs_others
def test_expressions_agree_with_tensorflow_js() -> None:
    graph, params = expressions.load()
    images = jnp.asarray(GOLDEN["images"].repeat(2, axis=1).repeat(2, axis=2) / 255, jnp.float32)
    found = jax.jit(lambda params, x: expressions.probabilities(graph, params, x))(params, images)
    np.testing.assert_allclose(found, GOLDEN["emotion"], atol=1e-4)


@needs_others
def test_the_detector_agrees_with_tensorflow_js() -> None:
    graph, params = blazeface.load()
    canvases = jnp.asarray(GOLDEN["images"].repeat(8, axis=1).repeat(8, axis=2) / 255, jnp.float32)
    names = tuple(name for name in GOLDEN.files if name.startswith("blazeface"))
    run = jax.jit(lambda params, x: tfjs.apply(graph, params, x))
    for number, canvas in enumerate(canvases):
        found = run(params, 2 * canvas[None] - 1)
        for name in names:
            values = found[name.removeprefix("blazeface ")][0, ::8]
            np.testing.assert_allclose(values, GOLDEN[name][number], rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_a_step_along_the_gradient_changes_an_age_as_it_says() -> None:
    graph, params = faceres.load()

    def age(images: jax.Array) -> jax.Array:
        logits = faceres.age_logits(graph, params, images)
        return (jax.nn.softmax(logits) @ jnp.arange(1.0, 101.0)).sum()

    images = jnp.asarray(GOLDEN["images"][:1] / 255, jnp.float32)
    slope = jax.jit(jax.grad(age))(images)
    step = 0.01 * slope / jnp.linalg.norm(slope)
    change = jax.jit(age)(images + step) - jax.jit(age)(images - step)
    np.testing.assert_allclose(change, 0.02 * jnp.linalg.norm(slope), rtol=0.1)
