"""The search: quality diversity as three pure functions, `init`, `step`, `run`.

A `Search` holds what is static, a `SearchState` what changes, and `params` the weights. The
functions can be called inside any `jit`, `scan` or training loop.

    search = make_search(SearchConfig(algorithm="cma_mae"), archive, score)
    state = init(search, params, key, latents)
    run_jitted = jax.jit(run, static_argnums=(0, 3), donate_argnums=2)
    state, metrics = run_jitted(search, params, state, 100)

For scores outside of JAX, `step` comes in two parts, `ask` and `tell`, before them `points` for
emitters that use gradients. A search without a score is for them alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from flax import struct

from qdgs_jax import archives, emitters
from qdgs_jax.archives import Archive, ArchiveState, Insertion
from qdgs_jax.emitters import Asked, Emitter, GradientEmitter, Gradients, Strategy
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


def no_score(params: Params, key: Key, latents: Latents, memory: Memory) -> NoReturn:
    """The score of a search whose scores come from outside of JAX."""
    raise ValueError(
        "this search has no score: give `make_search` one, or score its latents yourself: give "
        "`init` their scores, and use `ask` and `tell` instead of `step` and `run`"
    )


def no_memory(params: Params) -> Memory:
    """The memory of a stateless score."""
    return ()


def no_repair(params: Params, latents: Latents) -> Latents:
    """All latents are in distribution."""
    return latents


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
        repair: (params, latents [N, D]) -> the latents that are scored in their place, such as the
            nearest in distribution. Emitters update by these.
        floor: objective that an elite must exceed.
        keeps_initial: whether the latents that the search starts from may become elites.
    """

    score: Score
    score_with_jacobian: Score | None
    archive: Archive
    emitter: Emitter
    init_memory: Callable[[Params], Memory] = no_memory
    repair: Callable[[Params, Latents], Latents] = no_repair
    floor: float = -math.inf
    keeps_initial: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.emitter, GradientEmitter) and self.score_with_jacobian is None:
            raise ValueError("the emitter uses gradients: give score_with_jacobian")

    @property
    def annealed(self) -> bool:
        """Whether elites may be replaced by worse ones in the emitters' archive."""
        return self.archive.threshold_min > -math.inf

    @property
    def elitist(self) -> Archive:
        """The same cells, each keeping the best latent ever seen in it above `floor`."""
        return replace(self.archive, learning_rate=1.0, threshold_min=-math.inf)

    @property
    def evaluations_per_generation(self) -> int:
        """Latents scored in a generation."""
        return self.emitter.evaluations


class Refused(struct.PyTreeNode):
    """Latents that could not become elites so far, by the first reason that holds."""

    non_finite: Array  # [] int32: a score was NaN or infinite
    atypical: Array  # [] int32: out of distribution
    below_floor: Array  # [] int32


class SearchState(struct.PyTreeNode):
    """The state of a search; a pytree, donated between generations."""

    key: Key  # the run's key; a generation's is fold_in(key, generation)
    generation: Array  # [] int32
    elites: ArchiveState  # elitist: the result
    annealed: ArchiveState | None  # the emitters' archive, if it is not `elites`
    emitter: emitters.State
    memory: Memory  # the score's, () if it is stateless
    refused: Refused

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
    non_finite: Array  # this and the next two are latents so far; see `Refused`
    atypical: Array
    below_floor: Array


def make_search(
    config: SearchConfig,
    archive: Archive,
    score: Score = no_score,
    score_with_jacobian: Score | None = None,
    *,
    init_memory: Callable[[Params], Memory] = no_memory,
    repair: Callable[[Params, Latents], Latents] = no_repair,
    emitter: Emitter | Any | None = None,
) -> Search:
    """The search that `config.algorithm` names, over the cells of `archive`.

    Args:
        archive: only its cells are used; the algorithm determines how they anneal.
        score: without one, only `ask` and `tell` serve.
        score_with_jacobian: only for `cma_mega`, `cma_maega` and `omg_mega`.
        init_memory: params -> the memory of the first call; only for stateful scores.
        repair: (params, latents) -> the latents that are scored in their place.
        emitter: in place of the algorithm's; one of QDax, too. What remains of the algorithm is
            whether and how the archive anneals.

    Raises:
        ConfigError: options that do not go together, or a Jacobian or `threshold_min` is needed and
            missing.
    """
    annealed = config.algorithm in ("cma_mae", "cma_maega")
    if config.threshold_min == "auto" and annealed:
        raise ConfigError(
            f"search.threshold_min is 'auto', but '{config.algorithm}' anneals from a number: give "
            "the objective that an elite must exceed."
        )
    floor = -math.inf if config.threshold_min == "auto" else config.threshold_min
    archive = replace(
        archive,
        learning_rate=config.learning_rate if annealed else 1.0,
        threshold_min=floor if annealed else -math.inf,
    )
    if emitter is None:
        emitter = _emitter_of(config, archive)
    elif hasattr(emitter, "state_update"):
        from qdgs_jax.emitters.qdax import FromQDax  # QDax takes a second to import

        emitter = FromQDax(archive, emitter, config.emitters)
    if not isinstance(emitter, GradientEmitter):
        score_with_jacobian = None
    elif score is no_score:
        score_with_jacobian = no_score
    elif score_with_jacobian is None:
        raise ConfigError(
            f"search.algorithm '{config.algorithm}' uses gradients: "
            "give make_search a score_with_jacobian."
        )
    return Search(
        score, score_with_jacobian, archive, emitter, init_memory, repair, floor,
        config.seek_rare,
    )  # fmt: skip


