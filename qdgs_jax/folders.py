"""Folders of results: which may be written, which can be resumed, and errors of writing."""

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qdgs_jax import files
from qdgs_jax.errors import ConfigError, QDGSError

LOCK = ".lock"
"""A hidden file in each folder that a process writes in."""


def claim(
    folder: Path,
    *markers: str,
    holds: str,
    others: str = "other files",
    resume: bool = True,
) -> Path | None:
    """Checks that `folder` may be written, before anything slow happens.

    Args:
        markers: names of files; every folder of this kind has one of them, finished or not.
        holds: what such a folder holds, with its article.
        others: what any other folder holds.
        resume: whether a folder with a marker may be continued.

    Returns:
        Path of the first marker in the folder; None if the folder is absent or empty. Hidden files
        do not count, nor do empty folders in it, which a process leaves that is stopped early.

    Raises:
        ConfigError: `folder` is a file, holds no marker but other files, or holds a marker and
            `resume` is false.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder: choose another folder.")
    for name in markers:
        if (folder / name).is_file():
            if not resume:
                raise ConfigError(
                    f"{folder} already holds {holds}: pass --resume to continue, or choose "
                    "another folder."
                )
            return folder / name
    if not all(item.name.startswith(".") or _is_empty_tree(item) for item in folder.iterdir()):
        raise ConfigError(f"{folder} holds {others}: choose another folder.")
    return None


@contextlib.contextmanager
def claimed(folder: Path, *markers: str, **options: Any) -> Iterator[Path | None]:
    """Claims a folder as `claim` does, keeps it `locked` meanwhile, and yields what it found.

    A folder that is refused is not touched.
    """
    claim(folder, *markers, **options)
    with locked(folder):
        yield claim(folder, *markers, **options)


def _is_empty_tree(path: Path) -> bool:
    """Whether a path is a folder that holds folders alone; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return False
    return not any(
        found or any((Path(at) / name).is_symlink() for name in names)
        for at, names, found in os.walk(path)
    )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes `folder` if need be, and keeps other processes from writing in it meanwhile.

    The lock is the kernel's: it ends with the process, however that ends. On file systems without
    locks there is none.

    Raises:
        QDGSError: another process writes in it.
        OSError: it cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield
        return
    import fcntl

    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise QDGSError(
                f"Another process is writing in {folder}: wait for it, or choose another folder."
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                os.close(descriptor)
                raise
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            break
        os.close(descriptor)  # of a process that has just ended, and removed it
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def require_same_config(folder: Path, before: Any, now: Any) -> None:
    """Compares the config of `folder` with the config to resume it with (dicts and lists).

    Raises:
        ConfigError: they differ; the message names the first difference.
    """
    if difference := _first_difference(before, now):
        raise ConfigError(
            f"{folder} belongs to another config ({difference}): resume with the config that it "
            "was started with, or choose another folder."
        )


def _first_difference(old: Any, new: Any, where: str = "") -> str:
    """The first value in which two nested configs differ, in words; empty if none.

    Plain values come before tables: a changed seed is the cause of changed ranges.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        items = [(f"{where}.{key}".lstrip("."), old.get(key), new.get(key)) for key in old | new]
        items.sort(key=lambda item: isinstance(item[1], dict | list | tuple))
    elif isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        items = [(f"{where}.{i}", *pair) for i, pair in enumerate(zip(old, new, strict=True))]
    else:
        return "" if old == new else f"{where} was {old!r}, now {new!r}"
    return next(filter(None, (_first_difference(a, b, at) for at, a, b in items)), "")


@contextlib.contextmanager
def creating(folder: Path, *, again: str) -> Iterator[Path]:
    """Yields a temporary folder, which is renamed to `folder` when it is complete.

    Args:
        again: as in `interruptions_explained`.

    Raises:
        ConfigError: `folder` is there already.
        QDGSError: it cannot be written.
    """
    if folder.exists():
        raise ConfigError(f"{folder} is there already: choose another folder, or remove it.")
    partial = folder.with_name(f".{folder.name}.partial")
    with interruptions_explained(folder, again=again):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            partial.rename(folder)
            files.sync_folder(folder.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def interruptions_explained(folder: Path, *, again: str) -> Iterator[None]:
    """Adds to an error or a Ctrl-C, while `folder` is written, how to continue.

    Args:
        again: the remedy, in the imperative.

    Raises:
        QDGSError: a sentence with a remedy, in place of an OSError.
        KeyboardInterrupt: the same, with `again` as its note.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(again)
        raise
    except OSError as error:
        raise QDGSError(_explain(error, folder, again)) from error


def _explain(error: OSError, folder: Path, again: str) -> str:
    """What the system refused during the writing in `folder`, in a sentence."""
    reason = error.strerror or str(error)
    path = Path(error.filename) if isinstance(error.filename, str) else folder
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"No space is left for {folder} ({reason}): free some, then {again}."
    if error.errno in (errno.ENOENT, errno.ESTALE) and not folder.exists():
        return f"{folder} was removed while it was written: {again}."
    within = folder in (path, *path.parents) or path in folder.parents
    read = path.is_file() and not os.access(path, os.R_OK)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and within and not read:
        return f"{folder} is not writable ({reason}): choose another folder."
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"{path} is in the way ({reason}): choose another folder."
    return f"{path} cannot be read or written ({reason}): mend that, then {again}."
