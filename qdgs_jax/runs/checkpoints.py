"""Checkpoints of a search: checkpoints/GENERATION, written by Orbax, each with a digest.

A damaged one is noticed, and the one before it is used instead.
"""

import errno
import hashlib
import re
import shutil
import warnings
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from qdgs_jax import files
from qdgs_jax.errors import CheckpointError
from qdgs_jax.search import SearchState

KEPT = 2
DIGEST = "sha256"
"""File with the digest, written last: a checkpoint without it is not complete."""


def save(folder: Path, state: SearchState) -> None:
    """Writes a state, and removes all but the `KEPT` newest.

    Raises:
        OSError: it cannot be written; the earlier ones are still there.
    """
    folder.mkdir(exist_ok=True)
    for partial in folder.glob("*.orbax-checkpoint-tmp*"):  # of a process that was killed
        shutil.rmtree(partial, ignore_errors=True)
    path = folder / str(int(state.generation))
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path.absolute(), state, force=True)
    except ValueError as error:  # how tensorstore reports what the system refuses
        full = "No space left" in str(error) or "ENOSPC" in str(error)
        number = errno.ENOSPC if full else errno.EIO
        raise OSError(number, str(error).partition("\n")[0], str(path)) from error
    files.write(path / DIGEST, _digest(path, state))
    for generation in generations(folder)[:-KEPT]:
        shutil.rmtree(folder / str(generation))


def generations(folder: Path) -> list[int]:
    """Generations that have a complete checkpoint, ascending; other files do not count."""
    if not folder.is_dir():
        return []
    return sorted(
        int(path.name)
        for path in folder.iterdir()
        if re.fullmatch(r"0|[1-9][0-9]{0,9}", path.name)
        and not path.is_symlink()
        and (path / DIGEST).is_file()
    )


def restore(folder: Path, like: SearchState) -> SearchState | None:
    """The newest state that can be read; None if there are no checkpoints.

    Damaged ones are renamed to GENERATION.damaged, with a warning.

    Args:
        like: a state of the same shapes and types, on the devices to use.

    Raises:
        CheckpointError: there are checkpoints, but none can be read.
        OSError: the system refuses to read.
    """
    reasons: dict[Path, str] = {}
    for generation in reversed(generations(folder)):
        path = folder / str(generation)
        try:
            state = _read(path, like, generation)
        except ValueError as error:
            reasons[path] = str(error).partition("\n")[0]
            continue
        for damaged, reason in reasons.items():
            shutil.rmtree(f"{damaged}.damaged", ignore_errors=True)
            damaged.rename(f"{damaged}.damaged")
            warnings.warn(
                f"The checkpoint {damaged} is damaged ({reason}): the search continues from "
                f"generation {generation}.",
                stacklevel=2,
            )
        return state
    if not reasons:
        return None
    raise CheckpointError(
        f"No checkpoint in {folder} can be read ({next(iter(reasons.values()))}): remove that "
        "folder, and the same command starts the search again."
    )


def _read(path: Path, like: SearchState, generation: int) -> SearchState:
    """A state of the shapes and types of `like`.

    Raises:
        ValueError: the checkpoint is damaged, or one of another search.
    """
    with files.open_regular(path / DIGEST, 1024) as file:
        if file.read().decode("ascii", "replace") != _digest(path, like):
            raise ValueError("its files or their shapes are not those that were written")
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like
    )
    with ocp.StandardCheckpointer() as checkpointer:
        state: SearchState = checkpointer.restore(path.absolute(), abstract)
    if int(state.generation) != generation:
        raise ValueError(f"it is of generation {int(state.generation)}")
    return state


def _digest(path: Path, state: SearchState) -> str:
    """SHA-256 of a checkpoint's files and of the names, shapes and types in its state."""
    digest = hashlib.sha256()
    for name, leaf in jax.tree_util.tree_leaves_with_path(state):
        digest.update(f"{jax.tree_util.keystr(name)} {leaf.shape} {leaf.dtype}\n".encode())
    for file in sorted(path.rglob("*")):
        if file.is_file() and file != path / DIGEST:
            digest.update(f"{file.relative_to(path).as_posix()} {files.sha256(file)}\n".encode())
    return digest.hexdigest()
