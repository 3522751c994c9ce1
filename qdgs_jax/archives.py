"""The archive: measures -> cells, and in each cell the best latent found for it.

One update rule serves the family (Fontaine and Nikolaidis, "Covariance Matrix Adaptation
MAP-Annealing", arXiv 2205.10752): every cell has an acceptance threshold t. MAP-Elites is the case
`threshold_min = -inf`, where t is the elite's own objective. A batch is inserted as in pyribs'
`GridArchive.add`: everything is compared with the archive before the batch.

    archive = GridArchive(cells=(50, 50), lower=(-1, -1), upper=(1, 1))
    state = init(archive, latent_size)
    state, insertion = add(archive, state, latents, objective, measures)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from qdgs_jax.chunks import in_chunks
from qdgs_jax.sharding import by_columns, by_rows, replicated
from qdgs_jax.typing import Array, Key, Latents, Measures, Objective


@dataclass(frozen=True)
class GridArchive:
    """A grid over the measures.

    Attributes:
        cells: cells along each measure.
        lower, upper: ends of the grid; measures beyond them fall into the border cells.
        learning_rate: alpha in [0, 1]; how fast a threshold follows the accepted objectives.
        threshold_min: initial threshold of an empty cell; -inf makes the archive elitist.
        bfloat16: whether latents are stored in bfloat16, which halves the memory; see `storable`.
    """

    cells: tuple[int, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    learning_rate: float = 1.0
    threshold_min: float = -math.inf
    bfloat16: bool = False

    def __post_init__(self) -> None:
        if not len(self.cells) == len(self.lower) == len(self.upper):
            raise ValueError("cells, lower and upper need one entry for each measure")
        if self.size >= 2**31:
            raise ValueError(f"{self.size} cells are more than an index of 32 bits counts")
        _check_annealing(self)

    @property
    def size(self) -> int:
        """Number of cells K."""
        return math.prod(self.cells)

    def centres(self) -> np.ndarray:
        """Middle of each cell, [K, M]."""
        ends = zip(self.lower, self.upper, self.cells, strict=True)
        axes = [low + (high - low) * (np.arange(n) + 0.5) / n for low, high, n in ends]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))

    def index_of(self, measures: Measures) -> Array:
        """Cell of each measure vector, [N] int32, in O(N), independent of K."""
        lower, upper = (jnp.asarray([ends], measures.dtype) for ends in (self.lower, self.upper))
        cells = jnp.asarray([self.cells])  # all [1, M]
        # 1e-6, as in pyribs, keeps a measure that sits on a boundary in the upper cell despite
        # rounding; where the whole range is hardly wider, less of it.
        nudge = jnp.minimum(1e-6, 1e-3 * (upper - lower))
        position = (cells * (measures - lower) + nudge) / (upper - lower)
        # Clipped before the cast, because int32 cannot hold every float.
        index = jnp.clip(position, 0, cells - 1).astype(jnp.int32)
        return jnp.ravel_multi_index(tuple(index.T), self.cells, mode="clip")


@dataclass(frozen=True)
class CVTArchive:
    """Cells are the regions nearest to each of K points (Vassiliades et al., arXiv 1610.05729).

    For three and more measures, where a grid would have too many cells.

    Attributes:
        centroids: the points, [K][M]; see `cvt_centroids`.
        lower, upper: ends of the measures; those beyond them still have a nearest centroid.
        learning_rate, threshold_min, bfloat16: as in `GridArchive`.
    """

    centroids: tuple[tuple[float, ...], ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    learning_rate: float = 1.0
    threshold_min: float = -math.inf
    bfloat16: bool = False

    def __post_init__(self) -> None:
        if not len(self.centroids[0]) == len(self.lower) == len(self.upper):
            raise ValueError("centroids, lower and upper need one entry for each measure")
        _check_annealing(self)

    @property
    def size(self) -> int:
        """Number of cells K."""
        return len(self.centroids)

    def centres(self) -> np.ndarray:
        """The centroids, [K, M]."""
        return np.asarray(self.centroids)

    def index_of(self, measures: Measures) -> Array:
        """Nearest centroid of each measure vector, [N] int32, the first among equals.

        O(N K), in chunks that bound the table of distances to about a million.
        """
        centroids = jnp.asarray(self.centres(), measures.dtype)

        def nearest(point: Array) -> Array:
            return jnp.argmin(((point[None] - centroids) ** 2).sum(axis=-1)).astype(jnp.int32)

        return in_chunks(jax.vmap(nearest), max(1, 2**20 // self.size))(measures)


Archive = GridArchive | CVTArchive
"""The cells of the measures: frozen and hashable. The contents are an `ArchiveState`."""


def cvt_centroids(
    cells: int,
    lower: tuple[float, ...],
    upper: tuple[float, ...],
    *,
    seed: int,
    samples: int = 100_000,
) -> tuple[tuple[float, ...], ...]:
    """Centroids [cells][M] that divide the box evenly, by k-means over `samples` uniform points."""
    from sklearn.cluster import KMeans  # type: ignore[import-untyped]  # slow to import

    uniform = np.random.default_rng(seed).uniform(lower, upper, size=(samples, len(lower)))
    # Elkan's algorithm is the faster one, but remembers a number for each sample and cell.
    algorithm = "elkan" if cells * samples <= 10**8 else "lloyd"
    means = KMeans(cells, init="random", n_init=1, random_state=seed, algorithm=algorithm)
    return tuple(map(tuple, means.fit(uniform).cluster_centers_.tolist()))


REGIONS = 256
"""Of `sample_evenly`."""


class ArchiveState(struct.PyTreeNode):
    """The contents of the cells. An empty cell has objective -inf."""

    latents: Array  # [K, D], perhaps in bfloat16
    objective: Array  # [K]
    measures: Array  # [K, M], as scored, not clipped to the grid
    threshold: Array  # [K]
    filled: Array  # [K] int32: the first `count` are the cells with an elite, in order of arrival
    count: Array  # [] int32

    @property
    def occupied(self) -> Array:
        """Whether a cell holds an elite, [K] bool."""
        return self.objective > -jnp.inf


class Insertion(struct.PyTreeNode):
    """The result for each solution of a batch, relative to the archive before the batch."""

    objective: Array  # [N], -inf where not finite
    measures: Array  # [N, M], 0 where not finite
    status: Array  # [N] int32: 2 new cell, 1 improved cell, 0 rejected
    value: Array  # [N]: objective minus threshold (the objective itself for a threshold of -inf)
    finite: Array  # [N] bool: False where a score was NaN or infinite, which rejects a solution

    @property
    def accepted(self) -> Array:
        """Whether a solution passed its cell's threshold, [N] bool."""
        return self.status > 0


