"""AdaFace's logits, with numbers of the paper's formulas computed by hand.

Comparisons with PyTorch, gradients included, are in tests/models/iresnet.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax.errors import ConfigError
from qdgs_jax.training import margins
from qdgs_jax.training.config import MarginConfig
from qdgs_jax.training.margins import NormStatistics, person_logits

LOGITS = jax.jit(person_logits, static_argnums=0)
ANGLES = (0.6, 1.1)
NORMS = (3.0, 5.0)
CENTRES = jnp.array([[2.0, 0.0], [0.0, 0.5]])
EMBEDDINGS = jnp.array(
    [[n * math.cos(a), n * math.sin(a)] for n, a in zip(NORMS, ANGLES, strict=True)]
)
OLD = NormStatistics(jnp.array(4.0), jnp.array(1.0))
LABELS = jnp.array([0, 1])
# The right person's angle: to the first axis, to the second.
RIGHT = (0.6, math.pi / 2 - 1.1)
WRONG = (math.pi / 2 - 0.6, 1.1)


def logits(**options: Any) -> tuple[np.ndarray, NormStatistics]:
    config = MarginConfig(scale=10.0, margin=0.3, **options)
    found, statistics = LOGITS(config, CENTRES, OLD, EMBEDDINGS, LABELS)
    return np.asarray(found), statistics


def test_adaface_by_hand() -> None:
    """Mean 4 and standard deviation sqrt(2) of the norms 3 and 5."""
    found, statistics = logits(momentum=0.5, concentration=0.4)
    std = 0.5 * 1 + 0.5 * math.sqrt(2)
    np.testing.assert_allclose([statistics.mean, statistics.std], [4, std], rtol=1e-6)
    for row, norm in enumerate(NORMS):
        z = 0.4 * (norm - 4) / (std + 1e-3)
        expected = 10 * (math.cos(RIGHT[row] - 0.3 * z) - (0.3 * z + 0.3))
        assert found[row, row] == pytest.approx(expected, rel=1e-5)
        assert found[row, 1 - row] == pytest.approx(10 * math.cos(WRONG[row]), rel=1e-5)
    assert found[0, 0] != pytest.approx(10 * (math.cos(RIGHT[0]) - 0.3), rel=1e-2)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("arcface", [10 * math.cos(angle + 0.3) for angle in RIGHT]),
        ("cosface", [10 * (math.cos(angle) - 0.3) for angle in RIGHT]),
    ],
)
def test_other_margins_are_special_cases(kind: str, expected: list[float]) -> None:
    found, _ = logits(kind=kind)
    np.testing.assert_allclose(np.diag(found), expected, rtol=1e-5)
    np.testing.assert_allclose(found[[0, 1], [1, 0]], 10 * np.cos(WRONG), rtol=1e-5)


def test_quality_is_clipped_and_has_no_gradient() -> None:
    """Norms far from the mean have z = -1 and 1; logits do not depend on norms through z."""
    far = NormStatistics(jnp.array(4.0), jnp.array(0.01))
    config = MarginConfig(scale=10.0, margin=0.3, momentum=0.0)
    found, _ = LOGITS(config, CENTRES, far, EMBEDDINGS, LABELS)
    expected = [10 * math.cos(RIGHT[0] + 0.3), 10 * (math.cos(RIGHT[1] - 0.3) - 0.6)]
    np.testing.assert_allclose(np.diag(found), expected, rtol=1e-5)

    def total(lengths: jax.Array) -> jax.Array:
        embeddings = EMBEDDINGS * lengths[:, None]
        return person_logits(MarginConfig(), CENTRES, OLD, embeddings, LABELS)[0].sum()

    np.testing.assert_allclose(jax.jit(jax.grad(total))(jnp.ones(2)), np.zeros(2), atol=1e-3)


def test_angles_of_0_and_pi_have_finite_gradients() -> None:
    embeddings = jnp.array([[1.0, 0.0], [0.0, -1.0], [0.0, 0.0]])

    def total(embeddings: jax.Array) -> jax.Array:
        labels = jnp.array([0, 1, 1])
        return person_logits(MarginConfig(), CENTRES, OLD, embeddings, labels)[0].sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(embeddings)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_centres_are_unit_vectors() -> None:
    centres = margins.init_centres(jax.random.key(0), 5, 7)
    np.testing.assert_allclose((centres**2).sum(axis=0), np.ones(7), rtol=1e-5)


def test_options_without_effect_are_refused() -> None:
    with pytest.raises(ConfigError, match="`concentration` has no effect with kind 'arcface'"):
        MarginConfig(kind="arcface", concentration=0.5)
