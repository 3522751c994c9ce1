"""The archive: measures -> cells, and in each cell the best latent found for it.

One update rule serves the family (Fontaine and Nikolaidis, "Covariance Matrix Adaptation
MAP-Annealing", arXiv 2205.10752): every cell has an acceptance threshold t. MAP-Elites is the case
`threshold_min = -inf`, where t is the elite's own objective. A batch is inserted as in pyribs'
`GridArchive.add`: everything is judged against the archive before the batch.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct

from qdgs_jax.typing import Array, Key, Latents, Measures, Objective


@dataclass(frozen=True)
class GridArchive:
    """A grid over the measures.

    Attributes:
        cells: cells along each measure.
        lower, upper: ends of the grid; measures beyond them fall into the border cells.
        learning_rate: alpha in [0, 1]; how fast a threshold follows the accepted objectives.
        threshold_min: objective that an empty cell asks for; -inf makes the archive elitist.
    """

    cells: tuple[int, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    learning_rate: float = 1.0
    threshold_min: float = -math.inf

    def __post_init__(self) -> None:
        if not len(self.cells) == len(self.lower) == len(self.upper):
            raise ValueError("cells, lower and upper need one entry a measure")
        if self.threshold_min == -math.inf and self.learning_rate != 1.0:
            raise ValueError("an annealed archive (learning_rate < 1) needs a finite threshold_min")

    @property
    def size(self) -> int:
        """Number of cells K."""
        return math.prod(self.cells)

    def index_of(self, measures: Measures) -> Array:
        """Cell of each measure vector, [N] int32, by arithmetic alone: O(N), whatever K is."""
        lower, upper = (jnp.asarray(ends, measures.dtype) for ends in (self.lower, self.upper))
        cells = jnp.asarray(self.cells)
        # 1e-6 keeps a measure that sits on a boundary in the upper cell despite rounding.
        position = (cells * (measures - lower) + 1e-6) / (upper - lower)
        # Clipped before the cast, because a float beyond int32 does not survive it.
        index = jnp.clip(position, 0, cells - 1).astype(jnp.int32)
        return jnp.ravel_multi_index(tuple(index.T), self.cells, mode="clip")


class ArchiveState(struct.PyTreeNode):
    """What the cells hold. An empty cell has objective -inf."""

    latents: Array  # [K, D]
    objective: Array  # [K]
    measures: Array  # [K, M], as scored, not clipped to the grid
    threshold: Array  # [K]

    @property
    def occupied(self) -> Array:
        """Whether a cell holds an elite, [K] bool."""
        return self.objective > -jnp.inf


class Insertion(struct.PyTreeNode):
    """What became of each solution of a batch, judged against the archive before it."""

    status: Array  # [N] int32: 2 new cell, 1 improved cell, 0 rejected
    value: Array  # [N]: objective minus threshold (the objective itself for a threshold of -inf)
    finite: Array  # [N] bool: False where a score was NaN or infinite, which rejects a solution

    @property
    def accepted(self) -> Array:
        """Whether a solution passed its cell's threshold, [N] bool."""
        return self.status > 0


def init(archive: GridArchive, latent_size: int, dtype: jnp.dtype | None = None) -> ArchiveState:
    """An empty archive."""
    K, M = archive.size, len(archive.cells)
    return ArchiveState(
        latents=jnp.zeros((K, latent_size), dtype),
        objective=jnp.full(K, -jnp.inf, dtype),
        measures=jnp.zeros((K, M), dtype),
        threshold=jnp.full(K, archive.threshold_min, dtype),
    )


def add(
    archive: GridArchive,
    state: ArchiveState,
    latents: Latents,
    objective: Objective,
    measures: Measures,
) -> tuple[ArchiveState, Insertion]:
    """Inserts a batch; of several accepted in a cell the best stays, the first among equals.

    The elite of an annealed cell is replaced by whatever passes the threshold, even by something
    worse than it; keep an elitist archive beside it.
    """
    finite = jnp.isfinite(objective) & jnp.isfinite(measures).all(axis=-1)
    objective = jnp.where(finite, objective, -jnp.inf)
    cell = archive.index_of(jnp.where(finite[:, None], measures, 0))
    threshold, occupied = state.threshold[cell], state.occupied[cell]
    accepted = objective > threshold  # strictly; -inf never is

    insertion = Insertion(
        status=jnp.where(accepted, jnp.where(occupied, 1, 2), 0),
        value=jnp.where(
            finite, objective - jnp.where(jnp.isneginf(threshold), 0, threshold), -jnp.inf
        ),
        finite=finite,
    )
    group, segments = _group_by_cell(jnp.where(accepted, cell, archive.size))

    def total(values: Array) -> Array:
        return jax.ops.segment_sum(values, group, segments)

    best = jax.ops.segment_max(objective, group, segments)
    if archive.threshold_min == -math.inf:
        new_threshold = best
    else:
        # Eq. of the batch rule (appendix of arXiv 2205.10752):
        # t' = (1 - a)^k t + (1 - (1 - a)^k) mean(f), over the k accepted in the cell.
        k = total(accepted.astype(objective.dtype))
        mean = total(jnp.where(accepted, objective, 0)) / jnp.maximum(k, 1)
        old = jax.ops.segment_max(threshold, group, segments)
        kept = (1 - archive.learning_rate) ** k
        new_threshold = kept * old + (1 - kept) * mean

    row = jnp.arange(len(objective))
    winner = jax.ops.segment_min(
        jnp.where(accepted & (objective == best[group]), row, len(row)), group, segments
    )
    # One scatter a cell: the targets of winners are distinct, everybody else's is out of range.
    wins = winner[group] == row
    target = jnp.where(wins, cell, archive.size + row)

    def put(old: Array, new: Array) -> Array:
        return old.at[target].set(new, mode="drop", unique_indices=True)

    return (
        ArchiveState(
            latents=put(state.latents, latents.astype(state.latents.dtype)),
            objective=put(state.objective, objective),
            measures=put(state.measures, measures),
            threshold=put(state.threshold, new_threshold[group]),
        ),
        insertion,
    )


def sample(state: ArchiveState, key: Key, count: int) -> Latents:
    """Latents of `count` elites, drawn uniformly with repetition; zeros from an empty archive."""
    filled = jnp.cumsum(state.occupied)
    rank = jax.random.randint(key, (count,), 0, jnp.maximum(filled[-1], 1))
    return state.latents[jnp.searchsorted(filled, rank, side="right")]


def coverage(state: ArchiveState) -> Array:
    """Share of cells that hold an elite, in [0, 1]."""
    return state.occupied.mean()


def qd_score(state: ArchiveState) -> Array:
    """Sum of the elites' objectives; a negative objective counts as 0, like an empty cell."""
    return jnp.maximum(state.objective, 0).sum()


def _group_by_cell(cell: Array) -> tuple[Array, int]:
    """Numbers the distinct cells of a batch: group of each row in [0, N), and N.

    Sorting keeps the cost at O(N log N): no array of K cells is touched.
    """
    order = jnp.argsort(cell)
    ordered = cell[order]
    starts = jnp.concatenate([jnp.zeros(1, bool), ordered[1:] != ordered[:-1]])
    group = jnp.zeros_like(cell).at[order].set(jnp.cumsum(starts), unique_indices=True)
    return group, len(cell)
