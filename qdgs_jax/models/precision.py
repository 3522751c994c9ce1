"""The precision of a network's matrix products and activations."""

import contextlib
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from qdgs_jax.typing import Array

Precision: TypeAlias = Literal["highest", "default", "bf16"]


def for_device(precision: Precision | Literal["auto"]) -> Precision:
    """A precision of trainings; `auto` is bf16 on accelerators and highest on CPUs."""
    if precision != "auto":
        return precision
    return "highest" if jax.default_backend() == "cpu" else "bf16"


def matmul_precision(precision: Precision) -> contextlib.AbstractContextManager[Any]:
    """Context in which a network is traced; attention has no argument for its precision.

    Pull-backs inherit the precision of the forward pass.
    """
    if precision == "highest":
        return jax.default_matmul_precision("highest")
    return contextlib.nullcontext()


def activation_dtype(precision: Precision) -> Any:
    """The type that activations are cast to; None: they are not cast."""
    return jnp.bfloat16 if precision == "bf16" else None


def widen(x: Array) -> Array:
    """Casts to float32 at least."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
