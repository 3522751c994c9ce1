"""The loop of trainings minimises a loss."""

import jax
import numpy as np

from qdgs_jax.training.descent import OptimiserConfig, minimise


def test_training_lowers_the_loss():
    def loss(params, key, progress, data):
        return ((params - data) ** 2).sum() + 0 * jax.random.normal(key)

    optimiser = OptimiserConfig(steps=120, learning_rate=0.1)
    params = minimise(loss, np.zeros(3), jax.random.key(0), optimiser, np.arange(3.0))
    np.testing.assert_allclose(params, np.arange(3.0), atol=0.05)
