"""Archives and emitters of this package inside QDax's MAPElites, without defects of QDax 0.5.

For each relevant defect of QDax, a test names it and shows that this package does not have it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from qdax.core.containers.mapelites_repertoire import MapElitesRepertoire
from qdax.core.emitters.cma_improvement_emitter import CMAImprovementEmitter
from qdax.core.emitters.cma_pool_emitter import CMAPoolEmitter
from qdax.core.emitters.mutation_operators import isoline_variation
from qdax.core.emitters.standard_emitters import MixingEmitter
from qdax.core.map_elites import MAPElites
from qdax.tasks.arm import arm_scoring_function
from qdax.utils.metrics import default_qd_metrics

from qdgs_jax import search
from qdgs_jax.archives import Archive, CVTArchive, GridArchive
from qdgs_jax.emitters.cma_es import CMAES
from qdgs_jax.emitters.evolution_strategy import EvolutionStrategy
from qdgs_jax.emitters.gradient_arborescence import GradientArborescence, branch
from qdgs_jax.emitters.qdax import QDaxEmitter, QDaxScore, Repertoire
from qdgs_jax.emitters.rules import Rules
from qdgs_jax.emitters.variation import Variation
from qdgs_jax.jacobian import Scores, with_jacobian
from qdgs_jax.search_config import SearchConfig

D = 6
KEY = jax.random.key(0)
GRID = GridArchive(cells=(20, 20), lower=(0.0, 0.0), upper=(1.0, 1.0))
ANNEALED = GridArchive(GRID.cells, GRID.lower, GRID.upper, learning_rate=0.1, threshold_min=-1.0)
CVT = CVTArchive(tuple(map(tuple, GRID.centres()[::7].tolist())), GRID.lower, GRID.upper)
init = jax.jit(Repertoire.init, static_argnums=0)
metrics_function = functools.partial(default_qd_metrics, qd_offset=1.0)


def qdax_emitter() -> MixingEmitter:
    variation = functools.partial(isoline_variation, iso_sigma=0.05, line_sigma=0.1)
    return MixingEmitter(lambda x, key: x, variation, 1.0, 32)


def run(
    emitter: Any,
    repertoire_init: Callable[..., Any],
    generations: int = 60,
    scoring_function: Any = arm_scoring_function,
    centroids: Any = None,
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """QDax's own loop: init, then `scan_update` under jit."""
    loop = MAPElites(scoring_function, emitter, metrics_function, repertoire_init)
    genotypes = jax.random.uniform(jax.random.key(1), (32, D))
    repertoire, state, _ = jax.jit(loop.init)(genotypes, centroids, KEY)
    carry, metrics = jax.jit(
        lambda carry: jax.lax.scan(loop.scan_update, carry, length=generations)
    )((repertoire, state, KEY))
    return carry[0], carry[1], jax.tree.map(lambda values: values[-1], metrics)


def ours(archive: Archive) -> Callable[..., Repertoire]:
    return functools.partial(Repertoire.init, archive)


