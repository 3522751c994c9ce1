"""The gradient-arborescence emitter of CMA-MEGA and CMA-MAEGA, many at once.

Each emitter has a point theta, and branches along random combinations of the gradients of objective
and measures. The archive's ranking of the branches updates CMA-ES over the combinations, and moves
theta. Fontaine and Nikolaidis, "Differentiable Quality Diversity", arXiv 2106.03894, algorithm 1,
in the variant of pyribs with which the CMA-MAEGA results were published.
"""

from dataclasses import dataclass, field
from typing import Literal

import jax.numpy as jnp
from flax import struct

from qdgs_jax.archives import ArchiveState, Insertion
from qdgs_jax.emitters import Gradients, select
from qdgs_jax.emitters.cma_es import CMAES, CMAESState, recombination_weights
from qdgs_jax.emitters.rules import Rules, RulesState, restart_ended
from qdgs_jax.sharding import rowwise
from qdgs_jax.typing import Array, Key, Latents

Optimizer = Literal["adam", "ascent"]


class Ascent(struct.PyTreeNode):
    """State of the emitters' gradient ascent, one row for each emitter."""

    theta: Array  # [E, D]
    first_moment: Array  # [E, D], of Adam
    second_moment: Array  # [E, D]
    steps: Array  # [E] int32, since the last restart


class ArborescenceState(struct.PyTreeNode):
    """One row for each emitter."""

    ascent: Ascent
    strategy: CMAESState  # over coefficients, n = 1 + M
    rules: RulesState

    @property
    def restarts(self) -> Array:
        """Restarts of all emitters so far, [] int32."""
        return self.rules.restarts.sum()


class Branches(struct.PyTreeNode):
    """The branches of one `ask`."""

    coefficients: Array  # [E, B, 1 + M]
    latents: Latents  # [E * B, D], emitter by emitter


@dataclass(frozen=True)
class GradientArborescence:
    """A bank of E emitters with B branches each; see `Emitter` in `qdgs_jax.emitters`.

    Attributes:
        emitters: E.
        batch_size: B, at least 2.
        measures: M, number of measures; the coefficients have 1 + M dimensions.
        sigma0: initial standard deviation of the coefficients.
        step_size: learning rate of the ascent on theta.
        optimizer: `adam`, or `ascent`: plain gradient ascent.
        rules: ranker, selection and restart rule.
    """

    emitters: int
    batch_size: int
    measures: int
    sigma0: float
    step_size: float
    optimizer: Optimizer = "adam"
    rules: Rules = field(default_factory=Rules)

    @property
    def strategy(self) -> CMAES:
        """The evolution strategy over gradient coefficients."""
        return CMAES(self.batch_size, self.sigma0)

    @property
    def evaluations(self) -> int:
        """Latents scored in a generation: every theta and every branch."""
        return self.emitters * (1 + self.batch_size)

    def init(self, key: Key, latents: Latents) -> ArborescenceState:
        """Emitters whose theta is `latents` [E, D]."""
        return ArborescenceState(
            ascent=Ascent(
                theta=latents,
                first_moment=jnp.zeros_like(latents),
                second_moment=jnp.zeros_like(latents),
                steps=jnp.zeros(self.emitters, jnp.int32),
            ),
            strategy=self.strategy.init(
                jnp.zeros((self.emitters, 1 + self.measures), latents.dtype)
            ),
            rules=self.rules.init(key, self.emitters, latents.dtype),
        )

    def points(self, state: ArborescenceState, archive: ArchiveState, key: Key) -> Latents:
        """Theta [E, D]."""
        return state.ascent.theta

    def ask(
        self,
        state: ArborescenceState,
        archive: ArchiveState,
        key: Key,
        gradients: Gradients | None = None,
    ) -> tuple[ArborescenceState, Branches]:
        """Branches theta + c J with c ~ N(mu, sigma^2 C).

        The rows of J are normalised here; one that is not finite counts as zero.
        """
        assert gradients is not None
        strategy, coefficients = self.strategy.ask(state.strategy, key)
        return state.replace(strategy=strategy), branch(coefficients, gradients)

    def tell(
        self,
        state: ArborescenceState,
        archive: ArchiveState,
        key: Key,
        asked: Branches,
        insertion: Insertion,
    ) -> ArborescenceState:
        """Updates coefficients and theta; emitters that have ended restart from random elites."""
        state, ended = self.learn(state, asked, insertion)
        return restart_ended(
            self.restart, state, ended, state.ascent.theta, archive, key, self.rules.evenly
        )

    def learn(
        self, state: ArborescenceState, asked: Branches, insertion: Insertion
    ) -> tuple[ArborescenceState, Array]:
        """The updated state, and which emitters have ended, [E] bool."""
        rules, ranking = self.rules.rank(state.rules, insertion)
        strategy = rowwise(lambda _, *rows: self.strategy.tell(*rows))(
            (), state.strategy, asked.coefficients, ranking.order, ranking.parents
        )
        latents = asked.latents.reshape(self.emitters, self.batch_size, -1)
        weights = rowwise(
            lambda _, order, parents: recombination_weights(order, parents, latents.dtype)
        )((), ranking.order, ranking.parents)
        # Without a parent the mean is an empty sum: theta moves towards the origin, the mean
        # image. The published results include this effect, and are worse without it.
        mean = jnp.einsum("eb,ebd->ed", weights, latents, precision="highest")
        step = self._adam if self.optimizer == "adam" else self._plain
        state = ArborescenceState(
            ascent=step(state.ascent, mean - state.ascent.theta), strategy=strategy, rules=rules
        )
        return state, ranking.ended | self.strategy.should_stop(strategy)

    def restart(
        self, state: ArborescenceState, key: Key, which: Array, latents: Latents
    ) -> ArborescenceState:
        """Restarts the emitters in `which` [E] bool from `latents` [E, D]."""
        fresh = self.init(key, latents)
        return ArborescenceState(
            ascent=select(which, fresh.ascent, state.ascent),
            strategy=select(which, fresh.strategy, state.strategy),
            rules=self.rules.renew(state.rules, key, which, latents.dtype),
        )

    def _plain(self, ascent: Ascent, gradient: Array) -> Ascent:
        return ascent.replace(
            theta=ascent.theta + self.step_size * gradient, steps=ascent.steps + 1
        )

    def _adam(self, ascent: Ascent, gradient: Array) -> Ascent:
        """Kingma and Ba, arXiv 1412.6980, the last formula of section 2.

        The epsilon is added to sqrt(v) without its bias correction, unlike optax's.
        """
        beta1, beta2 = 0.9, 0.999
        t = ascent.steps + 1
        m = beta1 * ascent.first_moment + (1 - beta1) * gradient
        v = beta2 * ascent.second_moment + (1 - beta2) * gradient**2
        rate = self.step_size * jnp.sqrt(1 - beta2**t) / (1 - beta1**t)
        theta = ascent.theta + rate[:, None] * m / (jnp.sqrt(v) + 1e-8)
        return Ascent(theta=theta, first_moment=m, second_moment=v, steps=t)


def branch(coefficients: Array, gradients: Gradients) -> Branches:
    """Branches [P * B, D] of P points along unit gradients, by `coefficients` [P, B, 1 + M]."""
    points, jacobian = gradients.points, gradients.jacobian
    norm = jnp.linalg.norm(jacobian, axis=-1, keepdims=True)
    directions = jnp.where(jnp.isfinite(norm), jacobian / (norm + 1e-8), 0)
    steps = jnp.matmul(coefficients, directions, precision="highest")
    return Branches(coefficients, (points[:, None] + steps).reshape(-1, points.shape[-1]))
