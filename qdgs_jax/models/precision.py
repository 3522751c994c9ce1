"""The precision of a network's matrix products and activations."""

import contextlib
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from qdgs_jax.typing import Array

Precision: TypeAlias = Literal["highest", "default", "bf16"]


def matmul_precision(precision: Precision) -> contextlib.AbstractContextManager[Any]:
    """For the tracing of a network; a context, since attention takes no precision.

    Pull-backs inherit what the forward pass traced.
    """
    if precision == "highest":
        return jax.default_matmul_precision("highest")
    return contextlib.nullcontext()


def activation_dtype(precision: Precision) -> Any:
    """What activations are cast to; None keeps them."""
    return jnp.bfloat16 if precision == "bf16" else None


def widen(x: Array) -> Array:
    """At least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
