"""The search: quality diversity as three pure functions, `init`, `step`, `run`.

Everything static stands in a `Search`, everything that changes in a `SearchState`, and weights come
in as `params`: the functions can be called inside anybody's `jit`, `scan` or training loop.

    search = make_search(SearchConfig(algorithm="cma_mae"), archive, score)
    state = init(search, params, key, latents)
    run_jitted = jax.jit(run, static_argnums=(0, 3), donate_argnums=2)
    state, metrics = run_jitted(search, params, state, 100)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from qdgs_jax import archives, emitters
from qdgs_jax.archives import Archive, ArchiveState, Insertion
from qdgs_jax.config import SearchConfig
from qdgs_jax.emitters import Emitter, GradientEmitter, Gradients, Strategy
from qdgs_jax.emitters.cma_es import CMAES
from qdgs_jax.emitters.evolution_strategy import EvolutionStrategy
from qdgs_jax.emitters.evosax import Evosax
from qdgs_jax.emitters.gradient_arborescence import GradientArborescence
from qdgs_jax.emitters.gradient_operator import GradientOperator
from qdgs_jax.emitters.rules import Rules
from qdgs_jax.emitters.variation import Variation
from qdgs_jax.errors import ConfigError
from qdgs_jax.typing import Array, Key, Latents, Measures, Objective, Params

Score = Callable[..., tuple[Any, ...]]
"""(params, key, latents [N, D]) -> results; `Search` tells which, and what else they may take."""


@dataclass(frozen=True)
class Search:
    """What is searched and how.

    Attributes:
        score: (params, key, latents [N, D]) -> objective [N], measures [N, M].
        score_with_jacobian: the same and the Jacobian [N, 1 + M, D], the objective's row first;
            None will do for emitters that need no gradients.
        archive: what teaches the emitters; where it is annealed, an elitist one of the same cells
            is kept beside it as the result.
        emitter: the bank of emitters.
        init_memory: params -> what a score with memory remembers at first, a pytree; both scores
            then take it after the latents, and give it back, renewed, after their results.
    """

    score: Score
    score_with_jacobian: Score | None
    archive: Archive
    emitter: Emitter
    init_memory: Callable[[Params], Any] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.emitter, GradientEmitter) and self.score_with_jacobian is None:
            raise ValueError("the emitter follows gradients: give score_with_jacobian")

    @property
    def annealed(self) -> bool:
        """Whether elites may be replaced by worse ones in the archive that teaches."""
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
    """All that evolves; `jax.tree` friendly, donated between generations."""

    key: Key  # the run's key; a generation's is fold_in(key, generation)
    generation: Array  # [] int32
    elites: ArchiveState  # elitist: the result
    annealed: ArchiveState | None  # what teaches the emitters, where it is not the elites
    emitter: emitters.State
    memory: Any  # the score's, if it has one
    non_finite: Array  # [] int32, latents whose score was NaN or infinite and was left out

    @property
    def teacher(self) -> ArchiveState:
        """The archive that the emitters learn from."""
        return self.elites if self.annealed is None else self.annealed


class Metrics(struct.PyTreeNode):
    """Figures of a state; scalars."""

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
    init_memory: Callable[[Params], Any] | None = None,
) -> Search:
    """The search that `config.algorithm` names, over the cells of `archive`.

    Args:
        archive: lends its cells; how they anneal is the algorithm's choice.
        score_with_jacobian: for `cma_mega`, `cma_maega` and `omg_mega` alone.
        init_memory: for scores with memory alone; see `Search`.

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
            f"search.algorithm '{config.algorithm}' follows gradients: "
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
    """The algorithm's own rules but for what `config` sets."""
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
    """A state whose emitters start at the best of `latents` [N, D] by objective, N >= E."""
    scoring_key, emitter_key, run_key = jax.random.split(key, 3)
    memory = search.init_memory(params) if search.init_memory else None
    (objective, _), memory = evaluate(search.score, params, scoring_key, latents, memory)
    worst_last = jnp.where(jnp.isnan(objective), -jnp.inf, objective)
    _, best = jax.lax.top_k(worst_last, search.emitter.emitters)
    size, dtype = latents.shape[-1], latents.dtype
    return SearchState(
        key=run_key,
        generation=jnp.zeros((), jnp.int32),
        elites=archives.init(search.elitist, size, dtype),
        annealed=archives.init(search.archive, size, dtype) if search.annealed else None,
        emitter=search.emitter.init(emitter_key, latents[best]),
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
        points = search.emitter.points(state.emitter, state.teacher, points_key)
        assert search.score_with_jacobian is not None
        (objective, measures, jacobian), memory = evaluate(
            search.score_with_jacobian, params, jacobian_key, points, memory
        )
        state, _ = add(search, state, points, objective, measures)
        gradients = Gradients(points, jacobian)

    emitter, asked = search.emitter.ask(state.emitter, state.teacher, ask_key, gradients)
    (objective, measures), memory = evaluate(search.score, params, score_key, asked.latents, memory)
    state, insertion = add(search, state, asked.latents, objective, measures)
    emitter = search.emitter.tell(emitter, state.teacher, tell_key, asked, insertion)
    return state.replace(emitter=emitter, memory=memory, generation=state.generation + 1)


def evaluate(
    score: Score, params: Params, key: Key, latents: Latents, memory: Any
) -> tuple[tuple[Any, ...], Any]:
    """The results of a score, and what it remembers next; None without a memory."""
    if memory is None:
        return score(params, key, latents), None
    *results, memory = score(params, key, latents, memory)
    return tuple(results), memory


def add(
    search: Search, state: SearchState, latents: Latents, objective: Objective, measures: Measures
) -> tuple[SearchState, Insertion]:
    """Offers scored latents to the archives; the verdict is that of the one that teaches."""
    annealed, kept = state.annealed, objective
    if annealed is not None:  # what no cell of it would take is no elite either
        kept = jnp.where(objective > search.archive.threshold_min, objective, -jnp.inf)
    elites, insertion = archives.add(search.elitist, state.elites, latents, kept, measures)
    if annealed is not None:
        annealed, insertion = archives.add(search.archive, annealed, latents, objective, measures)
    non_finite = state.non_finite + (~insertion.finite).sum(dtype=jnp.int32)
    return state.replace(elites=elites, annealed=annealed, non_finite=non_finite), insertion


def run(
    search: Search, params: Params, state: SearchState, generations: int
) -> tuple[SearchState, Metrics]:
    """`generations` steps in one `lax.scan`, and the figures at their end.

    Jit it with `search` and `generations` static and the state donated; see the module's docstring.
    """
    state, _ = jax.lax.scan(
        lambda state, _: (step(search, params, state), None), state, length=generations
    )
    return state, metrics(state)


def metrics(state: SearchState) -> Metrics:
    """Figures of the elites."""
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
