"""Files that are written whole or not at all, and their checksums."""

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
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


@contextlib.contextmanager
def reading(path: Path, *, limit: int) -> Iterator[IO[bytes]]:
    """Opens a regular file of at most `limit` bytes.

    Raises:
        OSError: there is none, it cannot be read, or it is a pipe, a device or larger.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe would block
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        if found.st_size > limit:
            raise OSError(errno.EINVAL, f"it has more than {limit} bytes", str(path))
        yield file


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
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read, {error.strerror}: check the path") from error
