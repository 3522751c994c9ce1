"""The loop: reproducible, compiled once, usable in other programs."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax import search as searches
from qdgs_jax.archives import CVTArchive, GridArchive
from qdgs_jax.errors import ConfigError
from qdgs_jax.jacobian import Memory, Scores, with_jacobian
from qdgs_jax.search import Search, SearchState, init, make_search, run, step
from qdgs_jax.search_config import SearchConfig

D, SAMPLES = 6, 20
GRID = GridArchive(cells=(10, 10), lower=(-6.0, -6.0), upper=(6.0, 6.0))
FAMILIES = ["map_elites_line", "cma_me", "cma_maega"]
OTHERS = ["map_elites", "cma_mae", "omg_mega", "cma_mega"]
run_jitted = jax.jit(run, static_argnums=(0, 3))


def score(
    params: jax.Array, key: jax.Array, latents: jax.Array, memory: Memory = ()
) -> tuple[Scores, Memory]:
    """A sphere about `params` [D], and the sums of either half as measures."""
    halves = latents.reshape(-1, 2, D // 2).sum(axis=-1)
    return Scores(100 - ((latents - params[None]) ** 2).sum(axis=-1), halves), memory


def score_with_jacobian(
    params: jax.Array, key: jax.Array, latents: jax.Array, memory: Memory = ()
) -> tuple[Scores, Memory]:
    scores, _ = score(params, key, latents)
    rows = jnp.repeat(jnp.eye(2), D // 2, axis=1)
    jacobian = jnp.concatenate(
        [-2 * (latents - params[None])[:, None], jnp.broadcast_to(rows, (len(latents), 2, D))],
        axis=1,
    )
    return scores.replace(jacobian=jacobian), memory


def slow(*algorithms: str) -> list:
    return [pytest.param(algorithm, marks=pytest.mark.slow) for algorithm in algorithms]


@pytest.fixture(params=[*slow(*FAMILIES[:2]), FAMILIES[2]])
def search(request: pytest.FixtureRequest) -> Search:
    return toy(algorithm=request.param)


def toy(**options: object) -> Search:
    config = SearchConfig(**{"emitters": 3, "batch_size": 5, "threshold_min": 0.0, **options})
    return make_search(config, GRID, score, score_with_jacobian)


def begin(search: Search, seed: int = 0) -> SearchState:
    key, latents_key = jax.random.split(jax.random.key(seed))
    latents = jax.random.normal(latents_key, (SAMPLES, D))
    return jax.jit(init, static_argnums=0)(search, jnp.ones(D), key, latents)


def assert_equal(left: object, right: object) -> None:
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("algorithm", [*slow(*FAMILIES[:2], *OTHERS), FAMILIES[2]])
def test_every_algorithm_fills_the_archive_and_counts_its_evaluations(algorithm: str) -> None:
    search, calls = toy(algorithm=algorithm), []
    counted = dataclasses.replace(
        search,
        score=lambda p, k, x, m: calls.append(len(x)) or score(p, k, x, m),
        score_with_jacobian=search.score_with_jacobian
        and (lambda p, k, x, m: calls.append(len(x)) or score_with_jacobian(p, k, x, m)),
    )
    state = begin(search)
    jax.eval_shape(partial(step, counted), jnp.ones(D), state)
    assert sum(calls) == search.evaluations_per_generation
    state, metrics = run_jitted(search, jnp.ones(D), state, 60)
    assert int(state.generation) == 60
    assert metrics.coverage > 0.3
    assert 90 < metrics.best_objective <= 100
    assert metrics.qd_score == pytest.approx(float(np.maximum(state.elites.objective, 0).sum()))
    assert metrics.mean_objective == pytest.approx(
        float(state.elites.objective[state.elites.occupied].mean()), rel=1e-5
    )
    assert metrics.non_finite == 0


def test_elites_hold_true_scores_and_the_best_of_each_cell() -> None:
    search = toy()
    state, _ = run_jitted(search, jnp.ones(D), begin(search), 60)
    elites, filled = state.elites, np.flatnonzero(state.elites.occupied)
    scores, _ = score(jnp.ones(D), jax.random.key(0), elites.latents[filled])
    np.testing.assert_allclose(scores.objective, elites.objective[filled], rtol=1e-5)
    np.testing.assert_array_equal(search.archive.index_of(scores.measures), filled)
    assert state.annealed is not None
    assert np.all(elites.objective >= state.annealed.objective)
    assert np.any(elites.objective > state.annealed.objective)


def test_what_is_not_above_the_threshold_is_no_elite() -> None:
    search = toy(threshold_min=95.0)
    state, metrics = run_jitted(search, jnp.ones(D), begin(search), 20)
    objective = state.elites.objective[state.elites.occupied]
    assert len(objective) > 0
    assert objective.min() > 95
    assert metrics.non_finite == 0


def test_an_objective_at_the_threshold_makes_no_elite() -> None:
    search = toy(threshold_min=95.0, seek_rare=False)
    scores = Scores(jnp.array([95.0, 95.5]), jnp.array([[-1.0, -1.0], [1.0, 1.0]]))
    state, _ = searches.add(search, begin(search), jnp.ones((2, D)), scores)
    assert state.elites.objective[state.elites.occupied].tolist() == [95.5]


def test_scan_is_the_python_loop(search: Search) -> None:
    state = looped = begin(search)
    one = jax.jit(step, static_argnums=0)
    for _ in range(6):
        looped = one(search, jnp.ones(D), looped)
    scanned, _ = run_jitted(search, jnp.ones(D), state, 6)
    for left, right in zip(jax.tree.leaves(scanned), jax.tree.leaves(looped), strict=True):
        if not jnp.issubdtype(left.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-4)


def test_parts_are_the_whole() -> None:
    search = toy()
    state = parts = begin(search)
    whole, _ = run_jitted(search, jnp.ones(D), state, 6)
    for _ in range(2):
        parts, _ = run_jitted(search, jnp.ones(D), parts, 3)
    assert_equal(whole, parts)


def test_same_seed_same_archive_other_seed_another() -> None:
    search = toy()
    first, again, other = (
        run_jitted(search, jnp.ones(D), begin(search, seed), 6)[0] for seed in (0, 0, 1)
    )
    assert_equal(first, again)
    assert np.any(first.elites.objective != other.elites.objective)


def test_compiled_once_for_a_whole_run() -> None:
    search, traces = toy(), []

    def traced(params: jax.Array, key: jax.Array, latents: jax.Array, memory: Memory) -> object:
        traces.append(latents.shape)
        return score(params, key, latents, memory)

    search = dataclasses.replace(search, score=traced)
    advance = jax.jit(run, static_argnums=(0, 3), donate_argnums=2)
    state = begin(search)
    before = len(traces)
    for _ in range(4):
        state, _ = advance(search, jnp.ones(D), state, 2)
    assert len(traces) == before + 1
    assert advance._cache_size() == 1


def test_weights_are_arguments() -> None:
    """Weights, here of 6,000 numbers, are not constants of the program."""

    def scored(params: jax.Array, key: jax.Array, latents: jax.Array, memory: Memory) -> object:
        return score(params[:D], key, latents, memory)

    search = dataclasses.replace(toy(algorithm="cma_mae"), score=scored)
    params = jnp.ones(1000 * D)
    jaxpr = jax.make_jaxpr(run, static_argnums=(0, 3))(search, params, begin(search), 2)
    assert sum(np.size(constant) for constant in jaxpr.consts) < 100
    text = run_jitted.lower(search, params, begin(search), 2).as_text()
    assert len(text) < 1e6


@pytest.mark.slow
def test_runs_inside_somebody_elses_program() -> None:
    """Under jit with weights that are being trained, under vmap over seeds, through a scan."""
    search = toy(algorithm="cma_me")

    @jax.jit
    def outer(params: jax.Array, seeds: jax.Array) -> jax.Array:
        def one(seed: jax.Array) -> jax.Array:
            latents = jax.random.normal(jax.random.key(seed), (SAMPLES, D))
            state = init(search, params, jax.random.key(seed), latents)
            return run(search, params, state, 3)[1].coverage

        return jax.vmap(one)(seeds)

    coverage = outer(jnp.ones(D), jnp.arange(2))
    assert coverage.shape == (2,)
    assert np.all(coverage > 0)


def test_state_can_be_donated_also_when_init_was_not_jitted(search: Search) -> None:
    state = init(search, jnp.ones(D), jax.random.key(0), jnp.ones((SAMPLES, D)))
    leaves = [leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)]
    advance = jax.jit(run, static_argnums=(0, 3), donate_argnums=2)
    after, _ = advance(search, jnp.ones(D), state, 2)
    assert state.elites.latents.is_deleted()
    assert len(leaves) == len(jax.tree.leaves(after))


def test_scores_that_are_not_finite_are_left_out_and_counted(search: Search) -> None:
    def break_some(latents: jax.Array, scores: Scores) -> Scores:
        def put(wrong: float, values: jax.Array) -> jax.Array:
            bad = (latents[:, 0] > 0.5).reshape(-1, *[1] * (values.ndim - 1))
            return jnp.where(bad, wrong, values)

        objective, measures = put(jnp.nan, scores.objective), put(jnp.inf, scores.measures)
        jacobian = None if scores.jacobian is None else put(jnp.nan, scores.jacobian)
        return Scores(objective, measures, jacobian)

    def broken(params: jax.Array, key: jax.Array, latents: jax.Array, memory: Memory) -> object:
        return break_some(latents, score(params, key, latents)[0]), memory

    def broken_with_jacobian(
        params: jax.Array, key: jax.Array, latents: jax.Array, memory: Memory
    ) -> object:
        return break_some(latents, score_with_jacobian(params, key, latents)[0]), memory

    gradients = search.score_with_jacobian and broken_with_jacobian
    search = dataclasses.replace(search, score=broken, score_with_jacobian=gradients)
    state, metrics = run_jitted(search, jnp.ones(D), begin(search), 40)
    filled = np.asarray(state.elites.occupied)
    assert metrics.non_finite > 0
    assert filled.any()
    assert np.isfinite(state.elites.latents).all()
    assert np.all(state.elites.latents[filled][:, 0] <= 0.5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.emitter))


def test_no_emitter_starts_where_there_is_no_score() -> None:
    def broken(
        params: jax.Array, key: jax.Array, latents: jax.Array, memory: Memory
    ) -> tuple[Scores, Memory]:
        scores, _ = score(params, key, latents)
        return scores.replace(objective=scores.objective.at[:4].set(jnp.nan)), memory

    search = dataclasses.replace(toy(), score=broken)
    latents = jnp.ones((SAMPLES, D)) + jnp.arange(SAMPLES)[:, None]  # best first
    state = init(search, jnp.ones(D), jax.random.key(0), latents)
    np.testing.assert_array_equal(state.emitter.ascent.theta, latents[4:7])
    assert state.refused.non_finite == 4


@pytest.mark.slow
@pytest.mark.parametrize("slope", [0.0, 10.0], ids=["noise", "endless slope"])
def test_ten_thousand_generations_in_float32(slope: float) -> None:
    """Rankings that make sigma or the covariance diverge lead to a restart.

    Without it, either strategy is full of NaN within a thousand generations, in float64 too.
    """

    def adverse(
        params: jax.Array, key: jax.Array, latents: jax.Array, memory: Memory
    ) -> tuple[Scores, Memory]:
        objective = slope * latents[:, 0] + jax.random.normal(key, (len(latents),))
        return Scores(objective, 6 * jnp.tanh(latents[:, :2])), memory

    def adverse_with_jacobian(
        params: jax.Array, key: jax.Array, latents: jax.Array, memory: Memory
    ) -> tuple[Scores, Memory]:
        jacobian = jnp.broadcast_to(jnp.eye(3, D), (len(latents), 3, D))
        scores, _ = adverse(params, key, latents, memory)
        return scores.replace(jacobian=jacobian), memory

    search = toy(emitters=2, batch_size=4, selection="mu")
    search = dataclasses.replace(search, score=adverse, score_with_jacobian=adverse_with_jacobian)
    state, metrics = run_jitted(search, jnp.ones(D), begin(search), 10_000)
    assert metrics.restarts > 10
    assert metrics.non_finite < 1000  # of 100,000: each overflow is followed by a restart
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.emitter))
    _, later = run_jitted(search, jnp.ones(D), state, 10_000)
    assert later.restarts > metrics.restarts + 10  # still at work


@pytest.mark.slow
def test_a_score_may_remember(search: Search) -> None:
    """Here: how many latents it has seen."""

    def counting(plain: object) -> object:
        def scored(
            params: jax.Array, key: jax.Array, latents: jax.Array, memory: jax.Array
        ) -> object:
            return plain(params, key, latents)[0], memory + len(latents)

        return plain and scored

    remembering = dataclasses.replace(
        search,
        score=counting(search.score),
        score_with_jacobian=counting(search.score_with_jacobian),
        init_memory=lambda params: jnp.int32(0),
    )
    state, plain = begin(remembering), begin(search)
    assert plain.memory == ()
    assert int(state.memory) == SAMPLES
    state, _ = run_jitted(remembering, jnp.ones(D), state, 4)
    assert int(state.memory) == SAMPLES + 4 * search.evaluations_per_generation
    plain, _ = run_jitted(search, jnp.ones(D), plain, 4)
    assert_equal(state.elites, plain.elites)


def test_no_call_of_a_score_has_the_key_of_another() -> None:
    """The memory holds a draw by each key."""

    def drawing(
        params: jax.Array, key: jax.Array, latents: jax.Array, memory: jax.Array
    ) -> tuple[Scores, jax.Array]:
        drawn = jax.random.uniform(key)
        return score(params, key, latents)[0], jnp.roll(memory, 1).at[0].set(drawn)

    def drawing_with_jacobian(
        params: jax.Array, key: jax.Array, latents: jax.Array, memory: jax.Array
    ) -> tuple[Scores, jax.Array]:
        _, memory = drawing(params, key, latents, memory)
        return score_with_jacobian(params, key, latents)[0], memory

    search = dataclasses.replace(
        toy(),
        score=drawing,
        score_with_jacobian=drawing_with_jacobian,
        init_memory=lambda params: jnp.zeros(9),
    )
    state, _ = run_jitted(search, jnp.ones(D), begin(search), 4)
    assert len(set(state.memory.tolist()) - {0.0}) == 1 + 2 * 4


def test_points_of_gradients_join_the_archive() -> None:
    search = toy(sigma0=50.0)  # branches lie elsewhere
    state = begin(search)
    theta = state.emitter.ascent.theta
    scores, _ = score(jnp.ones(D), jax.random.key(0), theta)
    state = jax.jit(step, static_argnums=0)(search, jnp.ones(D), state)
    cells = search.archive.index_of(scores.measures)
    assert np.all(state.elites.objective[cells] >= scores.objective - 1e-4)


def test_emitters_start_at_the_best_samples() -> None:
    search, state = toy(), begin(toy())
    latents = jax.random.normal(jax.random.split(jax.random.key(0))[1], (SAMPLES, D))
    objective = score(jnp.ones(D), jax.random.key(0), latents)[0].objective
    best = latents[jnp.argsort(-objective)[: search.emitter.emitters]]
    np.testing.assert_array_equal(state.emitter.ascent.theta, best)


def test_any_archive_serves() -> None:
    rng = np.random.default_rng(0)
    points = tuple(map(tuple, rng.uniform(-6, 6, (30, 2)).tolist()))
    archive = CVTArchive(points, GRID.lower, GRID.upper)
    config = SearchConfig(
        algorithm="cma_mae", ranker="rd", emitters=3, batch_size=5, threshold_min=0.0
    )
    search = make_search(config, archive, score)
    _, metrics = run_jitted(search, jnp.ones(D), begin(search), 20)
    assert metrics.coverage > 0.3


def test_no_gradient_is_taken_without_need() -> None:
    assert toy(algorithm="cma_mae").score_with_jacobian is None
    with pytest.raises(ConfigError, match="'cma_mega' uses gradients"):
        make_search(SearchConfig(algorithm="cma_mega"), GRID, score)
    with pytest.raises(ValueError, match="give score_with_jacobian"):
        dataclasses.replace(toy(), score_with_jacobian=None)


def test_options_reach_the_emitter() -> None:
    search = toy(algorithm="cma_maega", ranker="rd", selection="mu", restart=7, optimizer="ascent")
    rules = search.emitter.rules
    assert (rules.ranker, rules.selection, rules.restart) == ("rd", "mu", 7)
    assert rules.span == (12.0, 12.0)
    assert search.emitter.optimizer == "ascent"
    assert toy(algorithm="cma_me").emitter.rules.restart == "no_improvement"
    assert toy(algorithm="cma_mae").emitter.rules.restart == 30
    assert toy(algorithm="cma_mae", seek_rare=False).emitter.rules.restart == "basic"
    assert (search.archive.learning_rate, search.archive.threshold_min) == (0.02, 0.0)
    assert toy(algorithm="cma_me").archive.threshold_min == -math.inf
    assert searches.Search.annealed.fget(search)


def test_jacobians_are_those_of_the_formula() -> None:
    latents = jax.random.normal(jax.random.key(2), (4, D))
    expected, _ = score_with_jacobian(jnp.ones(D), jax.random.key(0), latents)
    made, memory = with_jacobian(score)(jnp.ones(D), jax.random.key(0), latents, jnp.int32(3))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), made, expected)
    assert memory == 3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.replace(measures=s.measures[:, [0, 1, 1]]), r"measures has .* need \(20, 2\)"),
        (lambda s: s.replace(objective=s.objective[:, None]), r"objective has .* need \(20,\)"),
        (lambda s: s.replace(jacobian=jnp.zeros((20, 2, D))), r"jacobian has .* \(20, 3, 6\)"),
        (lambda s: (s.objective, s.measures), r"returns \(Scores, memory\)"),
    ],
)
def test_scores_that_do_not_fit_are_told_in_a_sentence(change: object, sentence: str) -> None:
    def scored(params: jax.Array, key: jax.Array, latents: jax.Array, memory: Memory) -> object:
        return change(score(params, key, latents)[0]), memory

    with pytest.raises(ValueError, match=sentence):
        begin(dataclasses.replace(toy(), score=scored))


def test_what_lacks_for_a_start_is_told_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="2 latents are too few to start 3 emitters"):
        init(toy(), jnp.ones(D), jax.random.key(0), jnp.ones((2, D)))
    search = dataclasses.replace(toy(), score_with_jacobian=score)
    with pytest.raises(ValueError, match="returns no Jacobian"):
        step(search, jnp.ones(D), begin(search))


def test_latents_are_repaired_before_they_are_scored_and_kept() -> None:
    search = dataclasses.replace(toy(), repair=lambda params, latents: jnp.clip(latents, -1, 1))
    state, metrics = run_jitted(search, jnp.ones(D), begin(search), 30)
    filled = np.flatnonzero(state.elites.occupied)
    latents = state.elites.latents[filled]
    assert np.abs(latents).max() == 1
    scores, _ = score(jnp.ones(D), jax.random.key(0), latents)
    np.testing.assert_allclose(scores.objective, state.elites.objective[filled], rtol=1e-5)
    assert metrics.coverage > 0


@pytest.mark.parametrize("algorithm", ["map_elites", "cma_me", "cma_maega"])
def test_initial_latents_become_elites_by_the_same_rules(algorithm: str) -> None:
    search = toy(algorithm=algorithm, threshold_min=85.0)
    latents = jax.random.normal(jax.random.key(3), (SAMPLES, D))
    state = jax.jit(init, static_argnums=0)(search, jnp.ones(D), jax.random.key(2), latents)
    scores, _ = score(jnp.ones(D), jax.random.key(2), latents)
    kept = np.asarray(scores.objective) > 85
    assert 0 < kept.sum() < SAMPLES
    cells = np.asarray(search.archive.index_of(scores.measures))[kept]
    assert set(np.flatnonzero(state.elites.occupied)) == set(cells)
    assert state.refused.below_floor == SAMPLES - kept.sum()
    published = toy(algorithm=algorithm, threshold_min=85.0, seek_rare=False)
    assert begin(published).elites.count == 0


@pytest.mark.parametrize("algorithm", ["map_elites", "cma_me", "cma_maega"])
def test_refused_latents_are_no_elites_and_are_counted_by_reason(algorithm: str) -> None:
    search = toy(algorithm=algorithm, threshold_min=50.0, seek_rare=False)
    objective = jnp.array([60.0, 50.0, 70.0, jnp.nan, 49.0, 80.0])
    atypical = jnp.array([False, False, True, True, True, False])
    measures = jnp.array([[-3.0, -3.0]] * 5 + [[3.0, 3.0]])
    scores = Scores(objective, measures, atypical=atypical)
    state, _ = searches.add(search, begin(search), jnp.ones((6, D)), scores)
    assert sorted(state.elites.objective[state.elites.occupied].tolist()) == [60, 80]
    if state.annealed is not None:
        assert state.annealed.occupied.sum() == 2
    refused = {name: int(value) for name, value in vars(state.refused).items()}
    assert refused == {"non_finite": 1, "atypical": 2, "below_floor": 1}


def test_an_annealed_archive_needs_a_number() -> None:
    with pytest.raises(ConfigError, match="threshold_min is 'auto', but 'cma_mae' anneals"):
        toy(algorithm="cma_mae", threshold_min="auto")
    assert toy(algorithm="map_elites", threshold_min="auto").floor == -math.inf


@pytest.mark.parametrize("algorithm", [*slow("cma_mae"), "cma_maega"])
def test_ask_and_tell_are_a_step(algorithm: str) -> None:
    """With scores of NumPy, bit for bit, and without a score in the search."""
    config = SearchConfig(algorithm=algorithm, emitters=3, batch_size=5, threshold_min=0.0)
    outside = make_search(config, GRID)
    points, ask, tell = (
        jax.jit(each, static_argnums=0) for each in (searches.points, searches.ask, searches.tell)
    )
    key, latents_key = jax.random.split(jax.random.key(0))
    latents = jax.random.normal(latents_key, (SAMPLES, D))
    scored, scored_with_jacobian = (
        lambda latents, each=each: jax.tree.map(
            np.asarray, jax.jit(each)(jnp.ones(D), key, latents)[0]
        )
        for each in (score, score_with_jacobian)
    )
    state = jax.jit(init, static_argnums=0)(outside, None, key, latents, scored(latents))
    stepped = begin(toy(algorithm=algorithm))
    one = jax.jit(step, static_argnums=0)
    for _ in range(3):
        of_points = ()
        if algorithm == "cma_maega":
            at = points(outside, None, state)
            of_points = at, scored_with_jacobian(at)
        state, asked = ask(outside, None, state, *of_points)
        state = tell(outside, state, asked, scored(asked.latents))
        stepped = one(toy(algorithm=algorithm), jnp.ones(D), stepped)
    assert_equal(state, stepped)
    assert state.elites.count > 10


def test_what_ask_and_tell_lack_is_told_in_a_sentence() -> None:
    config = SearchConfig(emitters=3, batch_size=5, threshold_min=0.0)
    search, latents = make_search(config, GRID), np.ones((SAMPLES, D))
    with pytest.raises(ValueError, match="this search has no score: give `make_search` one"):
        init(search, None, jax.random.key(0), latents)
    scores, _ = score(jnp.ones(D), jax.random.key(0), latents)
    start = jax.jit(init, static_argnums=0)
    state = start(search, None, jax.random.key(0), latents, scores)
    with pytest.raises(ValueError, match="uses gradients: give `ask` the latents of `points`"):
        searches.ask(search, None, state)
    at = searches.points(search, None, state)
    with pytest.raises(ValueError, match="returns no Jacobian"):
        searches.ask(search, None, state, at, score(jnp.ones(D), jax.random.key(0), at)[0])
    search = make_search(dataclasses.replace(config, algorithm="map_elites"), GRID)
    state = start(search, None, jax.random.key(0), latents, scores)
    with pytest.raises(ValueError, match="uses no gradients: call `ask` alone"):
        searches.points(search, None, state)
    state, asked = searches.ask(search, None, state)
    with pytest.raises(ValueError, match=r"objective has the shape \(20,\), but 15 latents"):
        searches.tell(search, state, asked, scores)
