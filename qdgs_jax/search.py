"""The search: CMA-MAEGA as three pure functions, `init`, `step`, `run`.

Everything static stands in a `Search`, everything that changes in a `SearchState`, and weights come
in as `params`: the functions can be called inside anybody's `jit`, `scan` or training loop.

    search = Search(score, with_jacobian(score), archive, emitter)
    state = init(search, params, key, latents)
    run_jitted = jax.jit(run, static_argnums=(0, 3), donate_argnums=2)
    state, metrics = run_jitted(search, params, state, 100)
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import struct

from qdgs_jax import archive as archives
from qdgs_jax.archive import ArchiveState, GridArchive, Insertion
from qdgs_jax.emitters import gradient_arborescence as arborescence
from qdgs_jax.emitters.gradient_arborescence import ArborescenceState, GradientArborescence
from qdgs_jax.typing import Array, Key, Latents, Measures, Objective, Params

Score = Callable[[Params, Key, Latents], tuple[Objective, Measures]]
ScoreWithJacobian = Callable[[Params, Key, Latents], tuple[Objective, Measures, Array]]


@dataclass(frozen=True)
class Search:
    """What is searched and how.

    Attributes:
        score: (params, key, latents [N, D]) -> objective [N], measures [N, M].
        score_with_jacobian: the same and the Jacobian [N, 1 + M, D], the objective's row first.
        archive: the annealed grid that teaches the emitters.
        emitter: the bank of emitters.
    """

    score: Score
    score_with_jacobian: ScoreWithJacobian
    archive: GridArchive
    emitter: GradientArborescence

    @property
    def elitist(self) -> GridArchive:
        """The passive archive: the same grid, keeping the best latent ever seen in each cell."""
        return replace(self.archive, learning_rate=1.0, threshold_min=-jnp.inf)

    @property
    def evaluations_per_generation(self) -> int:
        """Latents scored in a generation: every theta and every branch."""
        return self.emitter.emitters * (1 + self.emitter.batch_size)


class SearchState(struct.PyTreeNode):
    """All that evolves; `jax.tree` friendly, donated between generations."""

    key: Key  # the run's key; a generation's is fold_in(key, generation)
    generation: Array  # [] int32
    archive: ArchiveState  # annealed: what the emitters learn from
    elites: ArchiveState  # elitist: the result
    emitter: ArborescenceState
    non_finite: Array  # [] int32, latents whose score was NaN or infinite and was left out


class Metrics(struct.PyTreeNode):
    """Figures of a state; scalars."""

    qd_score: Array  # sum of the elites' objectives, negative ones counted as 0
    coverage: Array  # share of cells with an elite, in [0, 1]
    best_objective: Array
    mean_objective: Array  # over the elites
    restarts: Array  # of all emitters so far
    non_finite: Array


def init(search: Search, params: Params, key: Key, latents: Latents) -> SearchState:
    """A state whose emitters start at the best of `latents` [N, D] by objective, N >= E."""
    scoring_key, run_key = jax.random.split(key)
    objective, _ = search.score(params, scoring_key, latents)
    worst_last = jnp.where(jnp.isnan(objective), -jnp.inf, objective)
    _, best = jax.lax.top_k(worst_last, search.emitter.emitters)
    size, dtype = latents.shape[-1], latents.dtype
    return SearchState(
        key=run_key,
        generation=jnp.zeros((), jnp.int32),
        archive=archives.init(search.archive, size, dtype),
        elites=archives.init(search.elitist, size, dtype),
        emitter=arborescence.init(search.emitter, latents[best]),
        non_finite=(~jnp.isfinite(objective)).sum(dtype=jnp.int32),
    )


def step(search: Search, params: Params, state: SearchState) -> SearchState:
    """One generation: theta with its Jacobian, then ask, score, tell."""
    theta_key, ask_key, score_key, restart_key = jax.random.split(
        jax.random.fold_in(state.key, state.generation), 4
    )
    theta = state.emitter.theta
    objective, measures, jacobian = search.score_with_jacobian(params, theta_key, theta)
    state, _ = add(search, state, theta, objective, measures)

    emitter, branches = arborescence.ask(search.emitter, state.emitter, ask_key, jacobian)
    objective, measures = search.score(params, score_key, branches.latents)
    state, insertion = add(search, state, branches.latents, objective, measures)

    emitter, ended = arborescence.tell(search.emitter, emitter, branches, insertion)
    emitter = jax.lax.cond(
        ended.any() & state.archive.occupied.any(),
        lambda: arborescence.restart(
            search.emitter,
            emitter,
            ended,
            archives.sample(state.archive, restart_key, search.emitter.emitters),
        ),
        lambda: arborescence.restart(search.emitter, emitter, ended, emitter.theta),
    )
    return state.replace(emitter=emitter, generation=state.generation + 1)


def add(
    search: Search, state: SearchState, latents: Latents, objective: Objective, measures: Measures
) -> tuple[SearchState, Insertion]:
    """Offers scored latents to both archives; the annealed one's verdict is returned."""
    archive, insertion = archives.add(search.archive, state.archive, latents, objective, measures)
    elites, _ = archives.add(search.elitist, state.elites, latents, objective, measures)
    non_finite = state.non_finite + (~insertion.finite).sum(dtype=jnp.int32)
    return state.replace(archive=archive, elites=elites, non_finite=non_finite), insertion


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
    filled = elites.occupied
    return Metrics(
        qd_score=archives.qd_score(elites),
        coverage=archives.coverage(elites),
        best_objective=elites.objective.max(),
        mean_objective=jnp.where(filled, elites.objective, 0).sum() / jnp.maximum(filled.sum(), 1),
        restarts=state.emitter.restarts.sum(),
        non_finite=state.non_finite,
    )
