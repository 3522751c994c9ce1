"""QDax both ways: parts of this package inside `qdax.core.map_elites.MAPElites`, and its emitters
here.

    grid = GridArchive(cells=(100, 100), lower=(0, 0), upper=(1, 1))
    map_elites = MAPElites(
        scoring_function=arm_scoring_function,
        emitter=QDaxEmitter(annealed, emitter),  # or any emitter of QDax
        metrics_function=functools.partial(default_qd_metrics, qd_offset=1.0),
        repertoire_init=functools.partial(Repertoire.init, grid),  # or MapElitesRepertoire.init
    )
    repertoire, emitter_state, metrics = map_elites.init(genotypes, None, key)

`QDaxScore` is the score of a search for QDax's algorithms, `FromQDax` an emitter of QDax for a
search. QDax's terms are genotypes for latents, fitnesses for objective, descriptors for measures.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.flatten_util import ravel_pytree
from qdax.core.containers.mapelites_repertoire import MapElitesRepertoire
from qdax.core.emitters.emitter import Emitter as QDaxBase
from qdax.core.emitters.emitter import EmitterState

from qdgs_jax import archives
from qdgs_jax.archives import Archive, ArchiveState, Insertion
from qdgs_jax.emitters import Asked, Emitter, GradientEmitter, Gradients, State
from qdgs_jax.jacobian import Memory, Scores, with_jacobian
from qdgs_jax.typing import Array, Key, Latents, Params

Genotypes = Any  # a pytree of leaves [N, ...]
ScoringFunction = Callable[[Genotypes, Key], tuple[Array, Array, dict[str, Any]]]


class Repertoire(struct.PyTreeNode):
    """An archive with the fields and methods of QDax's `MapElitesRepertoire`.

    Extra scores are not stored. Two of them are read, if they are there (see `QDaxScore`):
    `latents` [N, D], stored in place of the genotypes, and `allowed` [N] bool, which of them may be
    elites.
    """

    archive: Archive = struct.field(pytree_node=False)
    unravel: Callable[[Array], Genotypes] = struct.field(pytree_node=False)
    state: ArchiveState

    @classmethod
    def init(
        cls,
        archive: Archive,
        genotypes: Genotypes,
        fitnesses: Array,
        descriptors: Array,
        centroids: Array | None = None,
        extra_scores: dict[str, Any] | None = None,
    ) -> "Repertoire":
        """A repertoire of `archive` that holds a first batch; centroids are ignored."""
        latents, unravel = ravel(genotypes)
        state = archives.init(archive, latents.shape[1], latents.dtype)
        return cls(archive, unravel, state).add(genotypes, descriptors, fitnesses, extra_scores)

    def add(
        self,
        batch_of_genotypes: Genotypes,
        batch_of_descriptors: Array,
        batch_of_fitnesses: Array,
        batch_of_extra_scores: dict[str, Any] | None = None,
    ) -> "Repertoire":
        """Inserts a batch, fitnesses [N] or [N, 1]."""
        extra_scores = batch_of_extra_scores or {}
        latents, _ = ravel(batch_of_genotypes)
        state, _ = archives.add(
            self.archive,
            self.state,
            extra_scores.get("latents", latents),
            batch_of_fitnesses.reshape(-1),
            batch_of_descriptors,
            extra_scores.get("allowed"),
        )
        return self.replace(state=state)

    def select(self, key: Key, num_samples: int, selector: Any = None) -> MapElitesRepertoire:
        """Random elites, drawn by QDax's `selector`, by default uniformly."""
        return self.as_qdax().select(key, num_samples, selector)

    def as_qdax(self) -> MapElitesRepertoire:
        """The same elites in QDax's class, for its selectors, metrics and plots."""
        return MapElitesRepertoire(
            genotypes=self.genotypes,
            fitnesses=self.fitnesses,
            descriptors=self.descriptors,
            centroids=self.centroids,
            extra_scores={},
            keys_extra_scores=(),
        )

    @property
    def genotypes(self) -> Genotypes:
        """Leaves [K, ...]."""
        return jax.vmap(self.unravel)(self.state.latents)

    @property
    def fitnesses(self) -> Array:
        """[K, 1], -inf in empty cells."""
        return self.state.objective[:, None]

    @property
    def descriptors(self) -> Array:
        """[K, M]."""
        return self.state.measures

    @property
    def centroids(self) -> Array:
        """Centres of the cells [K, M]."""
        return jnp.asarray(self.archive.centres(), self.state.measures.dtype)