@pytest.mark.slow
@pytest.mark.parametrize("archive", [ANNEALED, CVT], ids=["annealed", "cvt"])
def test_our_archive_under_qdax_emitters(archive: Archive) -> None:
    repertoire, _, metrics = run(qdax_emitter(), ours(archive))
    assert metrics["coverage"] > 25
    filled = np.flatnonzero(repertoire.state.occupied)
    fitnesses, descriptors, _ = arm_scoring_function(repertoire.genotypes[filled], KEY)
    np.testing.assert_allclose(repertoire.fitnesses[filled, 0], fitnesses, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(archive.index_of(descriptors), filled)
    stock = repertoire.as_qdax()
    assert isinstance(stock, MapElitesRepertoire)
    assert stock.centroids.shape == (archive.size, 2)


@pytest.mark.parametrize(
    ("archive", "emitter"),
    [
        pytest.param(GRID, Variation(2, 16, 0.05, 0.1), id="map_elites_line"),
        pytest.param(
            GRID,
            EvolutionStrategy(2, CMAES(16, 0.1), Rules("2imp", "filter", "no_improvement")),
            id="cma_me",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ANNEALED,
            EvolutionStrategy(2, CMAES(16, 0.1), Rules("imp", "mu")),
            id="cma_mae",
            marks=pytest.mark.slow,
        ),
        pytest.param(ANNEALED, GradientArborescence(2, 16, 2, 0.1, 0.1), id="cma_maega"),
    ],
)
def test_our_emitters_under_qdax(archive: Archive, emitter: Any) -> None:
    adapted = QDaxEmitter(archive, emitter, arm_scoring_function)
    repertoire, _, metrics = run(adapted, ours(GRID))
    assert repertoire.fitnesses.shape == (400, 1)
    assert metrics["coverage"] > 25
    assert metrics["max_fitness"] > -0.1


def test_our_emitters_fill_either_repertoire_alike() -> None:
    """As long as all descriptors are inside the grid."""
    emitter = QDaxEmitter(GRID, Variation(2, 16, 0.05, 0.1))
    mine, _, _ = run(emitter, ours(GRID), generations=20)
    centroids = jnp.asarray(GRID.centres())
    with jax.numpy_rank_promotion("allow"):  # QDax's repertoire promotes ranks implicitly
        theirs, _, _ = run(emitter, MapElitesRepertoire.init, generations=20, centroids=centroids)
    same = np.isclose(mine.fitnesses, theirs.fitnesses) | (mine.fitnesses == theirs.fitnesses)
    assert same.mean() > 0.99  # descriptors on a boundary may fall to either side


@pytest.mark.slow
def test_genotypes_may_be_pytrees() -> None:
    def scoring_function(genotypes: Any, key: jax.Array) -> Any:
        flat = jnp.concatenate([genotypes["kernel"].reshape(-1, 4), genotypes["bias"]], axis=1)
        return arm_scoring_function(flat, key)

    loop = MAPElites(
        scoring_function,
        QDaxEmitter(ANNEALED, EvolutionStrategy(2, CMAES(8, 0.1), Rules())),
        metrics_function,
        ours(GRID),
    )
    genotypes = {
        "kernel": jax.random.uniform(KEY, (8, 2, 2)),
        "bias": jax.random.uniform(jax.random.key(1), (8, 2)),
    }
    repertoire, state, _ = jax.jit(loop.init)(genotypes, None, KEY)
    repertoire, state, _ = jax.jit(loop.update)(repertoire, state, KEY)
    assert repertoire.genotypes["kernel"].shape == (400, 2, 2)
    picked = repertoire.select(KEY, 3).genotypes
    assert jax.tree.map(jnp.shape, picked) == {"kernel": (3, 2, 2), "bias": (3, 2)}


def batch(n: int = 6) -> tuple[jax.Array, jax.Array, jax.Array]:
    x = jax.random.uniform(KEY, (n, D))
    fitnesses, descriptors, _ = arm_scoring_function(x, KEY)
    return x, fitnesses, descriptors


def test_a_descriptor_that_is_nan_lands_nowhere() -> None:
    """QDax: argmin over NaN distances is cell 0."""
    x, fitnesses, descriptors = batch()
    descriptors = descriptors.at[0].set(jnp.nan)
    repertoire = init(GRID, x, fitnesses, descriptors)
    assert repertoire.fitnesses[0, 0] == -jnp.inf
    assert repertoire.state.count <= 5


def test_a_fitness_that_is_nan_takes_no_neighbour_with_it() -> None:
    """QDax: the cell's best is NaN, which equals nobody."""
    x, fitnesses, _ = batch()
    together = jnp.full((6, 2), 0.51)
    repertoire = init(GRID, x, fitnesses.at[2].set(jnp.nan), together)
    expected = jnp.delete(fitnesses, 2).max()
    assert repertoire.fitnesses[GRID.index_of(together[:1])[0], 0] == expected


def test_of_equals_one_is_stored_whole() -> None:
    """QDax: all of them are scattered to one cell, leaf by leaf."""
    x, _, _ = batch()
    descriptors = jnp.full((6, 2), 0.51) + 0.001 * jnp.arange(6)[:, None]
    repertoire = init(GRID, x, jnp.ones(6), descriptors)
    cell = GRID.index_of(descriptors[:1])[0]
    np.testing.assert_array_equal(repertoire.genotypes[cell], x[0])
    np.testing.assert_array_equal(repertoire.descriptors[cell], descriptors[0])


@pytest.mark.slow
def test_told_coefficients_are_those_emitted() -> None:
    """QDax's CMA-MEGA: `emit` and `state_update` draw different ones."""
    emitter = QDaxEmitter(ANNEALED, GradientArborescence(2, 5, 2, 0.1, 0.1), arm_scoring_function)
    x, fitnesses, descriptors = batch()
    repertoire = init(GRID, x, fitnesses, descriptors)
    state = emitter.init(KEY, repertoire, x, fitnesses, descriptors, {})
    genotypes, extra = jax.jit(emitter.emit)(repertoire, state, KEY)
    _, asked, _ = extra["qdgs_jax"]
    theta = state.emitter.ascent.theta
    np.testing.assert_array_equal(genotypes[:2], theta)
    gradients = emitter._gradients(lambda genotype: genotype, theta, KEY)
    expected = branch(asked.coefficients, gradients).latents
    np.testing.assert_allclose(genotypes[2:], expected, rtol=1e-5, atol=1e-6)
    # Both signs occur. QDax takes the objective's coefficient positive.
    assert asked.coefficients[..., 0].min() < 0 < asked.coefficients[..., 0].max()


def test_theta_starts_at_the_best_genotype_and_is_archived() -> None:
    """QDax's CMA-MEGA and CMA-ME: it starts at zero; CMA-MEGA's is never archived."""
    x, fitnesses, descriptors = batch()
    for inner in (
        GradientArborescence(1, 5, 2, 0.1, 0.1),
        EvolutionStrategy(1, CMAES(5, 0.1), Rules()),
    ):
        emitter = QDaxEmitter(ANNEALED, inner, arm_scoring_function)
        repertoire = init(GRID, x, fitnesses, descriptors)
        state = emitter.init(KEY, repertoire, x, fitnesses, descriptors, {})
        start = x[jnp.argmax(fitnesses)]
        if isinstance(inner, GradientArborescence):
            np.testing.assert_array_equal(state.emitter.ascent.theta[0], start)
            genotypes, _ = jax.jit(emitter.emit)(repertoire, state, KEY)
            np.testing.assert_array_equal(genotypes[0], start)
        else:
            np.testing.assert_array_equal(state.emitter.strategy.mean[0], start)


def test_a_gradient_emitter_needs_a_scoring_function() -> None:
    with pytest.raises(ValueError, match="give the scoring_function"):
        QDaxEmitter(ANNEALED, GradientArborescence(1, 5, 2, 0.1, 0.1))


def test_addressing_a_grid_looks_at_no_centroid() -> None:
    """QDax: a cell is found by the distance to every centroid, O(batch x cells)."""
    huge = GridArchive(cells=(1000, 1000), lower=(0.0, 0.0), upper=(1.0, 1.0))
    jaxpr = jax.make_jaxpr(huge.index_of)(jnp.zeros((8, 2)))
    sizes = [math.prod(v.aval.shape) for e in jaxpr.jaxpr.eqns for v in e.outvars]
    assert max(sizes) <= 16


def toy_score(params: jax.Array, key: jax.Array, latents: jax.Array, memory: Any) -> Any:
    """Highest at `params` [D]; out of distribution where the last number is negative."""
    objective = 1 - jnp.sum((latents - params[None]) ** 2, axis=-1)
    return Scores(objective, latents[:, :2], atypical=latents[:, -1] < 0), memory


def toy_search(**options: Any) -> search.Search:
    config = SearchConfig(
        **{"algorithm": "map_elites", "emitters": 4, "threshold_min": -1.0, **options}
    )
    return search.make_search(
        config, GRID, toy_score, with_jacobian(toy_score),
        repair=lambda params, latents: jnp.clip(latents, -1.0, 1.0),
    )  # fmt: skip


PARAMS = jnp.full(D, 0.5)
LATENTS = jnp.concatenate(
    [PARAMS[None] * jnp.array([[1.0], [9.0], [-3.0], [-1.0]]), jnp.full((1, D), jnp.nan)]
)
"""The optimum; beyond what is repaired, to 1; twice out of distribution; not finite."""


def test_a_score_for_qdax_obeys_the_constraint() -> None:
    fitnesses, descriptors, extra = QDaxScore(toy_search(), PARAMS)(LATENTS, KEY)
    np.testing.assert_allclose(fitnesses, [1, -0.5, -jnp.inf, -jnp.inf, -jnp.inf])
    assert extra["allowed"].tolist() == [True, True, False, False, False]
    np.testing.assert_array_equal(extra["latents"][1:3], [[1.0] * D, [-1.0] * D])
    np.testing.assert_array_equal(descriptors[1:3], [[1.0, 1.0], [-1.0, -1.0]])
    assert jnp.isfinite(descriptors).all()
    below = QDaxScore(toy_search(threshold_min=0.0), PARAMS)
    assert below(LATENTS, KEY)[2]["allowed"].tolist() == [True, False, False, False, False]
    kept, _, _ = QDaxScore(toy_search(), PARAMS, keep_objective=True)(LATENTS, KEY)
    np.testing.assert_allclose(kept, [1, -0.5, 1 - 6 * 2.25, -5, -jnp.inf])


def test_gradients_for_qdax_are_the_jacobian() -> None:
    made = toy_search(algorithm="cma_mega")
    _, _, extra = QDaxScore(made, PARAMS, gradients=True)(LATENTS[3:4], KEY)
    expected = jnp.concatenate([jnp.full((1, D), 2.0), jnp.eye(2, D)])
    np.testing.assert_allclose(extra["gradients"][0], expected.T, atol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(extra["normalized_grads"][0], axis=0), 1, rtol=1e-5)


def improvement(emitters: int = 4) -> CMAPoolEmitter:
    centroids = jnp.asarray(GRID.centres())
    return CMAPoolEmitter(emitters, CMAImprovementEmitter(8, D, centroids, 0.3, min_count=1))


@pytest.mark.slow
@pytest.mark.parametrize("repertoire", ["ours", "theirs"])
@pytest.mark.parametrize("emitter", [qdax_emitter(), improvement()], ids=["mixing", "cma_me"])
def test_qdax_runs_on_our_score(emitter: Any, repertoire: str) -> None:
    """Its elites obey the constraint, and no weight is a constant of the program."""
    made, cma = toy_search(), isinstance(emitter, CMAPoolEmitter)
    weights = jnp.concatenate([PARAMS, jnp.zeros(5000)])
    made = dataclasses.replace(made, score=lambda params, *others: toy_score(params[:D], *others))
    init = ours(GRID) if repertoire == "ours" else MapElitesRepertoire.init
    map_elites = functools.partial(
        MAPElites, emitter=emitter, metrics_function=lambda _: {}, repertoire_init=init
    )

    def run(score: QDaxScore, latents: jax.Array) -> Any:
        loop = map_elites(score)
        repertoire, state, _ = loop.init(latents, jnp.asarray(GRID.centres()), KEY)
        return jax.lax.scan(loop.scan_update, (repertoire, state, KEY), length=60)[0][0]

    score, latents = QDaxScore(made, weights, keep_objective=cma), jax.random.normal(KEY, (32, D))
    with jax.numpy_rank_promotion("allow"):
        constants = jax.make_jaxpr(run)(score, latents).consts
        found = jax.jit(run)(score, latents)
    assert all(np.size(constant) < 5000 for constant in constants)
    fitnesses = found.fitnesses[:, 0]
    elites = found.genotypes[fitnesses > made.floor]
    assert len(elites) > 40
    if repertoire == "ours":
        assert jnp.abs(elites).max() <= 1
        assert (fitnesses > made.floor).sum() == found.state.count
    scores, _ = toy_score(PARAMS, KEY, made.repair(None, elites), ())
    np.testing.assert_allclose(scores.objective, fitnesses[fitnesses > made.floor], rtol=1e-4)
    assert not scores.atypical.any()


@pytest.mark.parametrize(
    "emitter",
    [
        qdax_emitter(),
        pytest.param(improvement(), marks=pytest.mark.slow),
    ],
    ids=["mixing", "cma_me"],
)
def test_an_emitter_of_qdax_in_our_search(emitter: Any) -> None:
    config = SearchConfig(algorithm="map_elites", emitters=4, threshold_min=-1.0)
    made = search.make_search(config, GRID, toy_score, emitter=emitter)
    assert made.evaluations_per_generation == emitter.batch_size
    latents = jax.random.normal(KEY, (32, D))
    with jax.numpy_rank_promotion("allow"):
        state = jax.jit(search.init, static_argnums=0)(made, PARAMS, KEY, latents)
        _, asked = jax.jit(search.ask, static_argnums=0)(made, PARAMS, state)
        state, metrics = jax.jit(search.run, static_argnums=(0, 3))(made, PARAMS, state, 60)
    if isinstance(emitter, MixingEmitter):  # from the best of the samples, for lack of elites
        best = latents[jnp.argsort(-toy_score(PARAMS, KEY, latents, ())[0].objective)[:4]]
        distances = jnp.linalg.norm(asked.latents[:, None] - best[None], axis=-1).min(axis=1)
        assert distances.max() < 1
    assert metrics.coverage > 0.1
    assert metrics.restarts == 0
    elites = state.elites.latents[state.elites.occupied]
    assert elites[:, -1].min() >= 0
