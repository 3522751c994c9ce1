"""Strategies of evosax as a `Strategy` of this package."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax.archives import GridArchive
from qdgs_jax.emitters.evosax import Evosax
from qdgs_jax.errors import ConfigError
from qdgs_jax.jacobian import Memory, Scores
from qdgs_jax.search import init, make_search, run
from qdgs_jax.search_config import SearchConfig

KEY = jax.random.key(0)
NAMES = ["sep_cma_es", "lm_ma_es", "openai_es"]


@pytest.fixture(autouse=True)
def promoted_ranks() -> Iterator[None]:
    """evosax promotes ranks implicitly."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("name", [pytest.param(NAMES[0], marks=pytest.mark.slow), *NAMES[1:]])
def test_learns_from_ranks(name: str) -> None:
    """Three emitters in 20 dimensions find the minimum of an ellipsoid by different draws."""
    strategy = Evosax(name, 16, 0.3, step_size=0.05)
    scale = jnp.logspace(0, 1, 20)
    state = strategy.init(jnp.ones((3, 20)) * jnp.array([[1.0], [2.0], [-1.0]]))

    def cost(x: jax.Array) -> jax.Array:
        return (scale * x**2).sum(axis=-1)

    def generation(state: object, key: jax.Array) -> tuple[object, jax.Array]:
        state, solutions = strategy.ask(state, key)
        order = jnp.argsort(cost(solutions), axis=-1)
        return strategy.tell(state, solutions, order, jnp.full(3, 8)), cost(solutions).min(axis=1)

    before = cost(state.mean)
    state, best = jax.jit(lambda s: jax.lax.scan(generation, s, jax.random.split(KEY, 300)))(state)
    assert np.all(cost(state.mean) < 0.03 * before)
    assert not np.allclose(best[:, 0], best[:, 1])
    assert not strategy.should_stop(state).any()


@pytest.mark.parametrize("name", NAMES)
def test_stops_when_degenerate(name: str) -> None:
    strategy = Evosax(name, 4, 1.0)
    state = strategy.init(jnp.zeros((3, 5)))
    state = state.replace(std=jnp.array([1.0, 1e-12, jnp.nan]))
    np.testing.assert_array_equal(strategy.should_stop(state), [False, True, True])


def test_limited_memory_remembers_the_draws_of_the_best() -> None:
    """The path of the first direction points where the best half was, in whatever order."""
    strategy = Evosax("lm_ma_es", 8, 1.0)
    state, solutions = strategy.ask(strategy.init(jnp.zeros((1, 30))), KEY)
    order = jnp.argsort(solutions[..., 0], axis=-1)
    told = strategy.tell(state, solutions, order, jnp.array([4]))
    path = told.M[0, 0]
    step = told.mean[0]
    cosine = path @ step / jnp.linalg.norm(path) / jnp.linalg.norm(step)
    assert cosine == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_searches_in_a_thousand_dimensions(name: str) -> None:
    config = SearchConfig(
        algorithm="cma_mae", strategy=name, emitters=2, batch_size=8, sigma0=0.2, threshold_min=0.0
    )

    def score(params: None, key: jax.Array, x: jax.Array, memory: Memory) -> tuple[Scores, Memory]:
        halves = x.reshape(-1, 2, 500).sum(axis=-1) / 20
        return Scores(100 - (x**2).mean(axis=-1), halves), memory

    archive = GridArchive(cells=(20, 20), lower=(-2.0, -2.0), upper=(2.0, 2.0))
    search = make_search(config, archive, score)
    assert search.emitter.strategy.name == name
    state = init(search, None, KEY, jnp.zeros((2, 1000)))
    _, metrics = jax.jit(run, static_argnums=(0, 3))(search, None, state, 30)
    assert metrics.coverage > 0.05
    assert metrics.non_finite == 0


def test_impossible_options() -> None:
    with pytest.raises(ConfigError, match=r"make search\.batch_size even"):
        Evosax("openai_es", 5, 1.0)
    config = SearchConfig(algorithm="cma_me", strategy="sep_cma_es", selection="filter")
    with pytest.raises(ConfigError, match="weighs the better half"):
        make_search(config, GridArchive((4,), (0.0,), (1.0,)), lambda *_: None)