class QDaxEmitterState(EmitterState):
    """State of `QDaxEmitter`."""

    emitter: State
    archive: ArchiveState  # the emitters'; the repertoire may be of another kind


class QDaxEmitter(QDaxBase):
    """An emitter of this package for QDax's algorithms, with its own archive.

    Give an annealed `archive` for CMA-MAE and CMA-MAEGA; QDax's repertoire is the result.
    """

    def __init__(
        self, archive: Archive, emitter: Emitter, scoring_function: ScoringFunction | None = None
    ) -> None:
        """`scoring_function` is needed by gradient emitters, and must be differentiable."""
        if isinstance(emitter, GradientEmitter) and scoring_function is None:
            raise ValueError("the emitter uses gradients: give the scoring_function")
        self._archive, self._emitter, self._score = archive, emitter, scoring_function

    @property
    def batch_size(self) -> int:
        """Genotypes emitted at once, including the points whose gradients are computed."""
        return self._emitter.evaluations

    def init(
        self,
        key: Key,
        repertoire: Any,
        genotypes: Genotypes,
        fitnesses: Array,
        descriptors: Array,
        extra_scores: dict[str, Any],
    ) -> QDaxEmitterState:
        """Starts from the best of the first batch, which needs a genotype for each emitter."""
        latents, _ = ravel(genotypes)
        fitnesses = fitnesses.reshape(-1)
        fitnesses = jnp.where(jnp.isnan(fitnesses), -jnp.inf, fitnesses)
        _, best = jax.lax.top_k(fitnesses, self._emitter.emitters)
        return QDaxEmitterState(
            emitter=self._emitter.init(key, latents[best]),
            archive=archives.init(self._archive, latents.shape[1], latents.dtype),
        )

    def emit(
        self, repertoire: Any, emitter_state: QDaxEmitterState, key: Key
    ) -> tuple[Genotypes, dict[str, Any]]:
        """Genotypes to score, and what `state_update` needs."""
        points_key, score_key, ask_key = jax.random.split(key, 3)
        example = jax.tree.map(lambda leaf: leaf[:1], repertoire.genotypes)
        _, unravel = ravel(example)
        state, archive, emitter = emitter_state.emitter, emitter_state.archive, self._emitter
        points, gradients = archive.latents[:0], None
        if isinstance(emitter, GradientEmitter):
            points = emitter.points(state, archive, points_key)
            gradients = self._gradients(unravel, points, score_key)
        state, asked = emitter.ask(state, archive, ask_key, gradients)
        latents = jnp.concatenate([points, asked.latents])
        return jax.vmap(unravel)(latents), {"qdgs_jax": (state, asked, ask_key)}

    def state_update(
        self,
        emitter_state: QDaxEmitterState,
        repertoire: Any,
        genotypes: Genotypes,
        fitnesses: Array,
        descriptors: Array,
        extra_scores: dict[str, Any],
    ) -> QDaxEmitterState:
        """Adds the scored genotypes to the emitter's archive, and updates the emitter."""
        asked: Asked
        state, asked, key = extra_scores["qdgs_jax"]
        latents, _ = ravel(genotypes)
        archive, points = emitter_state.archive, len(latents) - len(asked.latents)
        scored = latents, fitnesses.reshape(-1), descriptors
        if points:
            archive, _ = archives.add(self._archive, archive, *(x[:points] for x in scored))
        archive, insertion = archives.add(self._archive, archive, *(x[points:] for x in scored))
        state = self._emitter.tell(state, archive, jax.random.fold_in(key, 1), asked, insertion)
        return QDaxEmitterState(emitter=state, archive=archive)

    def _gradients(self, unravel: Callable[[Array], Any], points: Latents, key: Key) -> Gradients:
        scoring_function = self._score
        assert scoring_function is not None

        def score(
            params: Params, key: Key, latents: Latents, memory: Memory
        ) -> tuple[Scores, Memory]:
            fitnesses, descriptors, _ = scoring_function(jax.vmap(unravel)(latents), key)
            return Scores(fitnesses.reshape(-1), descriptors), memory

        scores, _ = with_jacobian(score)(None, key, points, ())
        return Gradients(points, scores.jacobian)


