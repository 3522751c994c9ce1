"""Scores of a batch and their Jacobian, by one forward pass and one pull-back for each value.

A score is any function `score(params, key, latents, memory) -> (Scores, memory)`. If the score is
stateful, the memory is a pytree that it passes to its next call; otherwise it is `()`.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import struct

from qdgs_jax.typing import Array, Key, Latents, Measures, Objective, Params

Memory: TypeAlias = Any  # a pytree of arrays, its structure and shapes always the same


class Scores(struct.PyTreeNode):
    """The scores of latents [N, D]."""

    objective: Objective  # [N], higher is better
    measures: Measures  # [N, M]
    jacobian: Array | None = None  # [N, 1 + M, D], the objective's gradient first, if asked for
    atypical: Array | None = None  # [N] bool, out of distribution, if the score tells: no elites


Score: TypeAlias = Callable[[Params, Key, Latents, Memory], tuple[Scores, Memory]]
"""(params, key, latents [N, D], memory) -> scores, and the memory of the next call."""


def with_jacobian(score: Score) -> Score:
    """The same score with the Jacobian in its scores: jacobian[:, 0] is the objective's gradient.

    Samples must not affect each other, so that one pull-back of ones over N serves all of them. The
    second result, a memory or another value, is returned unchanged.
    """

    def scored(params: Params, key: Key, latents: Latents, memory: Memory) -> tuple[Scores, Memory]:
        def values(latents: Latents) -> tuple[Array, Memory]:
            scores, after = score(params, key, latents, memory)
            outputs = jnp.concatenate([scores.objective[:, None], scores.measures], axis=1)
            return outputs, (scores.atypical, after)

        outputs, pull_back, (atypical, after) = jax.vjp(values, latents, has_aux=True)
        rows = jnp.eye(outputs.shape[1], dtype=outputs.dtype)
        cotangents = jnp.broadcast_to(rows[:, None], (len(rows), *outputs.shape))
        (gradients,) = jax.vmap(pull_back)(cotangents)
        jacobian = jnp.swapaxes(gradients, 0, 1)
        return Scores(outputs[:, 0], outputs[:, 1:], jacobian, atypical), after

    return scored
