"""Folders of results: which may be written, which can be resumed, and errors of writing."""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qdgs_jax.errors import ConfigError, QDGSError


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
        do not count.

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
    if any(not item.name.startswith(".") for item in folder.iterdir()):
        raise ConfigError(f"{folder} holds {others}: choose another folder.")
    return None


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
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise QDGSError(
                f"No space is left for {folder} ({error.strerror}): free some, then {again}."
            ) from error
        raise QDGSError(
            f"{folder} is not writable ({error.strerror or error}): choose another folder."
        ) from error
