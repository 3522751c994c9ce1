"""The config file among the arguments of a command: its values are the options' defaults."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from qdgs_jax.config import Config, load_config
from qdgs_jax.errors import ConfigError
from qdgs_jax.experiments.annotated_faces.config import AnnotatedFacesConfig
from qdgs_jax.experiments.config import load_experiment_config
from qdgs_jax.experiments.face_recognition.config import FacePretrainingConfig
from qdgs_jax.experiments.repair.config import RepairConfig
from qdgs_jax.schema import read_toml
from qdgs_jax.training.config import TrainConfig, load_train_config

T = TypeVar("T")


def named_config(arguments: list[str], kind: type[T], *commands: str) -> T | None:
    """Reads the config file of `kind` that is named after one of `commands`.

    Returns:
        None if no file is named, or the command is another.

    Raises:
        ConfigError: the file cannot be read, or most of its tables are those of another kind.
    """
    if not arguments or arguments[0] not in commands:
        return None
    path = _config_path(arguments[1:])
    if path is None:
        return None
    keys = read_toml(path).keys()
    known = {each: len(keys & {f.name for f in dataclasses.fields(each)}) for each in _KINDS}
    best = max(known, key=lambda each: known[each])
    if known[best] > known[kind]:
        raise ConfigError(
            f"{path} is no config of `qdgs {arguments[0]}`: run `qdgs {_KINDS[best][0]} {path}`."
        )
    return _KINDS[kind][1](path)


EXPERIMENTS: dict[str, Any] = {
    "repair": RepairConfig,
    "annotated_faces": AnnotatedFacesConfig,
    "face_recognition": FacePretrainingConfig,
}
"""Name of an experiment -> kind of its config."""

# Kinds of configs: the commands that take them, and how they are read.
_KINDS: dict[Any, tuple[str, Callable[[Path], Any]]] = {
    Config: ("sample", load_config),
    **{
        kind: (f"experiment {name}", functools.partial(load_experiment_config, kind))
        for name, kind in EXPERIMENTS.items()
    },
    TrainConfig: ("train", load_train_config),
}


# Options that take no value; every other option takes the arguments after it.
_FLAGS = {
    "resume", "dry-run", "acknowledge-notice", "allow-code", "nearest-bin", "h", "help",
    "random-crops", "rematerialise", "seek-rare", "distributed",
}  # fmt: skip


def _config_path(arguments: list[str]) -> Path | None:
    """The first argument that is neither an option nor an option's value: the config file."""
    expected, more = False, False  # whether the last option needs a value, may take more
    for argument in arguments:
        number = _is_number(argument)
        if argument.startswith("-") and not number:
            name = argument.lstrip("-").split(".")[-1].replace("_", "-").removeprefix("no-")
            expected, more = "=" not in argument and name not in _FLAGS, False
        elif expected or (more and number):
            expected, more = False, number
        else:
            return Path(argument)
    return None


def _is_number(argument: str) -> bool:
    try:
        float(argument)
    except ValueError:
        return False
    return True