def storable(archive: Archive, latents: Latents) -> Latents:
    """Latents rounded to what `archive` stores exactly.

    Score these: an elite's scores are then those of the latent that is kept.
    """
    if not archive.bfloat16:
        return latents
    return jax.lax.reduce_precision(latents, exponent_bits=8, mantissa_bits=7)


def init(archive: Archive, latent_size: int, dtype: jnp.dtype | None = None) -> ArchiveState:
    """An empty archive."""
    K, M = archive.size, len(archive.lower)
    dtype = jnp.zeros((), dtype).dtype
    stored = jnp.bfloat16 if archive.bfloat16 else dtype
    return ArchiveState(
        latents=by_columns(jnp.zeros((K, latent_size), stored)),
        objective=jnp.full(K, -jnp.inf, dtype),
        measures=jnp.zeros((K, M), dtype),
        threshold=jnp.full(K, archive.threshold_min, dtype),
        filled=jnp.zeros(K, jnp.int32),
        count=jnp.zeros((), jnp.int32),
    )


def add(
    archive: Archive,
    state: ArchiveState,
    latents: Latents,
    objective: Objective,
    measures: Measures,
    allowed: Array | None = None,
) -> tuple[ArchiveState, Insertion]:
    """Inserts a batch; a cell that accepts several solutions keeps the best, the first of equals.

    In an annealed archive, a solution above the cell's threshold replaces the elite even if it is
    worse than the elite; keep an elitist archive too.

    Args:
        allowed: which solutions may be accepted, [N] bool; all by default.
    """
    N, K = len(objective), archive.size
    finite = jnp.isfinite(objective) & jnp.isfinite(measures).all(axis=-1)
    objective = jnp.where(finite, objective, -jnp.inf)
    measures = jnp.where(finite[:, None], measures, 0)
    cell = archive.index_of(measures)
    threshold, occupied = state.threshold[cell], state.objective[cell] > -jnp.inf
    accepted = objective > threshold  # strictly; -inf never is
    if allowed is not None:
        accepted &= allowed
    status = jnp.where(accepted, jnp.where(occupied, 1, 2), 0).astype(jnp.int32)
    base = jnp.where(jnp.isneginf(threshold), 0, threshold)
    insertion = replicated(
        Insertion(
            objective=objective,
            measures=measures,
            status=status,
            value=jnp.where(finite, objective - base, -jnp.inf),
            finite=finite,
        )
    )

    row, group = jnp.arange(N, dtype=jnp.int32), _group_by_cell(cell, K)

    def over_group(reduce: Callable[..., Array], values: Array, otherwise: float) -> Array:
        return reduce(jnp.where(accepted, values, otherwise), group, N)[group]

    best = over_group(jax.ops.segment_max, objective, -jnp.inf)
    winner = over_group(jax.ops.segment_min, jnp.where(objective == best, row, N), N)
    if archive.threshold_min == -math.inf:
        new_threshold = best
    else:
        # The batch rule (appendix of arXiv 2205.10752), over the k accepted in the cell:
        # t' = (1 - a)^k t + (1 - (1 - a)^k) mean(f).
        k = over_group(jax.ops.segment_sum, jnp.ones_like(objective), 0)
        total = over_group(jax.ops.segment_sum, objective, 0)
        kept = (1 - archive.learning_rate) ** k
        new_threshold = kept * threshold + (1 - kept) * total / jnp.maximum(k, 1)

    # `winner` implies `news`, but through `news` the targets depend on all reads of the old
    # contents; otherwise XLA would keep a copy of all K cells for reading later.
    news = over_group(jax.ops.segment_max, status, 0)
    wins = (winner == row) & (news > 0)
    # One write for each cell: winners have distinct targets, other rows have targets out of range.
    target = jnp.where(wins, cell, K + row)

    def put(old: Array, new: Array) -> Array:
        return old.at[target].set(new.astype(old.dtype), mode="drop", unique_indices=True)

    new = wins & (news == 2)
    place = jnp.where(new, state.count + jnp.cumsum(new, dtype=jnp.int32) - 1, K + row)
    return (
        ArchiveState(
            latents=by_columns(put(state.latents, by_columns(latents))),
            objective=put(state.objective, objective),
            measures=put(state.measures, measures),
            threshold=put(state.threshold, new_threshold),
            filled=state.filled.at[place].set(cell, mode="drop", unique_indices=True),
            count=state.count + new.sum(dtype=jnp.int32),
        ),
        insertion,
    )


