"""The loop of the built-in models' trainings: one gradient step for each batch."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from tqdm import trange

from qdgs_jax.typing import Array, Key, Params

Data: TypeAlias = Any  # a pytree of arrays
Loss: TypeAlias = Callable[[Params, Key, Array, Data], Array]
"""(params, key, progress in [0, 1), data) -> the loss of a batch."""


@dataclasses.dataclass(frozen=True)
class OptimiserConfig:
    """Number and size of batches, and a learning rate with a warm-up and a cosine decay."""

    steps: int
    batch_size: int = 32
    learning_rate: float = 3e-3


def minimise(
    loss: Loss,
    params: Params,
    key: Key,
    config: OptimiserConfig,
    data: Data = None,
    *,
    method: Callable[[optax.Schedule], optax.GradientTransformation] = optax.adam,
) -> Params:
    """Minimises the loss by gradient descent; terminals show a progress bar."""
    warmup = min(100, config.steps // 10)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warmup, config.steps, config.learning_rate / 100
    )
    optimiser = method(schedule)

    def step(data: Data, carry: Any, index: Array) -> tuple[Any, Array]:
        params, state = carry
        step_key = jax.random.fold_in(key, index)
        progress = index / config.steps
        value, gradient = jax.value_and_grad(loss)(params, step_key, progress, data)
        updates, state = optimiser.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    @functools.partial(jax.jit, donate_argnums=0)
    def scan(carry: Any, indices: Array, data: Data) -> tuple[Any, Array]:
        return jax.lax.scan(functools.partial(step, data), carry, indices)

    carry = params, optimiser.init(params)
    block = max(1, min(50, config.steps))
    with trange(config.steps, disable=None, unit="step") as bar:
        for start in range(0, config.steps, block):
            indices = jnp.arange(start, min(start + block, config.steps))
            carry, values = scan(carry, indices, data)
            bar.set_postfix(loss=f"{values.mean():.4g}", refresh=False)
            bar.update(len(indices))
    return carry[0]
