"""Functions that a config names; that they are not imported without leave, see image measures."""

import sys
import types
from typing import Any

import jax.numpy as jnp
import pytest

from qdgs_jax import plugins
from qdgs_jax.errors import CheckpointError, ConfigError


@pytest.fixture(autouse=True)
def module(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("mine")
    module.pair = lambda: ("a model", 3)
    module.alone = lambda: "a model"
    module.other = lambda: (1, "a model")
    module.crash = lambda: {}["x"]
    module.leave = sys.exit

    def lacking() -> None:
        raise CheckpointError("x.pt cannot be read: fetch it.")

    module.lacking = lacking
    monkeypatch.setitem(sys.modules, "mine", module)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("my_package.models:make", True),
        ("make", False),
        ("a/b:make", False),
        ("https://x.org/y.pt", False),
        (":make", False),
        ("C:", False),
    ],
)
def test_what_reads_as_a_function(text: str, expected: bool) -> None:
    assert plugins.is_function(text) == expected


def test_a_pair_is_returned_as_it_is() -> None:
    assert plugins.make("mine:pair", "It", str, allow_code=True) == ("a model", 3)


@pytest.mark.parametrize(
    ("name", "error", "sentence"),
    [
        ("alone", ConfigError, r"It returns a str: let it return a qdgs_jax\.str and its weights"),
        ("other", ConfigError, r"It returns \(int, str\): let"),
        ("crash", ConfigError, r"It fails \(KeyError: 'x'\): mend it\.$"),
        ("leave", ConfigError, r"It fails \(SystemExit: \): mend it\.$"),
        ("lacking", CheckpointError, r"^x\.pt cannot be read: fetch it\.$"),
        ("cras", ConfigError, r"It does not exist in the module mine \(did you mean 'crash'\?\)"),
    ],
)
def test_a_failure_is_a_sentence(name: str, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        plugins.make(f"mine:{name}", "It", str, allow_code=True)


def test_shapes_are_computed_alone() -> None:
    def of(function: Any, *wanted: int) -> tuple[int, ...]:
        return plugins.shape_of(
            "It", function, jnp.zeros((2, 3)), wanted=lambda shape: shape == wanted, remedy="so"
        )

    assert of(lambda x: x[:, None], 2, 1, 3) == (2, 1, 3)
    with pytest.raises(ConfigError, match=r"^It returns float32 \(2, 3\): so\.$"):
        of(lambda x: x, 3, 2)
    with pytest.raises(ConfigError, match=r"It returns int32 \(2, 3\)"):
        of(lambda x: x.astype(jnp.int32), 2, 3)
    with pytest.raises(ConfigError, match="It returns a list"):
        of(lambda x: [x], 2, 3)
    with pytest.raises(ConfigError, match=r"It fails \(ConcretizationTypeError: .*JAX alone\.$"):
        of(lambda x: int(x.sum()), 2, 3)
