"""Functions of images: values on plain colours, and how they are named in a config."""

import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax import image_measures
from qdgs_jax.config import MeasureConfig
from qdgs_jax.errors import ConfigError


def test_plain_colours():
    colours = jnp.array([[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1]], jnp.float32)
    images = jnp.broadcast_to(colours[:, None, None], (4, 3, 5, 3))
    np.testing.assert_allclose(image_measures.brightness(images), [1, 0, 0.299, 0.114], atol=1e-6)
    np.testing.assert_allclose(image_measures.warmth(images), [0, 0, 1, -1])
    np.testing.assert_allclose(image_measures.coverage(images), [0, 1, 1, 1])


@pytest.fixture
def module(monkeypatch):
    module = types.ModuleType("my_measures")
    module.redness = lambda images: images[..., 0].mean((1, 2))
    module.flat = lambda images: images.mean()
    monkeypatch.setitem(sys.modules, "my_measures", module)
    return module


def test_a_measure_can_be_imported(module):
    measure = MeasureConfig(name="m", function="my_measures:redness")
    assert image_measures.load(measure, 4) is module.redness


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("brightnes", "did you mean 'brightness'"),
        ("my_measures:rednes", "did you mean 'redness'"),
        ("no_such_package:f", "No module named 'no_such_package'"),
        (":f", "cannot be imported"),
        ("my_measures:flat", r"gives the shape \(\)"),
    ],
)
def test_a_wrong_function_is_a_config_error(function, message):
    with pytest.raises(ConfigError, match=message):
        image_measures.load(MeasureConfig(name="m", function=function), 4)
