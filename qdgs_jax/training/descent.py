"""Gradient descent: the loop of all trainings, and the training of the built-in models."""

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


def descend(
    loss: Callable[[Params, Any], Array],
    optimiser: optax.GradientTransformation,
    params: Params,
    state: optax.OptState,
    batches: Any,
) -> tuple[Params, optax.OptState, Array]:
    """One gradient step for each of `batches`, a pytree of arrays [T, ...].

    Args:
        loss: (params, batch) -> [].

    Returns:
        Parameters, the optimiser's state, and losses [T].
    """
    params, _, state, losses = descend_with_statistics(
        lambda params, _, batch: (loss(params, batch), None),
        optimiser,
        params,
        None,
        state,
        batches,
    )
    return params, state, losses


def descend_with_statistics(
    loss: Callable[[Params, Params, Any], tuple[Array, Params]],
    optimiser: optax.GradientTransformation,
    params: Params,
    statistics: Params,
    state: optax.OptState,
    batches: Any,
) -> tuple[Params, Params, optax.OptState, Array]:
    """As `descend`, where each batch also updates statistics, such as a batch norm's.

    Args:
        loss: (params, statistics, batch) -> [] and the new statistics.

    Returns:
        Parameters, statistics, the optimiser's state, and losses [T].
    """

    def step(carry: Any, batch: Any) -> tuple[Any, Array]:
        params, statistics, state = carry
        (value, statistics), gradient = jax.value_and_grad(loss, has_aux=True)(
            params, statistics, batch
        )
        updates, state = optimiser.update(gradient, state, params)
        return (optax.apply_updates(params, updates), statistics, state), value

    carry, losses = jax.lax.scan(step, (params, statistics, state), batches)
    return *carry, losses


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

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def descend_some(
        params: Params, state: optax.OptState, indices: Array, data: Data
    ) -> tuple[Params, optax.OptState, Array]:
        def loss_at(params: Params, index: Array) -> Array:
            return loss(params, jax.random.fold_in(key, index), index / config.steps, data)

        return descend(loss_at, optimiser, params, state, indices)

    state = optimiser.init(params)
    block = max(1, min(50, config.steps))
    with trange(config.steps, disable=None, unit="step") as bar:
        for start in range(0, config.steps, block):
            indices = jnp.arange(start, min(start + block, config.steps))
            params, state, losses = descend_some(params, state, indices, data)
            bar.set_postfix(loss=f"{losses.mean():.4g}", refresh=False)
            bar.update(len(indices))
    return params