def _emitter_of(config: SearchConfig, archive: Archive) -> Emitter:
    """The algorithm's emitters."""
    E, B, sigma = config.emitters, config.batch_size, config.sigma0
    match config.algorithm:
        case "map_elites":
            return Variation(E, B, sigma)
        case "map_elites_line":
            return Variation(E, B, sigma, config.line_sigma)
        case "omg_mega":
            return GradientOperator(E, B, sigma)
        case "cma_me" | "cma_mae":
            return EvolutionStrategy(E, _strategy(config), _rules(config, archive))
        case "cma_mega" | "cma_maega":
            return GradientArborescence(
                E, B, len(archive.lower), sigma, config.step_size, config.optimizer,
                _rules(config, archive),
            )  # fmt: skip


_DEFAULT_RULES = {
    "cma_me": Rules("2imp", "filter", "no_improvement"),
    "cma_mae": Rules("imp", "mu", "basic"),
    "cma_mega": Rules("2imp", "mu", "no_improvement"),
    "cma_maega": Rules("imp", "filter", "basic"),
}
"""As published: arXiv 1912.02400, 2205.10752, 2106.03894, and Chang et al. 2024 for the last."""


SEEKS_FOR = 30
"""Generations between restarts if `seek_rare`, since strategies rarely stop by themselves."""


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
    if config.seek_rare and default.restart == "basic":
        default = replace(default, restart=SEEKS_FOR)
    ranker = default.ranker if config.ranker == "auto" else config.ranker
    span = tuple(high - low for low, high in zip(archive.lower, archive.upper, strict=True))
    return Rules(
        ranker=ranker,
        selection=default.selection if config.selection == "auto" else config.selection,
        restart=default.restart if config.restart == "auto" else config.restart,
        span=span if ranker == "rd" else (),
        evenly=config.seek_rare,
    )


