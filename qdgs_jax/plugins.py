"""Functions of other packages that a config names as `package.module:function`."""

import contextlib
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from qdgs_jax.errors import ConfigError, QDGSError, did_you_mean

T = TypeVar("T")


def is_function(text: str) -> bool:
    """Whether a text reads as `package.module:function`."""
    return re.fullmatch(r"[\w.-]{1,200}:\w{1,200}", text) is not None


def load(function: str, subject: str, *, allow_code: bool) -> Callable[..., Any]:
    """Imports `package.module:function`, from the working folder as well.

    Args:
        subject: what it is, for the sentence of an error, such as "The generator 'x:make'".
        allow_code: whether anything may be imported. A config is code in that case.

    Raises:
        ConfigError: it is not allowed, or does not exist.
    """
    if not allow_code:
        raise ConfigError(
            f"{subject} is code from outside of this package, which a config of somebody else's "
            "could use to do anything: read it, then pass --allow-code (allow_code=True in Python)."
        )
    module_name, _, name = function.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: it shadows nothing
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{subject} cannot be imported ({first_line(error)}): install its package or correct "
            "the name."
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise ConfigError(
            f"{subject} does not exist in the module {module_name}"
            f"{did_you_mean(name, known)}: correct the name."
        )
    return found


def make(function: str, subject: str, kind: type[T], *, allow_code: bool) -> tuple[T, Any]:
    """Calls `package.module:function`, which returns a model of this kind and its weights.

    Args:
        subject, allow_code: as in `load`.

    Raises:
        ConfigError: it is not allowed, does not exist, fails, or returns something else.
    """
    construct = load(function, subject, allow_code=allow_code)
    with failures_told(subject):
        made = construct()
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], kind)):
        found = f"a {type(made).__name__}"
        if isinstance(made, tuple):
            found = f"({', '.join(type(each).__name__ for each in made)})"
        raise ConfigError(
            f"{subject} returns {found}: let it return a qdgs_jax.{kind.__name__} and its weights, "
            f"({kind.__name__}, params)."
        )
    return made


def shape_of(
    subject: str,
    function: Callable[..., Any],
    *arguments: Any,
    wanted: Callable[[tuple[int, ...]], bool],
    remedy: str,
) -> tuple[int, ...]:
    """Shape of the real array that a function returns; only shapes are computed, by JAX.

    Args:
        subject: what the function is, for the sentence of an error.
        arguments: arrays, or their shapes (`jax.ShapeDtypeStruct`).
        wanted: whether a shape is as it must be.
        remedy: what helps if it is not.

    Raises:
        ConfigError: the function fails, or returns something else.
    """
    with failures_told(subject, "mend it, by JAX alone"):
        found = jax.eval_shape(function, *arguments)
    if not isinstance(found, jax.ShapeDtypeStruct):
        raise ConfigError(f"{subject} returns a {type(found).__name__}: {remedy}.")
    if not (jnp.issubdtype(found.dtype, jnp.floating) and wanted(found.shape)):
        raise ConfigError(f"{subject} returns {found.dtype} {found.shape}: {remedy}.")
    return found.shape


def require_gradients(subject: str, function: Callable[..., Any], *arguments: Any) -> None:
    """Checks that JAX can differentiate an array-valued function by its last argument.

    Args:
        subject, arguments: as in `shape_of`.

    Raises:
        ConfigError: it cannot.
    """

    def total(last: Any) -> Any:
        return function(*arguments[:-1], last).sum()

    remedy = "let it be differentiable by JAX, or set search.algorithm to 'cma_mae'"
    with failures_told(f"{subject} has no gradients; it", remedy):
        jax.eval_shape(jax.grad(total), arguments[-1])


@contextlib.contextmanager
def failures_told(subject: str, remedy: str = "mend it") -> Iterator[None]:
    """Replaces any exception of code from outside of this package by a ConfigError.

    Raises:
        ConfigError: the code inside raised an exception.
        QDGSError: it raised one, which already is a sentence.
    """
    try:
        yield
    except QDGSError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{subject} fails ({first_line(error)}): {remedy}.") from error


def first_line(error: BaseException) -> str:
    """What an error says, without what JAX and others append over many lines."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]
