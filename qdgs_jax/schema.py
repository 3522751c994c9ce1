"""Checked dataclasses: how configs are declared, read from TOML, and refused in one sentence."""

import dataclasses
import functools
import json
import re
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

from qdgs_jax import files
from qdgs_jax.errors import ConfigError, QDGSError, did_you_mean, shorten

Count = Annotated[int, Field(ge=1, le=10**9)]
Positive = Annotated[float, Field(gt=0, le=1e15, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]

MAX_BYTES = 2**18
"""Of a TOML file, or of a JSON file of a run's figures."""
MAX_TEXT = 5_000
"""Characters of a text in a config."""
MAX_DEPTH = 300
"""Parts of a TOML key: the reader takes the square of their number."""
_KEY = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+"""
_DEEP_KEY = re.compile(rf"(?<![\w-])(?:{_KEY}){{{MAX_DEPTH}}}")

_OF_A_UNION = ("tuple[", "literal[", "constrained-")
"""How pydantic begins the names of a union's members."""

T = TypeVar("T")

_STRICT = ConfigDict(extra="forbid", str_max_length=MAX_TEXT)


@dataclass_transform(frozen_default=True)
def checked(cls: type[T]) -> type[T]:
    """A frozen dataclass whose values are validated; it raises only ConfigError."""
    made: Any = pydantic.dataclasses.dataclass(frozen=True, config=_STRICT)(cls)
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
        text = _read_text(path)
        if _DEEP_KEY.search(text):
            raise ValueError(f"a key has more than {MAX_DEPTH} parts")
        values = tomllib.loads(text)
        _require_plain(values)
    except OSError as error:
        raise ConfigError(f"Cannot read the config {path}: {error.strerror}.") from None
    except RecursionError:
        raise ConfigError(f"The config {path} is not valid TOML: it is nested too deep.") from None
    except ValueError as error:
        raise ConfigError(
            f"The config {path} is not valid TOML: {shorten(error).partition('; use sys')[0]}."
        ) from None
    return values


def read_json(path: Path) -> Any:
    """The plain values of a small JSON file that this package wrote.

    Raises:
        QDGSError: it cannot be read, or holds something else.
    """
    try:
        values = json.loads(_read_text(path))
        _require_plain(values)
    except OSError as error:
        raise QDGSError(f"{path} cannot be read: {error.strerror}.") from None
    except RecursionError:
        raise QDGSError(f"{path} is damaged: it is nested too deep.") from None
    except ValueError as error:
        raise QDGSError(f"{path} is damaged: {shorten(error)}.") from None
    return values


def _read_text(path: Path) -> str:
    with files.open_regular(path, MAX_BYTES) as file:
        return file.read(MAX_BYTES).decode("utf-8-sig")


def _require_plain(values: Any) -> None:
    """ValueError if any text holds what no file name and no UTF-8 can."""
    if isinstance(values, dict):
        for key, value in values.items():
            _require_plain(key)
            _require_plain(value)
    elif isinstance(values, list):
        for value in values:
            _require_plain(value)
    elif isinstance(values, str) and re.search("[\0\ud800-\udfff]", values):
        raise ValueError(f"the text {shorten(ascii(values))} holds a character that is none")


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
    parts = (str(part) for part in problem["loc"])
    where = shorten(".".join(part for part in parts if not part.startswith(_OF_A_UNION)))
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    if problem["type"] == unknown:
        known = _known_keys(kind, problem["loc"])
        return f"unknown key '{where}'{did_you_mean(where.split('.')[-1], known)}"
    if problem["type"].startswith("missing"):
        return f"the key '{where}' is missing"
    message, given = shorten(problem["msg"]), shorten(_repr(problem["input"]))
    return f"'{where}' {message[0].lower()}{message[1:]}, got {given}"


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a number that is too large"


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
