"""Checked dataclasses: how configs are declared, read from TOML, and refused in one sentence."""

import dataclasses
import functools
import tomllib
from pathlib import Path
from typing import (
    Annotated,
    Any,
    TypeVar,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

import pydantic
from pydantic import ConfigDict, Field

from qdgs_jax.errors import ConfigError, did_you_mean

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def checked(cls: type[T]) -> type[T]:
    """A frozen dataclass whose values are validated; it raises only ConfigError."""
    made: Any = pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))(cls)
    construct = made.__init__

    @functools.wraps(construct)
    def checked_construct(self: Any, *args: Any, **values: Any) -> None:
        try:
            construct(self, *args, **values)
        except pydantic.ValidationError as error:
            raise ConfigError(f"{cls.__name__}: {_explain(error, cls)}.") from None

    made.__init__ = checked_construct
    return made


def read_toml(path: Path) -> dict[str, Any]:
    """The plain values of a TOML file.

    Raises:
        ConfigError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"Cannot read the config {path}: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The config {path} is not valid TOML: {error}.") from None


def validate(kind: type[T], values: dict[str, Any], *, source: str) -> T:
    """Makes a checked dataclass of plain values; an error is one sentence about the first mistake.

    Raises:
        ConfigError: unknown key, missing key or value out of range.
    """
    try:
        return pydantic.TypeAdapter(kind).validate_python(values)
    except pydantic.ValidationError as error:
        raise ConfigError(f"Config {source}: {_explain(error, kind)}.") from None


def _explain(error: pydantic.ValidationError, kind: type) -> str:
    """The first problem of a validation in words; unknown keys come before missing ones."""
    unknown = "unexpected_keyword_argument"
    problem = min(error.errors(include_url=False), key=lambda found: found["type"] != unknown)
    where = ".".join(str(part) for part in problem["loc"] if not str(part).startswith("tuple["))
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    if problem["type"] == unknown:
        known = _known_keys(kind, problem["loc"])
        return f"unknown key '{where}'{did_you_mean(where.split('.')[-1], known)}"
    if problem["type"].startswith("missing"):
        return f"the key '{where}' is missing"
    return f"'{where}' {problem['msg'][0].lower()}{problem['msg'][1:]}, got {problem['input']!r}"


def _known_keys(kind: Any, where: tuple[int | str, ...]) -> list[str]:
    """The known keys of the table that has a wrong key."""
    for part in where:
        if dataclasses.is_dataclass(kind):
            types = get_type_hints(kind)
            if part not in types:
                break
            kind = types[str(part)]
        while get_origin(kind) is tuple:
            kind = get_args(kind)[0]
    return [field.name for field in dataclasses.fields(kind)]
