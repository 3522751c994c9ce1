"""Files that are whole or absent, and the file system's refusals in words."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from qdgs_jax.errors import QDGSError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file beside `path` that takes its place once all is written, and not before."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write(path: Path, content: bytes | str) -> None:
    """Writes a whole file, text as UTF-8."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def refusals_explained(folder: Path, *, again: str) -> Iterator[None]:
    """Turns what the system refuses to write in `folder` into a sentence with a remedy.

    Args:
        again: how to go on once there is space.

    Raises:
        QDGSError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise QDGSError(
                f"No space is left for {folder} ({error.strerror}): free some, then {again}."
            ) from error
        raise QDGSError(
            f"{folder} is not writable ({error.strerror or error}): choose another folder."
        ) from error