class QDaxScore(struct.PyTreeNode):
    """The score of a search as a scoring function of QDax.

    It is a pytree of the weights. Give it to a compiled program that makes the `MAPElites`, so that
    they are arguments of the program:

        score = QDaxScore(problem.search, problem.params)
        map_elites = functools.partial(MAPElites, emitter=emitter, metrics_function=metrics)

        @jax.jit
        def loop(score, carry):
            return jax.lax.scan(map_elites(score).scan_update, carry, length=500)

    Genotypes are repaired before they are scored. QDax's own repertoire stores them as they were:
    `search.repair(params, repertoire.genotypes)` are the latents of its elites, while `Repertoire`
    stores these. Latents that the search allows no elites, since they are out of distribution, not
    above its floor or without finite scores, have the fitness -inf. A stateful score has its first
    memory in every call.

    Attributes:
        search: a `qdgs_jax.search.Search`.
        params: the weights.
        gradients: whether extra scores are also `gradients` [N, D, 1 + M] and `normalized_grads`,
            for OMG-MEGA and CMA-MEGA.
        keep_objective: whether latents with finite scores that are not allowed keep their
            objective, but none above the floor. QDax's emitters of CMA-ES rank by it, and turn -inf
            into NaN. `Repertoire` stores no such latents; in QDax's own, they are the elites that
            are not above the floor.
    """

    search: Any = struct.field(pytree_node=False)
    params: Params
    gradients: bool = struct.field(pytree_node=False, default=False)
    keep_objective: bool = struct.field(pytree_node=False, default=False)

    def __call__(self, genotypes: Genotypes, key: Key) -> tuple[Array, Array, dict[str, Any]]:
        """Fitnesses [N], as QDax's CMA-ES needs them, descriptors [N, M], and extra scores."""
        search, params = self.search, self.params
        latents, _ = ravel(genotypes)
        latents = archives.storable(search.archive, search.repair(params, latents))
        score = search.score_with_jacobian if self.gradients else search.score
        scores, _ = score(params, key, latents, search.init_memory(params))
        objective, measures = scores.objective, scores.measures
        finite = jnp.isfinite(objective) & jnp.isfinite(measures).all(axis=-1)
        allowed = finite & (objective > search.floor)
        if scores.atypical is not None:
            allowed &= ~scores.atypical
        refused = jnp.full_like(objective, -jnp.inf)
        if self.keep_objective:
            refused = jnp.where(finite, jnp.minimum(objective, search.floor), -jnp.inf)
        extra_scores = {"latents": latents, "allowed": allowed}
        if self.gradients:
            gradients = jnp.swapaxes(scores.jacobian, 1, 2)
            norms = jnp.linalg.norm(gradients, axis=1, keepdims=True)
            extra_scores |= {"gradients": gradients, "normalized_grads": gradients / norms}
        descriptors = jnp.where(finite[:, None], measures, 0)
        return jnp.where(allowed, objective, refused), descriptors, extra_scores


