"""How an emitter updates: the ranking of a batch, the selection of parents, and restarts.

CMA-ME, CMA-MAE, CMA-MEGA and CMA-MAEGA differ in these three choices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

from qdgs_jax import archives
from qdgs_jax.archives import ArchiveState, Insertion
from qdgs_jax.emitters import State, select
from qdgs_jax.typing import Array, Key, Latents

Ranker = Literal["imp", "2imp", "obj", "rd"]
Selection = Literal["filter", "mu"]
Restart = Literal["basic", "no_improvement"] | int


class RulesState(struct.PyTreeNode):
    """The state of the rules for E emitters."""

    told: Array  # [] int32, generations
    restarts: Array  # [E] int32
    direction: Array | None  # [E, M], by which ranker `rd` sorts


class Ranking(struct.PyTreeNode):
    """The result of the rules for a batch."""

    order: Array  # [E, B], rows of each emitter's batch, best first
    parents: Array  # [E] int32, how many of the best are parents
    ended: Array  # [E] bool: restart


@dataclass(frozen=True)
class Rules:
    """Ranker, selection and restart rule.

    Attributes:
        ranker: sort key of a batch. `imp`: value, the improvement on the cell's threshold;
            `2imp`: new cells first, then improved ones, each by value; `obj`: objective; `rd`:
            place along a random direction of the measures.
        selection: `filter`: parents are the solutions that the archive accepted; `mu`: the best
            half.
        restart: `basic`: restart only if the strategy stops or the batch is flat;
            `no_improvement`: also if nothing was accepted; N: also every N generations.
        span: extent of the archive along each measure, only for ranker `rd`.
        evenly: whether restarts are from all regions of the measures alike, not from all elites.
    """

    ranker: Ranker = "imp"
    selection: Selection = "filter"
    restart: Restart = "basic"
    span: tuple[float, ...] = ()
    evenly: bool = False

    def __post_init__(self) -> None:
        if (self.ranker == "rd") != bool(self.span):
            raise ValueError("ranker 'rd', and only that, needs the `span` of the archive")

    def init(self, key: Key, emitters: int, dtype: jnp.dtype) -> RulesState:
        """The state of E new emitters."""
        direction = None
        if self.ranker == "rd":
            normals = jax.random.normal(key, (emitters, len(self.span)), dtype)
            direction = normals * jnp.asarray([self.span], dtype)
        return RulesState(
            told=jnp.zeros((), jnp.int32),
            restarts=jnp.zeros(emitters, jnp.int32),
            direction=direction,
        )

    def rank(self, state: RulesState, insertion: Insertion) -> tuple[RulesState, Ranking]:
        """Ranks a batch [E * B], emitter by emitter."""
        E = len(state.restarts)
        batches = jax.tree.map(lambda field: field.reshape(E, -1, *field.shape[1:]), insertion)
        keys = self._keys(state, batches)
        # Best first, and the later of equals first.
        order = jnp.flip(jnp.lexsort(keys[::-1], axis=-1), axis=-1)
        ends = order[:, jnp.array([0, -1])]
        squared = sum(jnp.diff(jnp.take_along_axis(key, ends, axis=1))[:, 0] ** 2 for key in keys)
        accepted = batches.accepted.sum(axis=1, dtype=jnp.int32)
        half = jnp.full(E, order.shape[1] // 2, jnp.int32)
        told = state.told + 1
        ended = ~(jnp.sqrt(squared) >= 1e-12)  # flat; also when no score is finite
        if self.restart == "no_improvement":
            ended |= accepted == 0
        elif self.restart != "basic":
            ended |= told % self.restart == 0
        parents = accepted if self.selection == "filter" else half
        return state.replace(told=told), Ranking(order=order, parents=parents, ended=ended)

    def renew(self, state: RulesState, key: Key, which: Array, dtype: jnp.dtype) -> RulesState:
        """Counts the restarts of `which` [E] emitters and draws them new directions."""
        fresh = self.init(key, len(which), dtype)
        return state.replace(
            restarts=state.restarts + which,
            direction=select(which, fresh.direction, state.direction),
        )

    def _keys(self, state: RulesState, batches: Insertion) -> tuple[Array, ...]:
        """Sort keys [E, B], the most significant first; -inf for scores that are not finite."""
        match self.ranker:
            case "imp":
                return (batches.value,)
            case "2imp":
                return batches.status.astype(batches.value.dtype), batches.value
            case "obj":
                return (batches.objective,)
            case "rd":
                place = jnp.einsum("ebm,em->eb", batches.measures, state.direction)
                return (jnp.where(batches.finite, place, -jnp.inf),)


def elites_or(latents: Latents, archive: ArchiveState, key: Key, evenly: bool = False) -> Latents:
    """Random elites to restart from, as many as `latents`; `latents` if there are no elites.

    Args:
        evenly: from all regions of the measures alike.
    """
    draw = archives.sample_evenly if evenly else archives.sample
    return jnp.where(archive.count > 0, draw(archive, key, len(latents)), latents)


def restart_ended(
    restart: Callable[[State, Key, Array, Latents], State],
    state: State,
    ended: Array,
    latents: Latents,
    archive: ArchiveState,
    key: Key,
    evenly: bool = False,
) -> State:
    """Calls an emitter's `restart` for the emitters in `ended` [E] bool, with random elites.

    See `elites_or` for `latents` [E, D] and `evenly`.
    """
    elite_key, rules_key = jax.random.split(key)
    return jax.lax.cond(
        ended.any(),
        lambda: restart(state, rules_key, ended, elites_or(latents, archive, elite_key, evenly)),
        lambda: state,
    )
