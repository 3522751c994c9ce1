"""Checkpoints of a search: checkpoints/GENERATION.npz, where each array has a checksum (CRC-32).

A damaged one is noticed, whatever is wrong with it, and the one before it serves instead.
"""

import errno
import math
import re
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdgs_jax import files
from qdgs_jax.errors import CheckpointError
from qdgs_jax.search import SearchState
from qdgs_jax.typing import Array

KEPT = 2
_DAMAGE = (
    ValueError, KeyError, EOFError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip


def save(folder: Path, state: SearchState) -> None:
    """Writes a state, and removes all but the `KEPT` newest.

    Raises:
        OSError: it cannot be written; those before it are still there.
    """
    folder.mkdir(exist_ok=True)
    with files.replacing(folder / f"{int(state.generation)}.npz") as file:
        arrays: dict[str, Any] = {name: _plain(leaf) for name, leaf in _named_leaves(state)}
        np.savez(file, **arrays)
    for generation in generations(folder)[:-KEPT]:
        (folder / f"{generation}.npz").unlink()


def generations(folder: Path) -> list[int]:
    """Generations that have a checkpoint, ascending; whatever else is there does not count."""
    if not folder.is_dir():
        return []
    return sorted(
        int(path.stem)
        for path in folder.iterdir()
        if re.fullmatch(r"(0|[1-9][0-9]{0,9})\.npz", path.name)
        and path.is_file()
        and not path.is_symlink()
    )


def restore(folder: Path, like: SearchState) -> SearchState | None:
    """The newest state that can be read; None where there are no checkpoints.

    Damaged ones are set aside as GENERATION.npz.damaged, with a warning.

    Args:
        like: a state of the same shapes and types, on the devices to use.

    Raises:
        CheckpointError: there are checkpoints, but none can be read.
        OSError: the system refuses to read.
    """
    found = generations(folder)
    reasons: dict[Path, str] = {}
    for generation in reversed(found):
        path = folder / f"{generation}.npz"
        try:
            state = _read(path, like, generation)
        except _DAMAGE as error:
            reasons[path] = str(error)
        except OSError as error:  # from a position in the file that is none
            if error.errno != errno.EINVAL:
                raise
            reasons[path] = str(error)
        else:
            for damaged, reason in reasons.items():
                damaged.rename(damaged.with_name(f"{damaged.name}.damaged"))
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
    """A state of the shapes and types of `like`; ValueError and others of _DAMAGE if it is none."""
    leaves = dict(_named_leaves(like))
    arrays = {name: _plain(leaf) for name, leaf in leaves.items()}
    size = sum(array.nbytes + 1000 for array in arrays.values())
    if path.stat().st_size > size + 1000:
        raise ValueError(f"more than the {size} bytes of such a search")
    with zipfile.ZipFile(path) as archive:
        read = {name: _read_array(archive, name, array) for name, array in arrays.items()}
    restored = [
        jax.device_put(
            jax.random.wrap_key_data(jnp.asarray(read[name]), impl=jax.random.key_impl(leaf))
            if _is_key(leaf)
            else read[name],
            leaf.sharding,
        )
        for name, leaf in leaves.items()
    ]
    state = jax.tree.unflatten(jax.tree.structure(like), restored)
    if int(state.generation) != generation:
        raise ValueError(f"it is of generation {int(state.generation)}")
    return state


def _read_array(archive: zipfile.ZipFile, name: str, like: Array) -> np.ndarray:
    """One array; nothing is allocated before its header is known to be that of `like`."""
    with archive.open(f"{name}.npy") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"'{name}' has another format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if shape != like.shape or dtype != like.dtype:
            raise ValueError(
                f"'{name}' is {dtype}{list(shape)}, not {like.dtype}{list(like.shape)}"
            )
        content = file.read(like.nbytes) + file.read(1)  # the end is where the checksum is compared
    return np.frombuffer(content, dtype, math.prod(shape)).reshape(shape)


def _named_leaves(state: SearchState) -> list[tuple[str, Array]]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in leaves]


def _plain(leaf: Array) -> Array:
    """Numbers instead of a typed key."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _is_key(leaf: Array) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
