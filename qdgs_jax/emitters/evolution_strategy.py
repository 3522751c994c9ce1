"""The emitter of CMA-ME and CMA-MAE: an evolution strategy over latents, many at once.

The archive's ranking of a batch replaces the objective. Fontaine et al., "Covariance Matrix
Adaptation for the Rapid Illumination of Behavior Space", arXiv 1912.02400, algorithm 2.
"""

from dataclasses import dataclass

from flax import struct

from qdgs_jax.archives import ArchiveState, Insertion
from qdgs_jax.emitters import Gradients, State, Strategy, select
from qdgs_jax.emitters.rules import Rules, RulesState, restart_ended
from qdgs_jax.sharding import rowwise
from qdgs_jax.typing import Array, Key, Latents


class EvolutionStrategyState(struct.PyTreeNode):
    """One row for each emitter."""

    strategy: State
    rules: RulesState

    @property
    def restarts(self) -> Array:
        """Restarts of all emitters so far, [] int32."""
        return self.rules.restarts.sum()


class Population(struct.PyTreeNode):
    """The solutions of one `ask`."""

    latents: Latents  # [E * B, D], emitter by emitter


@dataclass(frozen=True)
class EvolutionStrategy:
    """A bank of E emitters; see `Emitter` in `qdgs_jax.emitters`.

    Attributes:
        emitters: E.
        strategy: the search distribution: `CMAES`, or `Evosax` for many dimensions.
        rules: ranker, selection and restart rule.
    """

    emitters: int
    strategy: Strategy
    rules: Rules

    @property
    def evaluations(self) -> int:
        """Latents scored in a generation."""
        return self.emitters * self.strategy.batch_size

    def init(self, key: Key, latents: Latents) -> EvolutionStrategyState:
        """Emitters that start from `latents` [E, D]."""
        return EvolutionStrategyState(
            strategy=self.strategy.init(latents),
            rules=self.rules.init(key, self.emitters, latents.dtype),
        )

    def ask(
        self,
        state: EvolutionStrategyState,
        archive: ArchiveState,
        key: Key,
        gradients: Gradients | None = None,
    ) -> tuple[EvolutionStrategyState, Population]:
        """Samples every emitter's distribution."""
        strategy, solutions = self.strategy.ask(state.strategy, key)
        return state.replace(strategy=strategy), Population(
            solutions.reshape(-1, solutions.shape[-1])
        )

    def tell(
        self,
        state: EvolutionStrategyState,
        archive: ArchiveState,
        key: Key,
        asked: Population,
        insertion: Insertion,
    ) -> EvolutionStrategyState:
        """Updates the distributions; emitters that have ended restart from random elites."""
        state, ended = self.learn(state, asked, insertion)
        first = asked.latents[:: self.strategy.batch_size]
        return restart_ended(self.restart, state, ended, first, archive, key, self.rules.evenly)

    def learn(
        self, state: EvolutionStrategyState, asked: Population, insertion: Insertion
    ) -> tuple[EvolutionStrategyState, Array]:
        """The updated state, and which emitters have ended, [E] bool."""
        rules, ranking = self.rules.rank(state.rules, insertion)
        solutions = asked.latents.reshape(*ranking.order.shape, -1)
        strategy = rowwise(lambda _, *rows: self.strategy.tell(*rows))(
            (), state.strategy, solutions, ranking.order, ranking.parents
        )
        ended = ranking.ended | self.strategy.should_stop(strategy)
        return EvolutionStrategyState(strategy=strategy, rules=rules), ended

    def restart(
        self, state: EvolutionStrategyState, key: Key, which: Array, latents: Latents
    ) -> EvolutionStrategyState:
        """Restarts the emitters in `which` [E] bool from `latents` [E, D]."""
        return EvolutionStrategyState(
            strategy=select(which, self.strategy.init(latents), state.strategy),
            rules=self.rules.renew(state.rules, key, which, latents.dtype),
        )
