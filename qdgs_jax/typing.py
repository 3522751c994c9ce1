"""The vocabulary of array types.

One alphabet of axes names every array field: N batch, D latent, L style layers, H W C image,
E embedding, M measures, K cells.
"""

from typing import Any, TypeAlias

import jax

Array: TypeAlias = jax.Array
Key: TypeAlias = jax.Array  # typed (`jax.random.key`) or raw uint32
Params: TypeAlias = Any  # a pytree of arrays, always an argument

Latents: TypeAlias = jax.Array  # [N, D]
Images: TypeAlias = jax.Array  # [N, H, W, 3], RGB in [0, 1]
Embeddings: TypeAlias = jax.Array  # [N, E], unit norm
Objective: TypeAlias = jax.Array  # [N], higher is better
Measures: TypeAlias = jax.Array  # [N, M]
