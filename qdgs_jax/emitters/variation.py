"""The emitters of MAP-Elites, which change elites a little and have no update.

Gaussian noise (Mouret and Clune, arXiv 1504.04909), and with it a step along the line to another
elite (Vassiliades and Mouret, arXiv 1804.03906).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct

from qdgs_jax.archives import ArchiveState, Insertion
from qdgs_jax.emitters import Gradients
from qdgs_jax.emitters.normals import standard_normal
from qdgs_jax.emitters.rules import elites_or
from qdgs_jax.typing import Array, Key, Latents


class VariationState(struct.PyTreeNode):
    """The starting points."""

    start: Array  # [E, D], the parents while the archive is empty

    @property
    def restarts(self) -> Array:
        """Always 0."""
        return jnp.zeros((), jnp.int32)


class Variants(struct.PyTreeNode):
    """The latents of one `ask`."""

    latents: Latents  # [E * B, D]


@dataclass(frozen=True)
class Variation:
    """E * B changed elites a generation; see `Emitter` in `qdgs_jax.emitters`.

    Attributes:
        emitters: E.
        batch_size: B.
        sigma: standard deviation of the noise.
        line_sigma: standard deviation of the step towards another elite, relative to the distance
            to it; 0: no such step.
    """

    emitters: int
    batch_size: int
    sigma: float
    line_sigma: float = 0.0

    @property
    def evaluations(self) -> int:
        """Latents scored in a generation."""
        return self.emitters * self.batch_size

    def init(self, key: Key, latents: Latents) -> VariationState:
        """Starts from `latents` [E, D]."""
        return VariationState(start=latents)

    def ask(
        self,
        state: VariationState,
        archive: ArchiveState,
        key: Key,
        gradients: Gradients | None = None,
    ) -> tuple[VariationState, Variants]:
        """x + sigma N(0, I), and + line_sigma N(0, 1) (x' - x), for random elites x and x'."""
        noise_key, parent_key, other_key, line_key = jax.random.split(key, 4)
        start = jnp.repeat(state.start, self.batch_size, axis=0)
        parents = elites_or(start, archive, parent_key)
        noise = standard_normal(noise_key, start.shape, start.dtype)
        latents = parents + self.sigma * noise
        if self.line_sigma:
            others = elites_or(start, archive, other_key)
            along = jax.random.normal(line_key, (len(start), 1), start.dtype)
            latents += self.line_sigma * along * (others - parents)
        return state, Variants(latents)

    def tell(
        self,
        state: VariationState,
        archive: ArchiveState,
        key: Key,
        asked: Variants,
        insertion: Insertion,
    ) -> VariationState:
        """No update: the state does not change."""
        return state
