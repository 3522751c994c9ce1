"""Archives and emitters of this package inside `qdax.core.map_elites.MAPElites`.

    grid = GridArchive(cells=(100, 100), lower=(0, 0), upper=(1, 1))
    map_elites = MAPElites(
        scoring_function=arm_scoring_function,
        emitter=QDaxEmitter(annealed, emitter),  # or any emitter of QDax
        metrics_function=functools.partial(default_qd_metrics, qd_offset=1.0),
        repertoire_init=functools.partial(Repertoire.init, grid),  # or MapElitesRepertoire.init
    )
    repertoire, emitter_state, metrics = map_elites.init(genotypes, None, key)

QDax's terms are genotypes for latents, fitnesses for objective, descriptors for measures.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.flatten_util import ravel_pytree
from qdax.core.containers.mapelites_repertoire import MapElitesRepertoire
from qdax.core.emitters.emitter import Emitter as QDaxBase
from qdax.core.emitters.emitter import EmitterState

from qdgs_jax import archives
from qdgs_jax.archives import Archive, ArchiveState
from qdgs_jax.emitters import Asked, Emitter, GradientEmitter, Gradients, State
from qdgs_jax.jacobian import Memory, Scores, with_jacobian
from qdgs_jax.typing import Array, Key, Latents, Params

Genotypes = Any  # a pytree of leaves [N, ...]
ScoringFunction = Callable[[Genotypes, Key], tuple[Array, Array, dict[str, Any]]]


class Repertoire(struct.PyTreeNode):
    """An archive with the fields and methods of QDax's `MapElitesRepertoire`.

    Extra scores are not stored.
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
        return cls(archive, unravel, state).add(genotypes, descriptors, fitnesses)

    def add(
        self,
        batch_of_genotypes: Genotypes,
        batch_of_descriptors: Array,
        batch_of_fitnesses: Array,
        batch_of_extra_scores: dict[str, Any] | None = None,
    ) -> "Repertoire":
        """Inserts a batch, fitnesses [N] or [N, 1]."""
        latents, _ = ravel(batch_of_genotypes)
        fitnesses = batch_of_fitnesses.reshape(-1)
        state, _ = archives.add(self.archive, self.state, latents, fitnesses, batch_of_descriptors)
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


def ravel(genotypes: Genotypes) -> tuple[Latents, Callable[[Array], Genotypes]]:
    """Genotypes as latents [N, D], and the inverse for one of them."""
    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], genotypes))
    return jax.vmap(lambda genotype: ravel_pytree(genotype)[0])(genotypes), unravel
