"""Emitters: they propose latents and update by what the archive made of them.

An emitter is a frozen dataclass of options with the verbs below; what it learned is its state. One
object stands for a bank of E emitters that act in parallel: they share the archive and every call.
"""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import struct

from qdgs_jax.archives import ArchiveState, Insertion
from qdgs_jax.typing import Array, Key, Latents

State = Any
"""A pytree that the emitter or strategy alone understands.

That of an emitter has a property `restarts`: how often its emitters restarted so far, [] int32.
"""


Asked = Any
"""What `ask` returned and `tell` wants back: a pytree with `latents` [N, D], emitter by emitter."""


class Gradients(struct.PyTreeNode):
    """Jacobians of objective and measures, for emitters that want them."""

    points: Latents  # [P, D]
    jacobian: Array  # [P, 1 + M, D], the objective's row first


class Emitter(Protocol):
    """Proposes latents; `qdgs_jax.search` knows no more of it than this.

    Attributes:
        emitters: E, how many starting points `init` takes.
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
        """Latents to be scored."""

    def tell(
        self, state: State, archive: ArchiveState, key: Key, asked: Asked, insertion: Insertion
    ) -> State:
        """Updates by what became of the asked latents; the archive already holds them."""


@runtime_checkable
class GradientEmitter(Emitter, Protocol):
    """An emitter that asks on the strength of Jacobians."""

    def points(self, state: State, archive: ArchiveState, key: Key) -> Latents:
        """Latents [P, D] whose Jacobian `ask` wants."""


class Strategy(Protocol):
    """An evolution strategy for each of E emitters: a search distribution that learns from ranks.

    Attributes:
        batch_size: B, solutions of an emitter in a generation.
    """

    @property
    def batch_size(self) -> int: ...

    def init(self, mean: Array) -> State:
        """Fresh distributions about `mean` [E, n]; every leaf has a leading axis E."""

    def ask(self, state: State, key: Key) -> tuple[State, Array]:
        """Solutions [E, B, n]."""

    def tell(self, state: State, solutions: Array, order: Array, parents: Array) -> State:
        """Adapts to `solutions` as asked, of rows `order` [E, B], best first.

        `parents` [E] is how many of the best are parents.
        """

    def should_stop(self, state: State) -> Array:
        """Whether a distribution is degenerate, [E] bool."""


def select(which: Array, new: State, old: State) -> State:
    """Leaf by leaf, `new` for the emitters `which` [E] names, `old` for the others."""
    return jax.tree.map(
        lambda new, old: jnp.where(which.reshape(-1, *[1] * (new.ndim - 1)), new, old), new, old
    )
