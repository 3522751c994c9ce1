"""Named arrays in a folder: Orbax writes them, TensorStore, which Orbax is made of, reads them.

Orbax writes into a temporary folder beside the final one, and renames it when it is complete: an
array is `NAME/` in an OCDBT database, in the format zarr 2. Orbax's reader would serve as well,
but after an error it leaves threads that print tracebacks. Both libraries are slow to import,
hence imported when needed, and here alone.
"""

import contextlib
import errno
import logging
import math
import os
import re
import stat
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from qdgs_jax.typing import Array

DAMAGE = (ValueError, LookupError, RuntimeError)
"""What `read` raises, besides OSError, where a folder does not hold what is wanted."""

_LEFTOVER = re.compile(r"[0-9]+\.orbax-checkpoint-tmp.*")
_CHUNKS = 2**16  # of one array, at most; each device writes one
_SLACK = 2**24  # bytes of all that is not an array


class Writer:
    """Writes folders one after the other, each while the caller continues."""

    def __init__(self) -> None:
        self._checkpointer: Any = None
        self._path = Path()

    def start(self, path: Path, arrays: dict[str, Array]) -> None:
        """Starts a folder, after `finish`; afterwards the arrays may be donated.

        Raises:
            OSError: it cannot be written.
        """
        ocp = _orbax()
        if not self._checkpointer:
            handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False)
            self._checkpointer = ocp.AsyncCheckpointer(handler)
        self._path = path.absolute()
        with _system_errors(self._path):
            self._checkpointer.save(self._path, args=ocp.args.PyTreeSave(arrays))

    def finish(self) -> Path | None:
        """Waits for the folder that was started last, and returns it; None if there is none.

        Raises:
            OSError: it could not be written.
        """
        if not self._checkpointer:
            return None
        try:
            with _system_errors(self._path, errno.EIO):
                self._checkpointer.wait_until_finished()
        except OSError:
            self.close()  # a new one does not raise this error again
            raise
        return self._path

    def abandon(self) -> None:
        """Leaves the folder that was started last incomplete: it may wait for a lost process."""
        self._checkpointer = None

    def close(self) -> None:
        """Ends its threads, after `finish`."""
        if self._checkpointer:
            with contextlib.suppress(Exception):  # `finish` has raised it
                self._checkpointer.close()
            self._checkpointer = None


def is_leftover(name: str) -> bool:
    """Whether this is the name of a folder that was never completed."""
    return bool(_LEFTOVER.fullmatch(name))


def read(path: Path, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, Array]:
    """Reads arrays onto the shardings of `wanted`, each process its part.

    Nothing is read through links, and no array before its shape and type are known.

    Raises:
        ValueError and others of `DAMAGE`: the folder does not hold them.
        OSError: the same, or the system refuses to read.
    """
    path = path.absolute()
    size = sum(math.prod(each.shape) * each.dtype.itemsize for each in wanted.values())
    _check_files(path, size + size // 10 + _SLACK)
    with _system_errors(path):
        opened = {name: _open(path, name, each) for name, each in wanted.items()}
        return {name: _read(opened[name], each) for name, each in wanted.items()}


def _check_files(path: Path, limit: int) -> None:
    """ValueError where a folder has links, special files, or more than `limit` bytes."""

    def refuse(error: OSError) -> None:
        raise error

    total = 0
    for at, folders, names in os.walk(path, onerror=refuse):
        for name in folders + names:
            status = os.lstat(os.path.join(at, name))
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                raise ValueError(f"'{name}' is neither a file nor a folder")
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
            if total > limit:
                raise ValueError(f"more than the {limit} bytes of such a state")


def _open(path: Path, name: str, wanted: jax.ShapeDtypeStruct) -> Any:
    """An array on disk, unread; ValueError where it is not the one that is wanted."""
    import tensorstore

    files = {"driver": "file", "path": f"{path}/"}
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "ocdbt", "base": files, "path": f"{name}/"},
        "fill_missing_data_reads": False,
    }
    array: Any = tensorstore.open(spec, open=True, read=True).result()
    shape, dtype = tuple(array.shape), array.dtype.numpy_dtype
    if shape != wanted.shape or dtype != wanted.dtype:
        raise ValueError(
            f"'{name}' is {dtype}{list(shape)}, not {wanted.dtype}{list(wanted.shape)}"
        )
    chunk = array.chunk_layout.read_chunk.shape or ()
    sizes = list(zip(shape, chunk, strict=True))
    number = math.prod(-(-size // part) for size, part in sizes)
    if number > _CHUNKS or any(part > size for size, part in sizes):
        raise ValueError(f"'{name}' is divided into chunks of {list(chunk)}")
    return array


def _read(array: Any, wanted: jax.ShapeDtypeStruct) -> Array:
    """This process's shards of an array, read at once."""
    assert wanted.sharding
    indices = wanted.sharding.addressable_devices_indices_map(wanted.shape).values()
    futures = {str(index): array[index].read() for index in indices}
    shards = {index: future.result() for index, future in futures.items()}
    return jax.make_array_from_callback(
        wanted.shape, wanted.sharding, lambda index: shards[str(index)]
    )


@contextlib.contextmanager
def _system_errors(path: Path, otherwise: int | None = None) -> Iterator[None]:
    """Raises an OSError for the system's errors, which TensorStore reports as text.

    Args:
        otherwise: `errno` of errors of another kind; None: they are raised as they are.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        found = re.search(r"(?:os_error_code='|OS error )(\d+)", str(error))
        if found:
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
        if otherwise is None:
            raise
        raise OSError(otherwise, str(error)[:300], str(path)) from error


def _orbax() -> ModuleType:
    """Orbax, without its logs and the tracebacks of its threads: what fails it also raises."""
    import orbax.checkpoint as ocp

    for name in ("absl", "asyncio"):
        logger = logging.getLogger(name)
        if _is_not_of_orbax not in logger.filters:
            logger.addFilter(_is_not_of_orbax)
    if not isinstance(sys.unraisablehook, _Hook):
        sys.unraisablehook = _Hook(sys.unraisablehook)
    return ocp


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    frames = traceback.extract_tb(error.__traceback__) if error else []
    places = [record.pathname, *(frame.filename for frame in frames)]
    within = any("orbax" in Path(place).parts for place in places)
    return not within and ".orbax-checkpoint-tmp" not in record.getMessage()


class _Hook:
    """`sys.unraisablehook` without what TensorStore's threads meet once Orbax has failed: they
    report to an event loop that Orbax has closed."""

    def __init__(self, before: Callable[[Any], Any]) -> None:
        self._before = before

    def __call__(self, unraisable: Any) -> None:
        if unraisable.object is not None or str(unraisable.exc_value) != "Event loop is closed":
            self._before(unraisable)