def sample(state: ArchiveState, key: Key, count: int) -> Latents:
    """Latents of `count` elites, drawn uniformly with repetition; zeros from an empty archive."""
    rank = jax.random.randint(key, (count,), 0, jnp.maximum(state.count, 1))
    return by_rows(state.latents[state.filled[rank]]).astype(state.objective.dtype)


def sample_evenly(state: ArchiveState, key: Key, count: int) -> Latents:
    """Latents of `count` elites [count, D], drawn uniformly from regions of the measures and within
    each, with repetition; zeros from an empty archive.

    Regions are equal parts of the box that the elites span, about `REGIONS` in all.
    """
    M, occupied = state.measures.shape[1], state.occupied
    side = round(REGIONS ** (1 / M))  # 1 from 14 measures on: one region
    low, high = (
        end(state.measures, axis=0, where=occupied[:, None], initial=start)
        for end, start in ((jnp.min, jnp.inf), (jnp.max, -jnp.inf))
    )
    place = (state.measures - low[None]) / jnp.maximum(high - low, 1e-30)[None]
    parts = jnp.clip((place * side).astype(jnp.int32), 0, side - 1)
    region = jnp.where(occupied, parts @ side ** jnp.arange(M), 0)
    held = jax.ops.segment_sum(occupied.astype(jnp.int32), region, side**M)
    shares = jnp.cumsum(jnp.where(occupied, 1 / jnp.maximum(held[region], 1), 0))
    row = jnp.searchsorted(shares, shares[-1] * jax.random.uniform(key, (count,)), side="right")
    row = jnp.minimum(row, len(shares) - 1)
    return by_rows(state.latents[row]).astype(state.objective.dtype)


def coverage(state: ArchiveState) -> Array:
    """Share of cells that hold an elite, in [0, 1]."""
    return state.count / len(state.objective)


def qd_score(state: ArchiveState) -> Array:
    """Sum of the elites' objectives; a negative objective counts as 0, like an empty cell."""
    return jnp.maximum(state.objective, 0).sum()


def _group_by_cell(cell: Array, size: int) -> Array:
    """Numbers the distinct cells of a batch: group of each row, [N] in [0, N).

    Sorting needs no array of K cells. If cell and row fit into one integer, only that integer is
    sorted, which is several times faster on a CPU than sorting pairs.
    """
    N = len(cell)
    if size * N < 2**31:
        packed = jnp.sort(cell * N + jnp.arange(N, dtype=jnp.int32))
        order, ordered = packed % N, packed // N
    else:
        order = jnp.argsort(cell)
        ordered = cell[order]
    starts = jnp.concatenate([jnp.zeros(1, bool), ordered[1:] != ordered[:-1]])
    numbers = jnp.cumsum(starts, dtype=jnp.int32)
    return jnp.zeros(N, jnp.int32).at[order].set(numbers, unique_indices=True)


def _check_annealing(archive: "Archive") -> None:
    if archive.threshold_min == -math.inf and archive.learning_rate != 1.0:
        raise ValueError("an annealed archive (learning_rate < 1) needs a finite threshold_min")
