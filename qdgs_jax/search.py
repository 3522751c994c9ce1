"""The search: quality diversity as three pure functions, `init`, `step`, `run`.

A `Search` holds what is static, a `SearchState` what changes, and `params` the weights. The
functions can be called inside any `jit`, `scan` or training loop.

    search = make_search(SearchConfig(algorithm="cma_mae"), archive, score)
    state = init(search, params, key, latents)
    run_jitted = jax.jit(run, static_argnums=(0, 3), donate_argnums=2)
    state, metrics = run_jitted(search, params, state, 100)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import struct

from qdgs_jax import archives, emitters
from qdgs_jax.archives import Archive, ArchiveState, Insertion
from qdgs_jax.emitters import Emitter, GradientEmitter, Gradients, Strategy
from qdgs_jax.emitters.cma_es import CMAES
from qdgs_jax.emitters.evolution_strategy import EvolutionStrategy
from qdgs_jax.emitters.evosax import Evosax
from qdgs_jax.emitters.gradient_arborescence import GradientArborescence
from qdgs_jax.emitters.gradient_operator import GradientOperator
from qdgs_jax.emitters.rules import Rules
from qdgs_jax.emitters.variation import Variation
from qdgs_jax.errors import ConfigError
from qdgs_jax.jacobian import Memory, Score, Scores
from qdgs_jax.search_config import SearchConfig
from qdgs_jax.sharding import by_columns, by_rows, replicated
from qdgs_jax.typing import Array, Key, Latents, Params


def no_memory(params: Params) -> Memory:
    """The memory of a stateless score."""
    return ()


@dataclass(frozen=True)
class Search:
    """The static parts of a search.

    Attributes:
        score: (params, key, latents [N, D], memory) -> (Scores, memory); see `qdgs_jax.jacobian`.
        score_with_jacobian: the same with the Jacobian in its scores; may be None for emitters
            that use no gradients.
        archive: the emitters' archive. If it is annealed, an elitist archive of the same cells is
            kept too, as the result.
        emitter: the bank of emitters.
        init_memory: params -> the memory of the first call.
    """

    score: Score
    score_with_jacobian: Score | None
    archive: Archive
    emitter: Emitter
    init_memory: Callable[[Params], Memory] = no_memory

    def __post_init__(self) -> None:
        if isinstance(self.emitter, GradientEmitter) and self.score_with_jacobian is None:
            raise ValueError("the emitter uses gradients: give score_with_jacobian")

    @property
    def annealed(self) -> bool:
        """Whether elites may be replaced by worse ones in the emitters' archive."""
        return self.archive.threshold_min > -math.inf

    @property
    def elitist(self) -> Archive:
        """The same cells, each keeping the best latent ever seen in it above `threshold_min`."""
        return replace(self.archive, learning_rate=1.0, threshold_min=-math.inf)

    @property
    def evaluations_per_generation(self) -> int:
        """Latents scored in a generation."""
        return self.emitter.evaluations


class SearchState(struct.PyTreeNode):
    """The state of a search; a pytree, donated between generations."""

    key: Key  # the run's key; a generation's is fold_in(key, generation)
    generation: Array  # [] int32
    elites: ArchiveState  # elitist: the result
    annealed: ArchiveState | None  # the emitters' archive, if it is not `elites`
    emitter: emitters.State
    memory: Memory  # the score's, () if it is stateless
    non_finite: Array  # [] int32, latents left out because a score was NaN or infinite

    @property
    def emitter_archive(self) -> ArchiveState:
        """The archive that the emitters update by."""
        return self.elites if self.annealed is None else self.annealed


class Metrics(struct.PyTreeNode):
    """Metrics of a state; scalars."""

    qd_score: Array  # sum of the elites' objectives, negative ones counted as 0
    coverage: Array  # share of cells with an elite, in [0, 1]
    best_objective: Array
    mean_objective: Array  # over the elites
    restarts: Array  # of all emitters so far
    non_finite: Array


