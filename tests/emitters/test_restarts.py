"""Restarts of emitters after a batch that ends them; traces are in test_traces.py."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax import archives
from qdgs_jax.archives import ArchiveState, GridArchive, Insertion
from qdgs_jax.emitters import Gradients
from qdgs_jax.emitters.cma_es import CMAES
from qdgs_jax.emitters.evolution_strategy import EvolutionStrategy
from qdgs_jax.emitters.gradient_arborescence import GradientArborescence
from qdgs_jax.emitters.rules import Rules, restart_ended

KEY = jax.random.key(0)
ARCHIVE = GridArchive(cells=(4,), lower=(0.0,), upper=(1.0,))
START = jnp.array([[1.0, 1.0], [2.0, 2.0]])
ELITE = jnp.array([[5.0, 6.0]])
RULES = Rules("imp", "filter", "no_improvement")
EMITTERS = [
    pytest.param(EvolutionStrategy(2, CMAES(3, 0.5), RULES), id="evolution strategy"),
    pytest.param(GradientArborescence(2, 3, 1, 0.5, 0.1, rules=RULES), id="arborescence"),
]
# Of the first emitter's three, two are accepted; of the second's, none.
INSERTION = Insertion(
    objective=jnp.array([1.0, 2.0, 3.0, 3.0, 2.0, 1.0]),
    measures=jnp.zeros((6, 1)),
    status=jnp.array([2, 1, 0, 0, 0, 0]),
    value=jnp.array([0.5, 0.7, -1.0, -2.0, -1.0, -3.0]),
    finite=jnp.ones(6, bool),
)


@pytest.fixture
def empty() -> ArchiveState:
    return archives.init(ARCHIVE, 2)


@pytest.fixture
def archive(empty: ArchiveState) -> ArchiveState:
    """With one elite."""
    return archives.add(ARCHIVE, empty, ELITE, jnp.ones(1), jnp.ones((1, 1)))[0]


def ask(emitter: Any, archive: ArchiveState) -> tuple[Any, Any]:
    gradients = Gradients(START, jnp.tile(jnp.eye(2), (2, 1, 1)))
    return emitter.ask(emitter.init(KEY, START), archive, KEY, gradients)


def centre(emitter: Any, state: Any) -> jax.Array:
    if isinstance(emitter, EvolutionStrategy):
        return state.strategy.mean
    np.testing.assert_array_equal(state.strategy.mean[1], 0)
    return state.ascent.theta


@pytest.mark.parametrize("emitter", EMITTERS)
def test_who_ended_restarts_at_an_elite_and_nobody_else(
    emitter: Any, archive: ArchiveState
) -> None:
    state, asked = ask(emitter, archive)
    learned, ended = emitter.learn(state, asked, INSERTION)
    np.testing.assert_array_equal(ended, [False, True])
    told = emitter.tell(state, archive, KEY, asked, INSERTION)
    assert told.restarts == 1
    np.testing.assert_array_equal(told.rules.restarts, [0, 1])
    np.testing.assert_array_equal(centre(emitter, told)[1], ELITE[0])
    for part in ("strategy", "ascent"):
        if hasattr(told, part):
            first = jax.tree.map(lambda leaf: leaf[0], getattr(learned, part))
            jax.tree.map(
                lambda a, b: np.testing.assert_array_equal(a[0], b), getattr(told, part), first
            )
    fresh = emitter.init(KEY, jnp.tile(ELITE, (2, 1))).strategy
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b[1]), told.strategy, fresh)


@pytest.mark.parametrize("emitter", EMITTERS)
def test_without_an_elite_a_restart_is_at_what_the_emitter_has(
    emitter: Any, empty: ArchiveState
) -> None:
    state, asked = ask(emitter, empty)
    learned, _ = emitter.learn(state, asked, INSERTION)
    told = emitter.tell(state, empty, KEY, asked, INSERTION)
    first_solution = asked.latents.reshape(2, 3, 2)[1, 0]
    strategy = isinstance(emitter, EvolutionStrategy)
    expected = first_solution if strategy else learned.ascent.theta[1]
    np.testing.assert_array_equal(centre(emitter, told)[1], expected)


@pytest.mark.parametrize("emitter", EMITTERS)
def test_a_spent_distribution_ends(emitter: Any, archive: ArchiveState) -> None:
    state, asked = ask(emitter, archive)
    strategy = state.strategy.replace(sigma=jnp.array([1e-15, 0.5]))
    accepted = INSERTION.replace(status=jnp.ones(6, jnp.int32))
    _, ended = emitter.learn(state.replace(strategy=strategy), asked, accepted)
    np.testing.assert_array_equal(ended, [True, False])


@pytest.mark.parametrize("emitter", EMITTERS)
def test_evaluations_are_all_that_is_scored(emitter: Any, archive: ArchiveState) -> None:
    asked = ask(emitter, archive)[1]
    points = 0 if isinstance(emitter, EvolutionStrategy) else len(START)  # for their Jacobians
    assert emitter.evaluations == len(asked.latents) + points


@pytest.mark.parametrize("evenly", [False, True])
def test_a_restart_takes_elites_or_else_the_latents(
    empty: ArchiveState, archive: ArchiveState, evenly: bool
) -> None:
    def restart(state: Any, key: Any, which: Any, latents: Any) -> Any:
        return jnp.where(which[:, None], latents, state)

    state, latents = jnp.zeros((2, 2)), START
    for contents, expected in ((empty, [START[0], [0, 0]]), (archive, [ELITE[0], [0, 0]])):
        ended = jnp.array([True, False])
        found = restart_ended(restart, state, ended, latents, contents, KEY, evenly)
        np.testing.assert_array_equal(found, expected)
    none = restart_ended(lambda *_: state + 9, state, jnp.zeros(2, bool), latents, archive, KEY)
    np.testing.assert_array_equal(none, state)
