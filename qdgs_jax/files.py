"""Files that are whole or absent, and what stops their writing in words."""

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
def interruptions_explained(folder: Path, *, again: str) -> Iterator[None]:
    """Tells how to go on after what stops the writing in `folder`.

    Args:
        again: the remedy, in the imperative.

    Raises:
        QDGSError: a sentence with a remedy, in place of an OSError.
        KeyboardInterrupt: as it came, with `again` as its note.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(again)
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise QDGSError(
                f"No space is left for {folder} ({error.strerror}): free some, then {again}."
            ) from error
        raise QDGSError(
            f"{folder} is not writable ({error.strerror or error}): choose another folder."
        ) from error
