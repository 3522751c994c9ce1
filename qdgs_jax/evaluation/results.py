"""Folders of results, from which an interrupted command resumes.

plan.json        what the results are of, the device and versions
results/         a file for each finished piece
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors
import safetensors.numpy

from qdgs_jax import files, provenance
from qdgs_jax.errors import QDGSError
from qdgs_jax.folders import claimed, interruptions_explained, require_same_config
from qdgs_jax.schema import read_json

AGAIN = "run the same command with --resume"
"""How to continue."""

T = TypeVar("T", bound=tuple[Any, ...])


@contextlib.contextmanager
def claimed_results(out: Path, plan: dict[str, Any], *, resume: bool) -> Iterator[None]:
    """Makes `out` the folder of this plan, or checks that it is; no other process writes in it.

    Interruptions meanwhile say how to continue.

    Raises:
        ConfigError: it holds something else, or results of another plan.
        QDGSError: its plan cannot be read, another process writes in it, or no space.
    """
    with (
        interruptions_explained(out, again=AGAIN),
        claimed(out, "plan.json", holds="results", resume=resume) as known,
    ):
        if known:
            before, now = read_json(known), json.loads(json.dumps(plan))
            if not isinstance(before, dict):
                raise QDGSError(f"{known} is damaged: choose another folder.")
            require_same_config(out, {key: before.get(key) for key in now}, now)
        else:  # the plan first: it makes the folder one of results
            text = json.dumps({**plan, **provenance.environment()}, indent=1) + "\n"
            files.write(out / "plan.json", text)
        (out / "results").mkdir(exist_ok=True)
        yield


def remembered(path: Path, kind: type[T], make: Callable[[], T]) -> T:
    """A named tuple of arrays and plain values, from its file or made now and written there.

    Raises:
        QDGSError: the file is damaged.
    """
    if not path.exists():
        values = make()._asdict()  # type: ignore[attr-defined]
        arrays = {name: each for name, each in values.items() if isinstance(each, np.ndarray)}
        others = json.dumps({name: each for name, each in values.items() if name not in arrays})
        files.write(path, safetensors.numpy.save(arrays, {"others": others}))
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            stored: dict[str, Any] = json.loads(file.metadata()["others"])
            stored |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return kind(**stored)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise QDGSError(f"{path} is damaged ({error}): remove it, then {AGAIN}.") from None


def remembered_json(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Figures from their file, or made now and written there.

    Raises:
        QDGSError: the file is damaged.
    """
    if not path.exists():
        files.write(path, json.dumps(make(), indent=1) + "\n")
    found = read_json(path)
    if not isinstance(found, dict):
        raise QDGSError(f"{path} is damaged: remove it, then {AGAIN}.")
    return found
