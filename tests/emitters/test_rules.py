"""Ranker, selection and restart rule, one batch at a time; whole traces are in test_traces.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax import archives
from qdgs_jax.archives import GridArchive, Insertion
from qdgs_jax.emitters.rules import Ranking, Rules, elites_or

KEY = jax.random.key(0)


def insertion(**fields: object) -> Insertion:
    """Two emitters with three solutions each."""
    default = {
        "objective": [1.0, 2.0, 3.0, 3.0, 2.0, 1.0],
        "measures": [[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]] * 2,
        "status": [2, 1, 0, 0, 0, 0],
        "value": [0.5, 0.7, -1.0, -2.0, -1.0, -3.0],
        "finite": [True] * 6,
    }
    return Insertion(**{name: jnp.asarray(x) for name, x in (default | fields).items()})


def rank(rules: Rules, batch: Insertion, generations: int = 1) -> Ranking:
    state = rules.init(KEY, 2, jnp.float32)
    for _ in range(generations):
        state, ranking = jax.jit(rules.rank)(state, batch)
    return ranking


@pytest.mark.parametrize(
    ("ranker", "order"),
    [
        ("imp", [[1, 0, 2], [1, 0, 2]]),
        ("2imp", [[0, 1, 2], [1, 0, 2]]),
        ("obj", [[2, 1, 0], [0, 1, 2]]),
    ],
)
def test_rankers(ranker: str, order: list[list[int]]) -> None:
    np.testing.assert_array_equal(rank(Rules(ranker), insertion()).order, order)


def test_random_direction_is_scaled_kept_and_redrawn_on_restart() -> None:
    rules = Rules("rd", span=(1.0, 1000.0))
    state = rules.init(KEY, 2, jnp.float32)
    assert np.all(np.abs(state.direction[:, 1]) > np.abs(state.direction[:, 0]))
    batch = insertion(finite=[True] * 5 + [False])
    later, ranking = rules.rank(state, batch)
    np.testing.assert_array_equal(later.direction, state.direction)
    place = batch.measures.reshape(2, 3, 2) @ state.direction[..., None]
    np.testing.assert_array_equal(ranking.order[0], jnp.flip(jnp.argsort(place[0, :, 0])))
    assert ranking.order[1, -1] == 2  # what is not finite comes last
    again = rules.renew(later, jax.random.key(1), jnp.array([False, True]), jnp.float32)
    np.testing.assert_array_equal(again.restarts, [0, 1])
    np.testing.assert_array_equal(again.direction[0], state.direction[0])
    assert np.all(again.direction[1] != state.direction[1])


def test_of_equals_the_later_ranks_first() -> None:
    batch = insertion(value=[1.0, 1.0, 2.0, 0.0, 1.0, 1.0])
    np.testing.assert_array_equal(rank(Rules("imp"), batch).order, [[2, 1, 0], [2, 1, 0]])


def test_selection() -> None:
    np.testing.assert_array_equal(rank(Rules("imp", "filter"), insertion()).parents, [2, 0])
    np.testing.assert_array_equal(rank(Rules("imp", "mu"), insertion()).parents, [1, 1])


@pytest.mark.parametrize(
    ("restart", "ended"),
    [("basic", [False, False]), ("no_improvement", [False, True]), (3, [True, True])],
)
def test_restart_rules(restart: str | int, ended: list[bool]) -> None:
    rules = Rules("imp", "filter", restart)
    np.testing.assert_array_equal(rank(rules, insertion(), generations=3).ended, ended)
    if restart == 3:
        assert not rank(rules, insertion(), generations=2).ended.any()


@pytest.mark.parametrize("value", [0.3, -np.inf], ids=["flat", "nothing finite"])
def test_a_flat_batch_ends_its_emitter(value: float) -> None:
    batch = insertion(value=[0.5, 0.7, -1.0, *[value] * 3])
    np.testing.assert_array_equal(rank(Rules("imp"), batch).ended, [False, True])
    # Of equal value, but of different status: not flat to the two-stage ranker.
    batch = insertion(value=[0.3] * 6, status=[2, 1, 0, 1, 1, 1])
    np.testing.assert_array_equal(rank(Rules("2imp"), batch).ended, [False, True])


def test_an_empty_archive_gives_back_the_latents() -> None:
    archive = GridArchive(cells=(4,), lower=(0.0,), upper=(1.0,))
    state, latents = archives.init(archive, 2), jnp.ones((3, 2))
    np.testing.assert_array_equal(elites_or(latents, state, KEY), latents)
    state, _ = archives.add(archive, state, 5 * latents[:1], jnp.ones(1), jnp.ones((1, 1)))
    np.testing.assert_array_equal(elites_or(latents, state, KEY), 5 * latents)


def test_only_random_directions_need_the_span() -> None:
    with pytest.raises(ValueError, match="needs the `span`"):
        Rules("rd")
    with pytest.raises(ValueError, match="needs the `span`"):
        Rules("imp", span=(1.0,))
