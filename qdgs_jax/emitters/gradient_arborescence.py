"""The gradient-arborescence emitter of CMA-MEGA and CMA-MAEGA, many at once.

Each emitter owns a point theta. It branches along random combinations of the gradients of objective
and measures; the archive's verdict on the branches teaches CMA-ES which combinations pay, and moves
theta. Fontaine and Nikolaidis, "Differentiable Quality Diversity", arXiv 2106.03894, algorithm 1,
in the variant of pyribs on which the published CMA-MAEGA results rest.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct

from qdgs_jax.archive import Insertion
from qdgs_jax.emitters import cma_es
from qdgs_jax.emitters.cma_es import CMAES, CMAESState
from qdgs_jax.typing import Array, Key, Latents


@dataclass(frozen=True)
class GradientArborescence:
    """A bank of E emitters with B branches each.

    Attributes:
        emitters: E.
        batch_size: B, at least 2.
        measures: M, number of measures; the coefficients have 1 + M dimensions.
        sigma0: initial standard deviation of the coefficients.
        step_size: learning rate of Adam on theta.
    """

    emitters: int
    batch_size: int
    measures: int
    sigma0: float
    step_size: float

    @property
    def strategy(self) -> CMAES:
        """The evolution strategy over gradient coefficients."""
        return CMAES(1 + self.measures, self.batch_size, self.sigma0)


class ArborescenceState(struct.PyTreeNode):
    """One row an emitter."""

    theta: Array  # [E, D]
    first_moment: Array  # [E, D], of Adam
    second_moment: Array  # [E, D]
    steps: Array  # [E] int32, of Adam since the last restart
    strategy: CMAESState  # leading axis E
    restarts: Array  # [E] int32


class Branches(struct.PyTreeNode):
    """What was asked, to be told with the archive's verdict."""

    coefficients: Array  # [E, B, 1 + M]
    latents: Array  # [E * B, D], emitter by emitter


def init(emitter: GradientArborescence, theta: Latents) -> ArborescenceState:
    """Emitters that start from `theta` [E, D]."""
    origin = jnp.zeros((emitter.emitters, 1 + emitter.measures), theta.dtype)
    return ArborescenceState(
        theta=theta,
        first_moment=jnp.zeros_like(theta),
        second_moment=jnp.zeros_like(theta),
        steps=jnp.zeros(emitter.emitters, jnp.int32),
        strategy=jax.vmap(lambda mean: cma_es.init(emitter.strategy, mean))(origin),
        restarts=jnp.zeros(emitter.emitters, jnp.int32),
    )


def ask(
    emitter: GradientArborescence, state: ArborescenceState, key: Key, jacobian: Array
) -> tuple[ArborescenceState, Branches]:
    """Branches theta + c J with c ~ N(mu, sigma^2 C).

    Args:
        jacobian: [E, 1 + M, D], gradients of the objective and of each measure at theta. Rows are
            normalised here; a row that is not finite counts as zero.
    """
    shape = (emitter.emitters, emitter.batch_size, 1 + emitter.measures)
    return ask_with_normals(emitter, state, jax.random.normal(key, shape, jacobian.dtype), jacobian)


def ask_with_normals(
    emitter: GradientArborescence, state: ArborescenceState, normals: Array, jacobian: Array
) -> tuple[ArborescenceState, Branches]:
    """`ask`, with the standard normal draws [E, B, 1 + M] given."""
    norm = jnp.linalg.norm(jacobian, axis=-1, keepdims=True)
    directions = jnp.where(jnp.isfinite(norm), jacobian / (norm + 1e-8), 0)
    strategy = cma_es.decompose(emitter.strategy, state.strategy)
    coefficients = jax.vmap(cma_es.ask)(strategy, normals)
    steps = jnp.einsum("ebm,emd->ebd", coefficients, directions, precision="highest")
    latents = (state.theta[:, None] + steps).reshape(-1, state.theta.shape[-1])
    return state.replace(strategy=strategy), Branches(coefficients, latents)


def tell(
    emitter: GradientArborescence,
    state: ArborescenceState,
    branches: Branches,
    insertion: Insertion,
) -> tuple[ArborescenceState, Array]:
    """Learns from the archive's verdict on the branches.

    Ranks by improvement (`imp`), takes the accepted branches as parents (`filter`), adapts the
    strategy, and steps theta towards the parents' weighted mean.

    Returns:
        The state, and which emitters came to their end and want a `restart`, [E] bool.
    """
    E, B = emitter.emitters, emitter.batch_size

    def tell_one(
        state: ArborescenceState, coefficients: Array, latents: Array, insertion: Insertion
    ) -> tuple[ArborescenceState, Array]:
        order = jnp.flip(jnp.argsort(insertion.value))  # best first, the later of equals first
        parents = insertion.accepted.sum()
        strategy = cma_es.tell(emitter.strategy, state.strategy, coefficients[order], parents)
        weights = cma_es.recombination_weights(B, parents, latents.dtype)
        mean = jnp.matmul(weights, latents[order], precision="highest")
        # Without a parent the mean is an empty sum: theta is drawn towards the origin, the mean
        # image. The published results contain that pull, and are worse without it.
        moved = _adam(emitter, state, mean - state.theta)
        best, worst = insertion.value[order[0]], insertion.value[order[-1]]
        flat = ~(best - worst >= 1e-12)  # also when no branch is finite
        return moved.replace(strategy=strategy), cma_es.should_stop(strategy) | flat

    per_emitter = jax.tree.map(lambda field: field.reshape(E, B, *field.shape[1:]), insertion)
    return jax.vmap(tell_one)(
        state, branches.coefficients, branches.latents.reshape(E, B, -1), per_emitter
    )


def restart(
    emitter: GradientArborescence, state: ArborescenceState, which: Array, theta: Latents
) -> ArborescenceState:
    """Begins anew from `theta` [E, D] where `which` [E] says so."""
    fresh = init(emitter, theta).replace(restarts=state.restarts + 1)
    return jax.tree.map(
        lambda new, old: jnp.where(which.reshape(-1, *[1] * (new.ndim - 1)), new, old), fresh, state
    )


def _adam(
    emitter: GradientArborescence, state: ArborescenceState, gradient: Array
) -> ArborescenceState:
    """One ascent step on theta (Kingma and Ba, arXiv 1412.6980, section 2, last formula).

    The epsilon is added to sqrt(v) without its bias correction, unlike optax's.
    """
    beta1, beta2 = 0.9, 0.999
    t = state.steps + 1
    m = beta1 * state.first_moment + (1 - beta1) * gradient
    v = beta2 * state.second_moment + (1 - beta2) * gradient**2
    rate = emitter.step_size * jnp.sqrt(1 - beta2**t) / (1 - beta1**t)
    return state.replace(
        theta=state.theta + rate * m / (jnp.sqrt(v) + 1e-8),
        first_moment=m,
        second_moment=v,
        steps=t,
    )
