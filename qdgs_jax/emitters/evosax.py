"""Strategies of evosax for latent spaces that are too large for a full covariance."""

import functools
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from qdgs_jax.emitters import State
from qdgs_jax.errors import ConfigError
from qdgs_jax.typing import Array, Key

Name = Literal["sep_cma_es", "lm_ma_es", "openai_es"]


@dataclass(frozen=True)
class Evosax:
    """A strategy of evosax for each of E emitters; see `Strategy` in `qdgs_jax.emitters`.

    Attributes:
        name: `sep_cma_es`: CMA-ES with a diagonal covariance (Ros and Hansen 2008); `lm_ma_es`:
            with a covariance of about log n directions (Loshchilov et al., arXiv 1705.06693);
            `openai_es`: an isotropic distribution whose mean ascends by Adam (Salimans et al.,
            arXiv 1703.03864).
        batch_size: B, solutions of an emitter in a generation; even for `openai_es`.
        sigma0: initial step size; `openai_es` keeps it.
        step_size: learning rate of `openai_es`.
    """

    name: Name
    batch_size: int
    sigma0: float
    step_size: float = 0.05

    def __post_init__(self) -> None:
        if self.name == "openai_es" and self.batch_size % 2:
            raise ConfigError(
                "Strategy openai_es draws mirrored pairs: make search.batch_size even."
            )

    def init(self, mean: Array) -> State:
        """Initial distributions about `mean` [E, n]."""
        algorithm, params = _algorithm(self, mean.shape[-1])
        key = jax.random.key(0)  # unused by these algorithms
        return jax.vmap(lambda mean: algorithm.init(key, mean, params))(mean)

    def ask(self, state: State, key: Key) -> tuple[State, Array]:
        """Solutions [E, B, n]."""
        algorithm, params = _algorithm(self, state.mean.shape[-1])
        keys = jax.random.split(key, len(state.mean))
        solutions, state = jax.vmap(lambda key, state: algorithm.ask(key, state, params))(
            keys, state
        )
        return state, solutions

    def tell(self, state: State, solutions: Array, order: Array, parents: Array) -> State:
        """Updates by `solutions`, as asked; `order` [E, B] has their rows, best first.

        `parents` is ignored: these strategies weigh the whole batch or its better half.
        """
        algorithm, params = _algorithm(self, state.mean.shape[-1])
        key = jax.random.key(0)  # unused by these algorithms
        rank = jnp.arange(self.batch_size, dtype=solutions.dtype)

        def tell_one(state: State, solutions: Array, order: Array) -> State:
            if self.name == "lm_ma_es":
                # evosax weighs its stored draws by rank without sorting them.
                state = state.replace(z=state.z[order])
            return algorithm.tell(key, solutions[order], rank, state, params)[0]

        return jax.vmap(tell_one)(state, solutions, order)

    def should_stop(self, state: State) -> Array:
        """Whether the distribution is too small to move, or is no longer finite; [E]."""
        size = state.std
        if self.name == "sep_cma_es":
            size = size * jnp.sqrt(state.C.max(axis=-1))
        return ~((size >= 1e-11) & jnp.isfinite(size) & jnp.isfinite(state.mean).all(axis=-1))


@functools.cache
def _algorithm(strategy: Evosax, n: int) -> tuple[Any, Any]:
    """evosax' algorithm over n dimensions, and its parameters.

    Cached, because evosax compiles again for every object. Imported here, because evosax starts
    JAX's backend on import, after which `jax.distributed.initialize` fails.
    """
    from evosax.algorithms.distribution_based.lm_ma_es import LM_MA_ES
    from evosax.algorithms.distribution_based.open_es import Open_ES
    from evosax.algorithms.distribution_based.sep_cma_es import Sep_CMA_ES

    with jax.ensure_compile_time_eval():
        like, B = jnp.zeros(n), strategy.batch_size
        algorithm: Any
        match strategy.name:
            case "openai_es":
                algorithm = Open_ES(
                    B,
                    like,
                    optimizer=optax.adam(strategy.step_size),
                    std_schedule=optax.constant_schedule(strategy.sigma0),
                )
                return algorithm, algorithm.default_params
            case "lm_ma_es":
                algorithm = LM_MA_ES(B, like)
            case "sep_cma_es":
                algorithm = Sep_CMA_ES(B, like)
        return algorithm, algorithm.default_params.replace(std_init=jnp.asarray(strategy.sigma0))