class FromQDaxState(struct.PyTreeNode):
    """State of `FromQDax`."""

    emitter: Any  # QDax's
    start: Array  # [E, D], what QDax selects while the archive is empty

    @property
    def restarts(self) -> Array:
        """Always 0: QDax counts none."""
        return jnp.zeros((), jnp.int32)


class Emitted(struct.PyTreeNode):
    """The genotypes of one `emit`."""

    latents: Latents  # [N, D]
    extra_info: dict[str, Any]


@dataclass(frozen=True)
class FromQDax:
    """An emitter of QDax for a search here; see `Emitter` in `qdgs_jax.emitters`.

    It starts from latents without scores, which emitters that need them, such as OMG-MEGA, refuse
    by an error of QDax.

    Attributes:
        archive: the search's, whose `centres()` are the centroids that QDax's emitters of CMA-ES
            take.
        emitter: of genotypes [N, D].
        emitters: E, starting points, among which the emitter selects until there are elites.
    """

    archive: Archive
    emitter: QDaxBase
    emitters: int = 1

    @property
    def evaluations(self) -> int:
        """Latents scored in a generation."""
        return int(self.emitter.batch_size)

    def init(self, key: Key, latents: Latents) -> FromQDaxState:
        """Starts from `latents` [E, D]."""
        empty = archives.init(self.archive, latents.shape[1], latents.dtype)
        state = self.emitter.init(
            key=key,
            repertoire=_Started(self.archive, _unchanged, empty, latents),
            genotypes=latents,
            fitnesses=jnp.full(len(latents), -jnp.inf, latents.dtype),
            descriptors=jnp.zeros((len(latents), len(self.archive.lower)), latents.dtype),
            extra_scores={},
        )
        return FromQDaxState(_as_arrays(state), latents)

    def ask(
        self,
        state: FromQDaxState,
        archive: ArchiveState,
        key: Key,
        gradients: Gradients | None = None,
    ) -> tuple[FromQDaxState, Emitted]:
        """What QDax's emitter emits."""
        repertoire = _Started(self.archive, _unchanged, archive, state.start)
        return state, Emitted(*self.emitter.emit(repertoire, state.emitter, key))

    def tell(
        self,
        state: FromQDaxState,
        archive: ArchiveState,
        key: Key,
        asked: Emitted,
        insertion: Insertion,
    ) -> FromQDaxState:
        """Updates QDax's emitter by all scores, also of latents that may be no elites."""
        emitter = self.emitter.state_update(
            emitter_state=state.emitter,
            repertoire=_Started(self.archive, _unchanged, archive, state.start),
            genotypes=asked.latents,
            fitnesses=insertion.objective,
            descriptors=insertion.measures,
            extra_scores=asked.extra_info,
        )
        return state.replace(emitter=_as_arrays(emitter))


class _Started(Repertoire):
    """A repertoire that holds the starting points until it has elites."""

    start: Array  # [E, D]

    def select(self, key: Key, num_samples: int, selector: Any = None) -> MapElitesRepertoire:
        elites = super().select(key, num_samples, selector)
        row = jax.random.randint(key, (num_samples,), 0, len(self.start))
        genotypes = elites.genotypes.astype(self.start.dtype)
        return elites.replace(genotypes=jnp.where(self.state.count > 0, genotypes, self.start[row]))


def _unchanged(latent: Array) -> Array:
    return latent


def _as_arrays(state: Any) -> Any:
    """The state without Python's numbers and weak types, which a compiled loop would change."""

    def array(leaf: Any) -> Array:
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        return jax.lax.convert_element_type(leaf, jnp.result_type(leaf))

    return jax.tree.map(array, state)


def ravel(genotypes: Genotypes) -> tuple[Latents, Callable[[Array], Genotypes]]:
    """Genotypes as latents [N, D], and the inverse for one of them."""
    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], genotypes))
    return jax.vmap(lambda genotype: ravel_pytree(genotype)[0])(genotypes), unravel