def make_search(
    config: SearchConfig,
    archive: Archive,
    score: Score,
    score_with_jacobian: Score | None = None,
    *,
    init_memory: Callable[[Params], Memory] = no_memory,
) -> Search:
    """The search that `config.algorithm` names, over the cells of `archive`.

    Args:
        archive: only its cells are used; the algorithm determines how they anneal.
        score_with_jacobian: only for `cma_mega`, `cma_maega` and `omg_mega`.
        init_memory: params -> the memory of the first call; only for stateful scores.

    Raises:
        ConfigError: options that do not go together, or a Jacobian is needed and missing.
    """
    E, B, sigma = config.emitters, config.batch_size, config.sigma0
    annealed = config.algorithm in ("cma_mae", "cma_maega")
    archive = replace(
        archive,
        learning_rate=config.learning_rate if annealed else 1.0,
        threshold_min=config.threshold_min if annealed else -math.inf,
    )
    emitter: Emitter
    match config.algorithm:
        case "map_elites":
            emitter = Variation(E, B, sigma)
        case "map_elites_line":
            emitter = Variation(E, B, sigma, config.line_sigma)
        case "omg_mega":
            emitter = GradientOperator(E, B, sigma)
        case "cma_me" | "cma_mae":
            emitter = EvolutionStrategy(E, _strategy(config), _rules(config, archive))
        case "cma_mega" | "cma_maega":
            emitter = GradientArborescence(
                E, B, len(archive.lower), sigma, config.step_size, config.optimizer,
                _rules(config, archive),
            )  # fmt: skip
    if not isinstance(emitter, GradientEmitter):
        score_with_jacobian = None
    elif score_with_jacobian is None:
        raise ConfigError(
            f"search.algorithm '{config.algorithm}' uses gradients: "
            "give make_search a score_with_jacobian."
        )
    return Search(score, score_with_jacobian, archive, emitter, init_memory)


_DEFAULT_RULES = {
    "cma_me": Rules("2imp", "filter", "no_improvement"),
    "cma_mae": Rules("imp", "mu", "basic"),
    "cma_mega": Rules("2imp", "mu", "no_improvement"),
    "cma_maega": Rules("imp", "filter", "basic"),
}
"""As published: arXiv 1912.02400, 2205.10752, 2106.03894, and Chang et al. 2024 for the last."""


def _strategy(config: SearchConfig) -> Strategy:
    """The search distribution over latents."""
    if config.strategy == "cma_es":
        return CMAES(config.batch_size, config.sigma0)
    if config.strategy == "cholesky_cma_es":
        return CMAES(config.batch_size, config.sigma0, "cholesky")
    if config.selection == "filter":
        raise ConfigError(
            f"search.strategy '{config.strategy}' weighs the better half of a batch, accepted or "
            'not: set search.selection to "mu" or "auto".'
        )
    return Evosax(config.strategy, config.batch_size, config.sigma0, config.step_size)


def _rules(config: SearchConfig, archive: Archive) -> Rules:
    """The algorithm's own rules, except for those that `config` sets."""
    default = _DEFAULT_RULES[config.algorithm]
    ranker = default.ranker if config.ranker == "auto" else config.ranker
    span = tuple(high - low for low, high in zip(archive.lower, archive.upper, strict=True))
    return Rules(
        ranker=ranker,
        selection=default.selection if config.selection == "auto" else config.selection,
        restart=default.restart if config.restart == "auto" else config.restart,
        span=span if ranker == "rd" else (),
    )


def init(search: Search, params: Params, key: Key, latents: Latents) -> SearchState:
    """A state whose emitters start at the best of `latents` [N, D] by objective.

    Raises:
        ValueError: fewer latents than emitters, or scores that do not fit the archive.
    """
    if len(latents) < search.emitter.emitters:
        raise ValueError(
            f"{len(latents)} latents are too few to start {search.emitter.emitters} emitters from: "
            "give at least one for each emitter"
        )
    scoring_key, emitter_key, run_key = jax.random.split(key, 3)
    memory = search.init_memory(params)
    latents = archives.storable(search.archive, latents)
    scores, memory = _scored(search, search.score, params, scoring_key, latents, memory)
    objective = scores.objective
    worst_last = jnp.where(jnp.isnan(objective), -jnp.inf, objective)
    _, best = jax.lax.top_k(worst_last, search.emitter.emitters)
    size, dtype = latents.shape[-1], latents.dtype
    return SearchState(
        key=run_key,
        generation=jnp.zeros((), jnp.int32),
        elites=archives.init(search.elitist, size, dtype),
        annealed=archives.init(search.archive, size, dtype) if search.annealed else None,
        emitter=by_rows(search.emitter.init(emitter_key, by_rows(by_columns(latents)[best]))),
        memory=memory,
        non_finite=(~jnp.isfinite(objective)).sum(dtype=jnp.int32),
    )


