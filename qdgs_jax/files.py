"""Files that are written whole or not at all, and their checksums."""

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import IO

from qdgs_jax.errors import CheckpointError


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[IO[bytes]]:
    """Opens a temporary file beside `path` that replaces `path` when it is complete.

    Args:
        durable: whether it is on the disk first, so that a crash of the machine, too, leaves a
            whole file or none; takes about 10 ms.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)  # never written through: it may be a link to elsewhere
    try:
        with open(partial, "xb") as file:
            yield file
            if durable:
                sync(file)
        os.replace(partial, path)
        if durable:
            sync_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write(path: Path, content: bytes | str, *, durable: bool = True) -> None:
    """Writes a whole file, text as UTF-8; see `replacing`."""
    with replacing(path, durable=durable) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def open_regular(path: str | Path, limit: int | None = None) -> BufferedReader:
    """Opens a file for reading; refuses what may block, never end or not fit in memory.

    Args:
        limit: The most bytes that it may have.

    Raises:
        OSError: It is absent, no regular file or too large; `strerror` says so.
    """

    def check(status: os.stat_result) -> None:
        if stat.S_ISDIR(status.st_mode):
            raise OSError(errno.EISDIR, "it is a folder, not a file", str(path))
        if not stat.S_ISREG(status.st_mode):
            kind = next((kind for test, kind in _SPECIAL if test(status.st_mode)), "special file")
            raise OSError(errno.EINVAL, f"it is a {kind}, not a regular file", str(path))
        if limit is not None and status.st_size > limit:
            reason = f"its {status.st_size:,} bytes are more than the {limit:,} expected of it"
            raise OSError(errno.EINVAL, reason, str(path))

    def open_at_once(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    try:
        check(os.stat(path))  # opening alone wakes what writes into a pipe
        file = open(path, "rb", opener=open_at_once)  # noqa: SIM115  # the caller closes it
    except ValueError as error:  # NUL or half a surrogate pair
        raise OSError(errno.EINVAL, "its name is no path", ascii(str(path))[:80]) from error
    try:
        check(os.fstat(file.fileno()))
    except BaseException:
        file.close()
        raise
    return file


_SPECIAL = (
    (stat.S_ISFIFO, "named pipe"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)


def is_within(folder: str | Path, name: str) -> bool:
    """Whether a name, relative to a folder, stays in it, whatever links there are."""
    base = os.path.realpath(folder)
    path = os.path.realpath(os.path.join(base, name))
    return os.path.commonpath([base, path]) == base


def sync(file: IO[bytes] | IO[str]) -> None:
    """Waits until what was written is on the disk, where the file system can say so."""
    file.flush()
    _fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Waits until a folder's names are on the disk: those of files renamed into it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        CheckpointError: The file cannot be read.
    """
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read, {error.strerror}: check the path") from error
