"""Emitters that change elites and have no update."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax import archives
from qdgs_jax.archives import ArchiveState, GridArchive
from qdgs_jax.emitters import Gradients
from qdgs_jax.emitters.gradient_operator import GradientOperator
from qdgs_jax.emitters.variation import Variation

KEY = jax.random.key(0)
ARCHIVE = GridArchive(cells=(8,), lower=(0.0,), upper=(8.0,))


@pytest.fixture
def archive() -> ArchiveState:
    """Two elites, at (0, 0, 0, 0) and (10, 10, 10, 10)."""
    latents = jnp.array([[0.0], [10.0]]) * jnp.ones((1, 4))
    state = archives.init(ARCHIVE, 4)
    return archives.add(ARCHIVE, state, latents, jnp.ones(2), jnp.array([[1.5], [6.5]]))[0]


def test_gaussian_noise_about_random_elites(archive: ArchiveState) -> None:
    emitter = Variation(2, 500, sigma=0.1)
    state = emitter.init(KEY, jnp.full((2, 4), -5.0))
    latents = emitter.ask(state, archive, KEY)[1].latents
    assert latents.shape == (1000, 4)
    assert emitter.evaluations == 1000
    near = np.round(latents / 10) * 10
    assert np.std(latents - near) == pytest.approx(0.1, rel=0.05)
    assert near.mean() == pytest.approx(5, abs=0.6)


def test_line_points_to_another_elite(archive: ArchiveState) -> None:
    emitter = Variation(2, 500, sigma=1e-3, line_sigma=0.2)
    latents = emitter.ask(emitter.init(KEY, jnp.zeros((2, 4))), archive, KEY)[1].latents
    assert np.ptp(latents, axis=1).max() < 0.02  # along the diagonal
    beyond = latents[:, 0] - np.round(latents[:, 0] / 10) * 10
    moved = np.abs(beyond) > 0.01
    assert moved.mean() == pytest.approx(0.5, abs=0.06)  # half pick the same elite twice
    assert np.abs(beyond[moved]).mean() == pytest.approx(2 * np.sqrt(2 / np.pi), rel=0.15)


def test_an_empty_archive_is_seeded_from_the_start() -> None:
    emitter = Variation(2, 3, sigma=1e-3)
    state = emitter.init(KEY, jnp.array([[1.0] * 4, [2.0] * 4]))
    latents = emitter.ask(state, archives.init(ARCHIVE, 4), KEY)[1].latents
    np.testing.assert_allclose(latents[:, 0], [1, 1, 1, 2, 2, 2], atol=0.01)
    assert state.restarts == 0


def test_gradient_operator_moves_elites_up_and_anywhere_in_measures(archive: ArchiveState) -> None:
    emitter = GradientOperator(2, 200, sigma=0.5)
    assert emitter.evaluations == 2 * 2 * 200  # an elite and its branch
    state = emitter.init(KEY, jnp.zeros((2, 4)))
    points = emitter.points(state, archive, KEY)
    jacobian = jnp.broadcast_to(3 * jnp.eye(2, 4), (400, 2, 4)).at[0, 1].set(jnp.nan)
    latents = emitter.ask(state, archive, KEY, Gradients(points, jacobian))[1].latents
    assert emitter.evaluations == len(points) + len(latents)
    step = latents - points
    assert set(np.unique(points)) == {0.0, 10.0}
    assert step[:, 0].min() >= 0  # the objective's coefficient is positive
    assert step[:, 1].std() == pytest.approx(0.5, rel=0.15)  # of unit gradients
    np.testing.assert_allclose(step[:, 2:], 0, atol=1e-5)
    assert step[0, 1] == 0  # a gradient that is not finite counts as zero
