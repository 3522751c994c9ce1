"""Checkpoints of a search or a training: folders NUMBER, which Orbax writes and reads.

A state is any pytree; one of its fields counts, such as a search's `generation`.

A checkpoint of any mesh and number of processes is restored on any other. All processes call the
functions here, with a folder that all can reach. A fingerprint of each array, saved with them,
shows any damage; the checkpoint before a damaged one then serves instead.

    with saving(folder) as save:
        ...
        save(state)  # written while the search continues
"""

import contextlib
import errno
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from qdgs_jax import files, processes
from qdgs_jax.errors import CheckpointError
from qdgs_jax.runs import orbax_files
from qdgs_jax.runs.fingerprints import common_sharding, fingerprints
from qdgs_jax.runs.orbax_files import Writer
from qdgs_jax.typing import Array

State = TypeVar("State")

KEPT = 2
_FINGERPRINTS = "fingerprints"
_MOST = 100  # checkpoints that are considered
_DAMAGE = {errno.EINVAL, errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP}
"""Errors of the system that files cause which are missing or something else."""


@contextlib.contextmanager
def saving(folder: Path, *, counter: str = "generation") -> Iterator[Callable[[Any], None]]:
    """Yields `save(state)`, which returns as soon as the state may be donated.

    The files are written meanwhile; the next call and the end of the context wait for them, unless
    another process is lost. Once a checkpoint is complete, all but the `KEPT` newest are removed.

    Args:
        counter: name of the field that numbers a state.

    Raises:
        OSError: a checkpoint could not be written; those before it are still there. From the call
            itself, the next one, or the end; an exception within the context comes first.
    """
    writer = Writer()

    def finish() -> None:
        try:
            path = writer.finish()
        except OSError:
            _remove_leftovers(folder)
            raise
        if path and processes.is_first():
            for at, _, _ in os.walk(path):
                files.sync_folder(Path(at))
            files.sync_folder(folder)
            for number in numbers(folder)[:-KEPT]:
                shutil.rmtree(folder / str(number))

    def save(state: Any) -> None:
        finish()
        folder.mkdir(exist_ok=True)
        path = folder / str(int(getattr(state, counter)))
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        arrays = _arrays(state)
        arrays[_FINGERPRINTS] = fingerprints(arrays)
        _remove_leftovers(folder)
        writer.start(path, arrays)

    try:
        yield save
    except BaseException as error:
        if processes.is_loss(error):
            writer.abandon()
        else:
            with contextlib.suppress(OSError):
                finish()
        raise
    else:
        finish()
    finally:
        writer.close()


def save(folder: Path, state: Any) -> None:
    """Writes a search's state, and removes all but the `KEPT` newest.

    Raises:
        OSError: it cannot be written; those before it are still there.
    """
    with saving(folder) as save_async:
        save_async(state)


def numbers(folder: Path) -> list[int]:
    """Numbers of the states that are saved, ascending; whatever else is there does not count."""
    if not folder.is_dir():
        return []
    return sorted(
        int(path.name)
        for path in folder.iterdir()
        if re.fullmatch(r"0|[1-9][0-9]{0,9}", path.name) and path.is_dir() and not path.is_symlink()
    )


def restore(folder: Path, like: State, *, counter: str = "generation") -> State | None:
    """The newest state that can be read; None where there are no checkpoints.

    Damaged ones are set aside as NUMBER.damaged, with a warning.

    Args:
        like: a state of the same shapes and types, whose shardings the restored one gets; its
            leaves may be `jax.ShapeDtypeStruct`.
        counter: name of the field that numbers a state.

    Raises:
        CheckpointError: there are checkpoints, but none can be read.
        OSError: the system refuses to read.
    """
    reasons: dict[Path, str] = {}
    for number in processes.first(lambda: numbers(folder)[::-1][:_MOST]):
        path = folder / str(number)
        state, reason = _read(path, like, counter, number)
        if state is None:
            reasons[path] = reason
            continue
        if processes.is_first():
            for damaged, reason in reasons.items():
                _set_aside(damaged)
                warnings.warn(
                    f"The checkpoint {damaged} is damaged ({reason}): the "
                    f"computation continues from {counter} {number}.",
                    stacklevel=2,
                )
        return state
    if not reasons:
        return None
    raise CheckpointError(
        f"No checkpoint in {folder} can be read ({next(iter(reasons.values()))}): remove that "
        "folder, and the same command starts again."
    )


