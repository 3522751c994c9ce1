"""How the configs of experiments are read."""

from pathlib import Path
from typing import TypeVar

from qdgs_jax.schema import read_toml, validate

PATHS = ("search", "real")
"""Keys that name a file or a folder."""

T = TypeVar("T")


def load_experiment_config(kind: type[T], path: Path) -> T:
    """Reads a TOML file; paths in it become relative to the working directory.

    Raises:
        ConfigError: as `load_config` does.
    """
    values = read_toml(path)
    for name in PATHS:
        if isinstance(values.get(name), str) and values[name]:
            values[name] = str(path.parent / Path(values[name]).expanduser())
    return validate(kind, values, source=str(path))
