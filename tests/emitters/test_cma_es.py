"""CMA-ES compared with pyribs' in float64, with the same normal draws.

An eigenbasis is not unique if eigenvalues coincide, as they do at the start, and two LAPACKs choose
different ones. Hence the draws are given as B' z: m + sigma B D (B' z) is the same for every choice
of B.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import threadpoolctl
from ribs.emitters.opt import CMAEvolutionStrategy

from qdgs_jax.emitters import cma_es, select
from qdgs_jax.emitters.cma_es import CMAES, CMAESState, recombination_weights


class Draws:
    """Replaces numpy's generator: returns the normals that it was given."""

    def __init__(self, es: CMAEvolutionStrategy) -> None:
        self.es = es

    def normal(self, loc: float, scale: float, size: tuple[int, ...]) -> np.ndarray:
        assert self.normals.shape == size
        return loc + scale * self.normals @ self.es.cov.eigenbasis


def seen_from_outside(es: CMAES) -> Any:
    """`es.ask_with_normals`, with draws that do not depend on the eigenbasis."""

    @jax.jit
    def ask(state: CMAESState, normals: jax.Array) -> tuple[CMAESState, jax.Array]:
        state = es.decompose(state)
        return es.ask_with_normals(state, normals @ state.basis)

    return ask


def pyribs(es: CMAES, mean: np.ndarray) -> CMAEvolutionStrategy:
    theirs = CMAEvolutionStrategy(es.sigma0, len(mean), es.batch_size, seed=0)
    theirs.reset(mean)
    theirs._rng = Draws(theirs)
    return theirs


