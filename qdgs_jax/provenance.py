"""Models, device and versions with which a result was made."""

import importlib.metadata
import os
import platform
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import jax

from qdgs_jax.config import Config

COMPUTATION = (
    "python", "jax", "jaxlib", "flax", "numpy", "optax", "qdgs-jax",
)  # fmt: skip
"""Packages that the numbers of a search or a training may depend on."""
RENDERING = ("qdgs-jax", "jax", "jaxlib", "numpy", "pillow")
"""Packages that the bytes of an image may depend on."""


class Model(Protocol):
    """What identifies a generator or an encoder."""

    @property
    def name(self) -> str: ...

    @property
    def sha256(self) -> str: ...


def describe(
    generator: Model,
    encoder: Model | None,
    config: Config,
    classifiers: Mapping[str, Model] = MappingProxyType({}),
) -> dict[str, Any]:
    """Models, precision, seed, device and versions of a scoring, as plain JSON values.

    Args:
        classifiers: those of measures, by `classifier`.
    """
    named = {name: each.sha256 for name, each in classifiers.items()}
    return {
        "generator": {"name": generator.name, "sha256": generator.sha256},
        "encoder": encoder and {"name": encoder.name, "sha256": encoder.sha256},
        **({"classifiers": named} if named else {}),
        "precision": config.encoder.precision,
        "seed": config.seed,
        **environment(),
    }


def environment(packages: Sequence[str] = COMPUTATION) -> dict[str, Any]:
    """The kind of device, and the versions of `packages`, which may include "python"."""
    return {
        "device": jax.devices()[0].device_kind,
        "versions": {package: version(package) for package in packages},
    }


def occasion() -> dict[str, str]:
    """Today's date, and the machine."""
    return {
        "date": time.strftime("%F"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def version(package: str = "qdgs-jax") -> str:
    """Version of an installed package, or of "python"."""
    if package == "python":
        return platform.python_version()
    return importlib.metadata.version(package)
