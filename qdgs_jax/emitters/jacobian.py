"""Jacobians of plain score functions, for gradient emitters outside a generator's pipeline."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from qdgs_jax.typing import Array, Key, Latents, Measures, Objective, Params


def with_jacobian(
    score: Callable[[Params, Key, Latents], tuple[Objective, Measures]],
) -> Callable[[Params, Key, Latents], tuple[Objective, Measures, Array]]:
    """f(params, key, latents) -> objective [N], measures [N, M], jacobian [N, 1 + M, D].

    One forward pass and 1 + M pull-backs. Samples must not touch each other: then a cotangent of
    ones over N gives each its own row. (`qdgs_jax.scoring.with_jacobian` does it in chunks.)
    """

    def scored(params: Params, key: Key, latents: Latents) -> tuple[Objective, Measures, Array]:
        def values(latents: Latents) -> Array:
            objective, measures = score(params, key, latents)
            return jnp.concatenate([objective[:, None], measures], axis=1)

        outputs, pull_back = jax.vjp(values, latents)
        rows = jnp.eye(outputs.shape[1], dtype=outputs.dtype)
        cotangents = jnp.broadcast_to(rows[:, None], (len(rows), *outputs.shape))
        (gradients,) = jax.vmap(pull_back)(cotangents)
        return outputs[:, 0], outputs[:, 1:], jnp.swapaxes(gradients, 0, 1)

    return scored
