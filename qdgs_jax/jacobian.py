"""Values of latents with all their gradients: one forward pass, and a pull-back for each value."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from qdgs_jax.typing import Array, Key, Latents, Measures, Objective, Params


def values_and_jacobian(
    function: Callable[[Latents], tuple[Array, Any]], latents: Latents
) -> tuple[Array, Array, Any]:
    """Values [N, R], their Jacobian [N, R, D] and what else function(latents [N, D]) gives.

    Samples must not touch each other: then a cotangent of ones over N gives each its own row.
    """
    values, pull_back, others = jax.vjp(function, latents, has_aux=True)
    rows = jnp.eye(values.shape[1], dtype=values.dtype)
    cotangents = jnp.broadcast_to(rows[:, None], (len(rows), *values.shape))
    (gradients,) = jax.vmap(pull_back)(cotangents)
    return values, jnp.swapaxes(gradients, 0, 1), others


def with_jacobian(
    score: Callable[[Params, Key, Latents], tuple[Objective, Measures]],
) -> Callable[[Params, Key, Latents], tuple[Objective, Measures, Array]]:
    """f(params, key, latents) -> objective [N], measures [N, M], jacobian [N, 1 + M, D].

    jacobian[:, 0] is the gradient of the objective, row 1 + j that of measure j. For any score
    whose samples do not touch each other; `qdgs_jax.scoring.with_jacobian` does it in chunks.
    """

    def scored(params: Params, key: Key, latents: Latents) -> tuple[Objective, Measures, Array]:
        def values(latents: Latents) -> tuple[Array, None]:
            objective, measures = score(params, key, latents)
            return jnp.concatenate([objective[:, None], measures], axis=1), None

        outputs, jacobian, _ = values_and_jacobian(values, latents)
        return outputs[:, 0], outputs[:, 1:], jacobian

    return scored