def _set_aside(path: Path) -> None:
    aside = path.with_name(f"{path.name}.damaged")
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside)
    else:
        aside.unlink(missing_ok=True)
    path.rename(aside)


def _remove_leftovers(folder: Path) -> None:
    """Removes what writers left that failed or were killed."""
    if processes.is_first():
        for name in os.listdir(folder) if folder.is_dir() else ():
            if orbax_files.is_leftover(name) and not (folder / name).is_symlink():
                shutil.rmtree(folder / name, ignore_errors=True)


def _read(path: Path, like: State, counter: str, number: int) -> tuple[State | None, str]:
    """A state as `like`, or None and the reason; the same on all processes.

    Raises:
        OSError: the system refuses to read.
    """
    wanted = {name: _described(leaf) for name, leaf in _arrays(like).items()}
    everywhere = common_sharding(wanted)
    wanted[_FINGERPRINTS] = jax.ShapeDtypeStruct((len(wanted),), np.uint32, sharding=everywhere)
    arrays, reason, refused = {}, "", None
    try:
        arrays = orbax_files.read(path, wanted)
    except jax.errors.JaxRuntimeError:
        raise  # out of memory
    except orbax_files.DAMAGE as error:
        reason = str(error).partition(" [tensorstore_spec")[0][:300] or type(error).__name__
    except OSError as error:
        reason = error.strerror or str(error)
        refused = None if error.errno in _DAMAGE else error
    damaged, unreadable = zip(*processes.gather((bool(reason), refused is not None)), strict=True)
    if any(unreadable):
        raise refused or OSError(errno.EIO, "another process cannot read it", str(path))
    if any(damaged):
        return None, reason or "another process cannot read its part"
    saved = np.asarray(arrays.pop(_FINGERPRINTS))
    for name, was, now in zip(sorted(arrays), saved, np.asarray(fingerprints(arrays)), strict=True):
        if was != now:
            return None, f"'{name}' has changed since it was saved"
    state = _state(arrays, like)
    if (found := int(getattr(state, counter))) != number:
        return None, f"it is of {counter} {found}"
    return state, ""


def _arrays(state: Any) -> dict[str, Array]:
    """All arrays by name, keys as numbers; without empty ones, which Orbax does not write."""
    return {name: _plain(leaf) for name, leaf in _named_leaves(state) if leaf.size}


def _state(arrays: dict[str, Array], like: State) -> State:
    """The state whose arrays these are."""

    def leaf_of(name: str, leaf: Array) -> Array:
        if not leaf.size:
            return jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
        if not _is_key(leaf):
            return arrays[name]
        return jax.device_put(
            jax.random.wrap_key_data(arrays[name], impl=_key_impl(leaf)), leaf.sharding
        )

    leaves = [leaf_of(name, leaf) for name, leaf in _named_leaves(like)]
    restored: State = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return restored


def _named_leaves(state: Any) -> list[tuple[str, Array]]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in leaves]


def _plain(leaf: Array) -> Array:
    """Numbers instead of a typed key; of a description, the numbers' description."""
    if not _is_key(leaf):
        return leaf
    if isinstance(leaf, jax.Array):
        return jax.random.key_data(leaf)
    numbers = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(numbers.shape, numbers.dtype, sharding=leaf.sharding)


def _described(leaf: Array) -> jax.ShapeDtypeStruct:
    """Shape, type and sharding; without one, that of the first device."""
    sharding = leaf.sharding or SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _is_key(leaf: Array) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_impl(leaf: Array) -> Any:
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), leaf)
    return found[0]
