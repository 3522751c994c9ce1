"""The provenance of a result."""

import json
import platform
from types import SimpleNamespace

import jax
import numpy as np

from qdgs_jax import provenance
from qdgs_jax.config import Config, MeasureConfig, ObjectiveConfig


def test_models_precision_and_seed_are_named() -> None:
    config = Config(
        objective=ObjectiveConfig(),
        measures=(MeasureConfig(name="light", function="brightness"),),
        seed=3,
    )
    generator = SimpleNamespace(name="toy", sha256="a" * 64)
    found = provenance.describe(generator, None, config)
    assert found["generator"] == {"name": "toy", "sha256": "a" * 64}
    assert found["encoder"] is None
    assert (found["seed"], found["precision"]) == (3, config.encoder.precision)
    assert json.loads(json.dumps(found)) == found


def test_environment_names_the_device_and_versions() -> None:
    found = provenance.environment(("python", "jax", "numpy"))
    assert found["device"] == jax.devices()[0].device_kind
    assert found["versions"] == {
        "python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__,
    }  # fmt: skip
    assert set(provenance.environment()["versions"]) == set(provenance.COMPUTATION)