def assert_same(state: CMAESState, theirs: list[CMAEvolutionStrategy], tolerance: float) -> None:
    for e, them in enumerate(theirs):
        np.testing.assert_allclose(state.mean[e], them.mean, rtol=0, atol=tolerance)
        for ours, other in [
            (state.sigma, them.sigma),
            (state.path_c, them.pc),
            (state.path_sigma, them.ps),
            (state.covariance, them.cov.cov),
            (state.variances, them.cov.eigenvalues),
            (state.evaluations, them.current_eval),
            (state.decomposed_at, them.cov.updated_eval),
        ]:
            scale = np.abs(other).max() or 1.0
            np.testing.assert_allclose(ours[e] / scale, other / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("n", "batch_size"),
    [
        pytest.param(2, 4, marks=pytest.mark.slow),
        (3, 15),
        pytest.param(10, 36, marks=pytest.mark.slow),
    ],
)
def test_trace_is_that_of_pyribs(n: int, batch_size: int) -> None:
    """200 generations of three emitters on an ellipsoid with 0, 1, half or all as parents."""
    rng = np.random.default_rng(n)
    es = CMAES(batch_size, sigma0=0.5)
    means = rng.normal(size=(3, n))
    theirs = [pyribs(es, mean) for mean in means]
    with jax.enable_x64(True):
        state = es.init(jnp.asarray(means))
        ask, tell = seen_from_outside(es), jax.jit(es.tell)
        for _ in range(200):
            normals = rng.normal(size=(3, batch_size, n))
            state, solutions = ask(state, jnp.asarray(normals))
            parents = rng.choice([0, 1, batch_size // 2, batch_size], size=3)
            order = np.argsort((solutions**2 * np.arange(1, n + 1)[None, None]).sum(-1), axis=-1)
            state = tell(state, solutions, jnp.asarray(order), jnp.asarray(parents))
            for e, them in enumerate(theirs):
                them._rng.normals = normals[e]
                expected = them.ask()
                np.testing.assert_allclose(solutions[e], expected, rtol=0, atol=1e-9)
                them.tell(order[e], order[e], int(parents[e]))
            assert_same(state, theirs, 1e-9)


@pytest.mark.parametrize(
    ("change", "stops"),
    [
        ({}, False),
        ({"sigma": 0.9e-11}, True),
        ({"variances": [1.0, 0.9e-14]}, True),
        ({"variances": [1.0, 1.1e-14]}, False),
    ],
)
def test_stops_like_pyribs(change: dict[str, object], stops: bool) -> None:
    with jax.enable_x64(True):
        es = CMAES(4, sigma0=1.0)
        state = es.init(jnp.zeros((1, 2)))
        state = state.replace(**{name: jnp.asarray([value]) for name, value in change.items()})
        assert bool(es.should_stop(state)[0]) == stops


def test_stops_in_float32_before_rounding_rules() -> None:
    es = CMAES(4, sigma0=1.0)
    state = es.init(jnp.zeros((2, 2)))
    state = state.replace(variances=jnp.array([[1.0, 1e-6], [1.0, 2e-7]]))
    np.testing.assert_array_equal(es.should_stop(state), [False, True])


@pytest.mark.parametrize("parents", [1, 2, 7])
def test_weights_are_those_of_the_ranked_parents(parents: int) -> None:
    order = jnp.array([[3, 1, 0, 6, 5, 2, 4]])
    weights = recombination_weights(order, jnp.array([parents]), jnp.float32)[0]
    expected = np.log(parents + 0.5) - np.log(np.arange(1, parents + 1))
    np.testing.assert_allclose(weights[order[0, :parents]], expected / expected.sum(), rtol=1e-5)
    np.testing.assert_array_equal(weights[order[0, parents:]], 0)


def test_no_parent_no_weight() -> None:
    weights = recombination_weights(jnp.array([[1, 0]]), jnp.array([0]), jnp.float32)
    np.testing.assert_array_equal(weights, 0)


def test_a_step_size_grows_by_a_factor_of_e_at_most() -> None:
    es = CMAES(4, 0.5)
    state = es.init(jnp.zeros((1, 3))).replace(path_sigma=jnp.full((1, 3), 1e3))
    state, solutions = es.ask(state, jax.random.key(0))
    state = es.tell(state, solutions, jnp.arange(4)[None], jnp.array([2]))
    np.testing.assert_allclose(state.sigma, 0.5 * np.e, rtol=1e-6)


@pytest.mark.slow
def test_emitters_do_not_touch_each_other() -> None:
    """Nine emitters out of step equal nine single ones, whether none, few or all are decomposed."""
    with jax.enable_x64(True):
        es, E, n = CMAES(6, sigma0=0.3), 9, 8  # decomposed every second generation or so
        means = jax.random.normal(jax.random.key(0), (E, n))
        together, single = es.init(means), [es.init(means[e : e + 1]) for e in range(E)]
        ask, tell = seen_from_outside(es), jax.jit(es.tell)
        for generation in range(40):
            normals = jax.random.normal(jax.random.key(generation), (E, 6, n))
            together, solutions = ask(together, normals)
            order = jnp.argsort((solutions**2).sum(-1), axis=-1)
            parents = jnp.array([3, 1, 2, 0, 4, 6, 3, 3, 2])
            together = tell(together, solutions, order, parents)
            if generation < E - 1:  # puts them out of step
                late = jnp.arange(E) == generation
                together = select(late, es.init(means), together)
            for e in range(E):
                one = slice(e, e + 1)
                single[e], alone = ask(single[e], normals[one])
                np.testing.assert_allclose(solutions[one], alone, rtol=0, atol=1e-9)
                single[e] = tell(single[e], alone, order[one], parents[one])
                if e == generation < E - 1:
                    single[e] = es.init(means[one])
        assert len(set(np.asarray(together.decomposed_at).tolist())) > 2


def test_large_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """In parallel, without limiting the threads of BLAS before."""
    monkeypatch.setattr(cma_es, "_CALLS", 3)  # of 2, 2 and 1 matrices
    threadpoolctl.threadpool_limits(2, user_api="blas")
    factor = np.random.default_rng(0).normal(size=(5, 40, 40)).astype(np.float32)
    C = factor @ factor.swapaxes(1, 2) / 40
    eigenvalues, B = jax.jit(cma_es._eigh)(jnp.asarray(C))
    np.testing.assert_allclose(eigenvalues, np.linalg.eigvalsh(C), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose((B * eigenvalues[:, None]) @ B.mT, C, atol=1e-5)
    threads = {
        library["num_threads"]
        for library in threadpoolctl.threadpool_info()
        if library["user_api"] == "blas" and "scipy" in library["filepath"]
    }
    assert threads == {1}


def test_cholesky_factors_give_the_same_distribution() -> None:
    """Solutions have covariance sigma^2 C, and whitened steps the length of C^-1/2 `step`."""
    with jax.enable_x64(True):
        n = 6
        A = jax.random.normal(jax.random.key(0), (2, n, n))
        C = A @ A.mT + 0.1 * jnp.eye(n)[None]
        es = CMAES(n, 0.5, "cholesky")
        state = es.init(jnp.ones((2, n))).replace(covariance=C, evaluations=jnp.full(2, 1000))
        normals = jnp.tile(jnp.eye(n), (2, 1, 1))  # the solutions are then the rows of a factor
        state, solutions = jax.jit(es.ask_with_normals)(state, normals)
        factor = (solutions - 1).mT / 0.5
        np.testing.assert_allclose(factor @ factor.mT, C, rtol=0, atol=1e-12)
        step = jnp.arange(1.0, n + 1)
        for e in range(2):
            one = jax.tree.map(lambda leaf, e=e: leaf[e], state)
            length = (es._whitened(one, step) ** 2).sum()
            np.testing.assert_allclose(length, step @ jnp.linalg.solve(C[e], step), rtol=1e-10)


@pytest.mark.slow
def test_cholesky_factors_descend_like_eigen() -> None:
    """Both reach the minimum of an ellipsoid of condition 100 in as many generations."""
    scales = jnp.logspace(0, 2, 20)
    best = {}
    for factors in ("eigen", "cholesky"):
        es = CMAES(14, 0.5, factors)

        def generation(
            state: CMAESState, key: jax.Array, es: CMAES = es
        ) -> tuple[CMAESState, jax.Array]:
            state, solutions = es.ask(state, key)
            cost = (scales[None, None] * solutions**2).sum(axis=-1)
            half = jnp.full(8, es.batch_size // 2)
            return es.tell(state, solutions, jnp.argsort(cost, axis=-1), half), cost.min(axis=-1)

        keys = jax.random.split(jax.random.key(1), 600)
        _, costs = jax.lax.scan(jax.jit(generation), es.init(jnp.ones((8, 20))), keys)
        best[factors] = np.log10(np.asarray(costs.min(axis=0))).mean()
    assert best["eigen"] < -5, best
    assert abs(best["cholesky"] - best["eigen"]) < 1


def test_a_covariance_that_is_not_positive_ends_the_strategy() -> None:
    es = CMAES(4, 0.5, "cholesky")
    state = es.init(jnp.zeros((2, 2)))
    C = state.covariance.at[1].set(jnp.array([[1.0, 2.0], [2.0, 1.0]]))
    state, solutions = es.ask(
        state.replace(covariance=C, evaluations=jnp.full(2, 1000)), jax.random.key(0)
    )
    np.testing.assert_array_equal(es.should_stop(state), [False, True])
    assert jnp.isfinite(solutions).all()
