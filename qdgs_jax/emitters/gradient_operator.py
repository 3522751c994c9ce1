"""The emitter of OMG-MEGA: moves elites once along random combinations of their gradients.

Fontaine and Nikolaidis, "Differentiable Quality Diversity", arXiv 2106.03894, section 4.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from qdgs_jax.archives import ArchiveState, Insertion
from qdgs_jax.emitters import Gradients
from qdgs_jax.emitters.gradient_arborescence import Branches, branch
from qdgs_jax.emitters.rules import elites_or
from qdgs_jax.emitters.variation import VariationState
from qdgs_jax.typing import Key, Latents


@dataclass(frozen=True)
class GradientOperator:
    """E * B elites a generation, each with one branch; see `Emitter` in `qdgs_jax.emitters`.

    Attributes:
        emitters: E.
        batch_size: B.
        sigma: standard deviation of the coefficients; of the objective's, the absolute value is
            used.
    """

    emitters: int
    batch_size: int
    sigma: float

    @property
    def evaluations(self) -> int:
        """Latents scored in a generation: every elite, for its Jacobian, and its branch."""
        return 2 * self.emitters * self.batch_size

    def init(self, key: Key, latents: Latents) -> VariationState:
        """Starts from `latents` [E, D]."""
        return VariationState(start=latents)

    def points(self, state: VariationState, archive: ArchiveState, key: Key) -> Latents:
        """Random elites [E * B, D]."""
        return elites_or(jnp.repeat(state.start, self.batch_size, axis=0), archive, key)

    def ask(
        self,
        state: VariationState,
        archive: ArchiveState,
        key: Key,
        gradients: Gradients | None = None,
    ) -> tuple[VariationState, Branches]:
        """x + |c_0| grad f + sum_j c_j grad m_j with unit gradients and c ~ N(0, sigma^2 I)."""
        assert gradients is not None
        points, rows = gradients.jacobian.shape[:2]
        dtype = gradients.points.dtype
        coefficients = self.sigma * jax.random.normal(key, (points, 1, rows), dtype)
        coefficients = coefficients.at[..., 0].set(jnp.abs(coefficients[..., 0]))
        return state, branch(coefficients, gradients)

    def tell(
        self,
        state: VariationState,
        archive: ArchiveState,
        key: Key,
        asked: Branches,
        insertion: Insertion,
    ) -> VariationState:
        """No update: the state does not change."""
        return state