def init(
    search: Search, params: Params, key: Key, latents: Latents, scores: Scores | None = None
) -> SearchState:
    """A state whose emitters start at the best of `latents` [N, D] by objective.

    If `search.keeps_initial`, all of them are added to the archive.

    Args:
        scores: of the latents, if the search has no score.

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
    latents = _storable(search, params, jnp.asarray(latents))
    if scores is None:
        scores, memory = _scored(search.score, params, scoring_key, latents, memory)
    scores = _fitting(search, latents, scores)
    objective = scores.objective
    worst_last = jnp.where(jnp.isnan(objective), -jnp.inf, objective)
    _, best = jax.lax.top_k(worst_last, search.emitter.emitters)
    size, dtype = latents.shape[-1], latents.dtype
    state = SearchState(
        key=run_key,
        generation=jnp.zeros((), jnp.int32),
        elites=archives.init(search.elitist, size, dtype),
        annealed=archives.init(search.archive, size, dtype) if search.annealed else None,
        emitter=by_rows(search.emitter.init(emitter_key, by_rows(by_columns(latents)[best]))),
        memory=memory,
        refused=Refused(*[jnp.zeros((), jnp.int32)] * 3),
    )
    return add(search, state, latents, scores)[0] if search.keeps_initial else state


def step(search: Search, params: Params, state: SearchState) -> SearchState:
    """One generation: ask, score, tell."""
    keys, memory = _keys(state), state.memory
    of_points: tuple[Any, ...] = ()
    if isinstance(search.emitter, GradientEmitter):
        latents = points(search, params, state)
        assert search.score_with_jacobian is not None
        scores, memory = _scored(
            search.score_with_jacobian, params, keys["jacobian"], latents, memory
        )
        of_points = latents, scores
    state, asked = ask(search, params, state, *of_points)
    scores, memory = _scored(search.score, params, keys["score"], asked.latents, memory)
    return tell(search, state, asked, scores).replace(memory=memory)


def points(search: Search, params: Params, state: SearchState) -> Latents:
    """The latents [P, D] whose Jacobian `ask` needs.

    Raises:
        ValueError: the emitter uses no gradients.
    """
    if not isinstance(search.emitter, GradientEmitter):
        raise ValueError("the emitter uses no gradients: call `ask` alone")
    key = _keys(state)["points"]
    return _storable(
        search, params, search.emitter.points(state.emitter, state.emitter_archive, key)
    )


def ask(
    search: Search,
    params: Params,
    state: SearchState,
    points: Latents | None = None,
    scores: Scores | None = None,
) -> tuple[SearchState, Asked]:
    """Latents to score, `asked.latents` [N, D], for `tell`.

    Args:
        points: of `points`, only for emitters that use gradients. They are added to the archive.
        scores: of the points, with the Jacobian.

    Raises:
        ValueError: the emitter uses gradients, and points, scores or Jacobian are missing or do not
            fit.
    """
    gradients = None
    if isinstance(search.emitter, GradientEmitter):
        if points is None or scores is None:
            raise ValueError(
                "the emitter uses gradients: give `ask` the latents of `points` and their scores "
                "with the Jacobian, or choose an algorithm without gradients, such as cma_mae"
            )
        scores = _fitting(search, points, scores)
        if scores.jacobian is None:
            raise ValueError("the points' score returns no Jacobian: see jacobian.with_jacobian")
        state, _ = add(search, state, points, scores)
        gradients = Gradients(points, scores.jacobian)
    emitter, asked = search.emitter.ask(
        state.emitter, state.emitter_archive, _keys(state)["ask"], gradients
    )
    latents = _storable(search, params, asked.latents)
    return state.replace(emitter=emitter), asked.replace(latents=latents)


def tell(search: Search, state: SearchState, asked: Asked, scores: Scores) -> SearchState:
    """Adds the asked latents to the archive, and updates the emitters by their scores.

    Raises:
        ValueError: the scores do not fit.
    """
    scores = _fitting(search, asked.latents, scores)
    state, insertion = add(search, state, asked.latents, scores)
    key = _keys(state)["tell"]
    emitter = search.emitter.tell(state.emitter, state.emitter_archive, key, asked, insertion)
    return state.replace(emitter=by_rows(emitter), generation=state.generation + 1)


def _keys(state: SearchState) -> dict[str, Key]:
    """The keys of a generation."""
    keys = jax.random.split(jax.random.fold_in(state.key, state.generation), 5)
    return dict(zip(("points", "jacobian", "ask", "score", "tell"), keys, strict=True))


def add(
    search: Search, state: SearchState, latents: Latents, scores: Scores
) -> tuple[SearchState, Insertion]:
    """Adds scored latents to the archives; returns the insertion into the emitters' archive."""
    objective = scores.objective
    atypical = scores.atypical
    typical = jnp.ones(len(objective), bool) if atypical is None else ~atypical
    allowed = typical & (objective > search.floor)
    batch = latents, objective, scores.measures, allowed
    elites, insertion = archives.add(search.elitist, state.elites, *batch)
    annealed = state.annealed
    if annealed is not None:
        annealed, insertion = archives.add(search.archive, annealed, *batch)
    finite = insertion.finite
    counts = Refused(~finite, finite & ~typical, finite & typical & ~allowed)
    refused = jax.tree.map(lambda old, new: old + new.sum(dtype=jnp.int32), state.refused, counts)
    return state.replace(elites=elites, annealed=annealed, refused=refused), insertion


def _storable(search: Search, params: Params, latents: Latents) -> Latents:
    """Latents as they are scored and stored."""
    return archives.storable(search.archive, search.repair(params, latents))


def _scored(
    score: Score, params: Params, key: Key, latents: Latents, memory: Memory
) -> tuple[Scores, Memory]:
    """The results of `score` for latents [N, D], each device's own; all devices get all scores."""
    scored = score(params, key, by_rows(latents), memory)
    if not (isinstance(scored, tuple) and len(scored) == 2 and isinstance(scored[0], Scores)):
        raise ValueError("a score returns (Scores, memory), with () for no memory")
    scores, memory = scored
    jacobian = by_rows(scores.jacobian)
    scores, memory = replicated((scores.replace(jacobian=None), memory))
    return scores.replace(jacobian=jacobian), memory


def _fitting(search: Search, latents: Latents, scores: Scores) -> Scores:
    """The scores of latents [N, D] as arrays of JAX.

    Raises:
        ValueError: they do not fit the latents and the archive's M measures; without this check,
            the archive would fail less clearly.
    """
    (N, D), M = latents.shape, len(search.archive.lower)
    wanted = {"objective": (N,), "measures": (N, M), "jacobian": (N, 1 + M, D), "atypical": (N,)}
    for name, shape in wanted.items():
        values = getattr(scores, name)
        if values is not None and jnp.shape(values) != shape:
            raise ValueError(
                f"the score's {name} has the shape {jnp.shape(values)}, but {N} latents of "
                f"{D} numbers and an archive of {M} measures need {shape}"
            )
    return jax.tree.map(jnp.asarray, scores)


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
        **vars(state.refused),
    )