def step(search: Search, params: Params, state: SearchState) -> SearchState:
    """One generation: ask, score, add to the archive, tell."""
    points_key, jacobian_key, ask_key, score_key, tell_key = jax.random.split(
        jax.random.fold_in(state.key, state.generation), 5
    )
    gradients, memory = None, state.memory
    if isinstance(search.emitter, GradientEmitter):
        points = search.emitter.points(state.emitter, state.emitter_archive, points_key)
        points = archives.storable(search.archive, points)
        assert search.score_with_jacobian is not None
        scores, memory = _scored(
            search, search.score_with_jacobian, params, jacobian_key, points, memory
        )
        if scores.jacobian is None:
            raise ValueError("score_with_jacobian returns no Jacobian: see jacobian.with_jacobian")
        state, _ = add(search, state, points, scores)
        gradients = Gradients(points, scores.jacobian)

    emitter, asked = search.emitter.ask(state.emitter, state.emitter_archive, ask_key, gradients)
    latents = archives.storable(search.archive, asked.latents)
    scores, memory = _scored(search, search.score, params, score_key, latents, memory)
    state, insertion = add(search, state, latents, scores)
    emitter = search.emitter.tell(emitter, state.emitter_archive, tell_key, asked, insertion)
    return state.replace(emitter=by_rows(emitter), memory=memory, generation=state.generation + 1)


def add(
    search: Search, state: SearchState, latents: Latents, scores: Scores
) -> tuple[SearchState, Insertion]:
    """Adds scored latents to the archives; returns the insertion into the emitters' archive."""
    objective, measures = scores.objective, scores.measures
    annealed, kept = state.annealed, objective
    if annealed is not None:  # elites have to exceed threshold_min too
        kept = jnp.where(objective > search.archive.threshold_min, objective, -jnp.inf)
    elites, insertion = archives.add(search.elitist, state.elites, latents, kept, measures)
    if annealed is not None:
        annealed, insertion = archives.add(search.archive, annealed, latents, objective, measures)
    non_finite = state.non_finite + (~insertion.finite).sum(dtype=jnp.int32)
    return state.replace(elites=elites, annealed=annealed, non_finite=non_finite), insertion


def _scored(
    search: Search, score: Score, params: Params, key: Key, latents: Latents, memory: Memory
) -> tuple[Scores, Memory]:
    """The results of `score` for latents [N, D], each device's own; all devices get all scores.

    Raises:
        ValueError: they do not fit the latents and the archive's M measures; without this check,
            the archive would fail less clearly.
    """
    scored = score(params, key, by_rows(latents), memory)
    if not (isinstance(scored, tuple) and len(scored) == 2 and isinstance(scored[0], Scores)):
        raise ValueError("a score returns (Scores, memory), with () for no memory")
    (N, D), M = latents.shape, len(search.archive.lower)
    wanted = {"objective": (N,), "measures": (N, M), "jacobian": (N, 1 + M, D)}
    for name, shape in wanted.items():
        values = getattr(scored[0], name)
        if values is not None and jnp.shape(values) != shape:
            raise ValueError(
                f"the score's {name} has the shape {jnp.shape(values)}, but {N} latents of "
                f"{D} numbers and an archive of {M} measures need {shape}"
            )
    (scores, memory) = scored
    objective, measures, memory = replicated((scores.objective, scores.measures, memory))
    return Scores(objective, measures, by_rows(scores.jacobian)), memory


def run(
    search: Search, params: Params, state: SearchState, generations: int
) -> tuple[SearchState, Metrics]:
    """Runs `generations` steps in one `lax.scan`; returns the state and the metrics after them.

    Jit it with `search` and `generations` static and the state donated; see the module's docstring.
    """
    state, _ = jax.lax.scan(
        lambda state, _: (step(search, params, state), None), state, length=generations
    )
    return state, metrics(state)


def metrics(state: SearchState) -> Metrics:
    """Metrics of the elites."""
    elites = state.elites
    total = jnp.where(elites.occupied, elites.objective, 0).sum()
    return Metrics(
        qd_score=archives.qd_score(elites),
        coverage=archives.coverage(elites),
        best_objective=elites.objective.max(),
        mean_objective=total / jnp.maximum(elites.count, 1),
        restarts=state.emitter.restarts,
        non_finite=state.non_finite,
    )
