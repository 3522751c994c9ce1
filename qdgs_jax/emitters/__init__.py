"""Emitters: they propose latents and update by the archive's response.

An emitter is a frozen dataclass of options with the methods below; what changes is its state. One
object is a bank of E emitters in parallel, which share the archive and every call.
"""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import struct

from qdgs_jax.archives import ArchiveState, Insertion
from qdgs_jax.typing import Array, Key, Latents

State = Any
"""A pytree that only the emitter or strategy reads.

An emitter's state has a property `restarts`: the number of restarts of its emitters, [] int32.
"""


Asked = Any
"""A result of `ask`, for `tell`: a pytree with `latents` [N, D], emitter by emitter."""


class Gradients(struct.PyTreeNode):
    """Jacobians of objective and measures, for emitters that use them."""

    points: Latents  # [P, D]
    jacobian: Array  # [P, 1 + M, D], the objective's row first


class Emitter(Protocol):
    """Proposes latents; `qdgs_jax.search` uses only this protocol.

    Attributes:
        emitters: E, the number of starting points of `init`.
        evaluations: latents scored in a generation.
    """

    @property
    def emitters(self) -> int: ...
    @property
    def evaluations(self) -> int: ...

    def init(self, key: Key, latents: Latents) -> State:
        """Emitters that start from `latents` [E, D]."""

    def ask(
        self, state: State, archive: ArchiveState, key: Key, gradients: Gradients | None = None
    ) -> tuple[State, Asked]:
        """Latents to score."""

    def tell(
        self, state: State, archive: ArchiveState, key: Key, asked: Asked, insertion: Insertion
    ) -> State:
        """Updates by the insertion of the asked latents, after it: the archive holds them."""


@runtime_checkable
class GradientEmitter(Emitter, Protocol):
    """An emitter whose `ask` uses Jacobians."""

    def points(self, state: State, archive: ArchiveState, key: Key) -> Latents:
        """Latents [P, D] whose Jacobian `ask` needs."""


class Strategy(Protocol):
    """An evolution strategy for each of E emitters: a search distribution, updated by ranks.

    Attributes:
        batch_size: B, solutions of an emitter in a generation.
    """

    @property
    def batch_size(self) -> int: ...

    def init(self, mean: Array) -> State:
        """Initial distributions about `mean` [E, n]; every leaf has a leading axis E."""

    def ask(self, state: State, key: Key) -> tuple[State, Array]:
        """Solutions [E, B, n]."""

    def tell(self, state: State, solutions: Array, order: Array, parents: Array) -> State:
        """Updates by `solutions`, as asked; `order` [E, B] has their rows, best first.

        `parents` [E] is the number of parents, which are the best solutions.
        """

    def should_stop(self, state: State) -> Array:
        """Whether a distribution is degenerate, [E] bool."""


def select(which: Array, new: State, old: State) -> State:
    """Leaf by leaf, `new` for the emitters in `which` [E] bool, `old` for the others."""
    return jax.tree.map(
        lambda new, old: jnp.where(which.reshape(-1, *[1] * (new.ndim - 1)), new, old), new, old
    )
