"""The config file among the arguments of a command: its values are the options' defaults."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qdgs_jax.config import Config, load_config
from qdgs_jax.errors import ConfigError
from qdgs_jax.experiments.repair.config import RepairConfig, load_repair_config
from qdgs_jax.schema import read_toml
from qdgs_jax.training.config import TrainConfig, load_train_config


def named_config(arguments: list[str], *commands: tuple[str, ...]) -> Any:
    """Reads the config file behind one of `commands`; None without a file or with another command.

    Raises:
        ConfigError: it cannot be read, or is of another command.
    """
    for command in commands:
        if tuple(arguments[: len(command)]) == command:
            path = _config_path(arguments[len(command) :])
            return path and _load(path, command)
    return None


# Kinds of configs: the commands that take them, and how they are read.
_KINDS: dict[Any, tuple[str, Callable[[Path], Any]]] = {
    Config: ("sample", load_config),
    RepairConfig: ("experiment repair", load_repair_config),
    TrainConfig: ("train", load_train_config),
}


def _load(path: Path, command: tuple[str, ...]) -> Any:
    """Reads the config of a command; of another command's, told by its tables, names that.

    Raises:
        ConfigError: it cannot be read, or is of another command.
    """
    keys = read_toml(path).keys()
    known = {kind: len(keys & {f.name for f in dataclasses.fields(kind)}) for kind in _KINDS}
    wanted = {"experiment": RepairConfig, "train": TrainConfig}.get(command[0], Config)
    best = max(known, key=lambda kind: known[kind])
    if known[best] > known[wanted]:
        raise ConfigError(
            f"{path} is no config of `qdgs {' '.join(command)}`: "
            f"run `qdgs {_KINDS[best][0]} {path}`."
        )
    return _KINDS[wanted][1](path)


# Options that take no value; every other takes the arguments behind it.
_FLAGS = {
    "resume", "acknowledge-notice", "nearest-bin", "h", "help", "random-crops", "rematerialise",
}  # fmt: skip


def _config_path(arguments: list[str]) -> Path | None:
    """The first argument that is neither an option nor an option's value: the config file."""
    expected, more = False, False  # whether the option before needs a value, may take further ones
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
