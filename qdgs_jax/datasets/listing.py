"""The images of any folder, from its metadata.jsonl or by their names.

Nothing is opened here but metadata.jsonl, and no path leads out of the folder.
"""

import codecs
import dataclasses
import functools
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydantic_core

from qdgs_jax import files
from qdgs_jax.datasets.image_files import SUFFIXES
from qdgs_jax.errors import ConfigError, QDGSError, did_you_mean, shorten

METADATA = "metadata.jsonl"
JUNK = frozenset({"__macosx", "@eadir", "$recycle.bin", "thumbs.db", "desktop.ini"})
"""What systems leave in folders, in lower case; what begins with a dot is ignored too."""
MAX_IMAGES = 2**21
MAX_LINE = 2**20  # bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """An image that a folder lists."""

    path: str
    """Relative to the folder, with "/"."""
    group: str = ""
    """Empty where none is named."""
    in_no_bin: bool = False
    """Whether the column `bin` of a dataset of `qdgs` is null."""


def find_images(folder: Path, group: str | None) -> list[Entry]:
    """The images of a folder without metadata.jsonl, sorted by path.

    Raises:
        ConfigError: `group` is asked for; the folder is absent, divided into folders with a
            metadata.jsonl each, or has a link or a class without a readable image.
        QDGSError: it cannot be read.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} holds no labelled images: name another folder.")
    images, others, links = _walk(folder)
    others = [path for path in others if "/" in path]
    classes = {top(path) for path in images if path.count("/") == 1}
    parts = {top(path) for path in others if path == f"{top(path)}/{METADATA}"} - classes
    if parts:
        raise ConfigError(
            f"{folder} is divided, each part with a {METADATA}: name one, such as "
            f"{folder / max(parts)}."
        )
    if group:
        table = folder / "metadata.csv"
        unread = f"write {table}, which is not read, as lines of JSON"
        raise ConfigError(
            f"{folder / METADATA} is missing, whose column '{group}' names the groups: "
            f"{unread if table.exists() else 'add it'}."
        )
    if links:
        raise ConfigError(f"{folder / links[0]} is a link to a folder: put a copy there.")
    known = ", ".join(sorted(SUFFIXES))
    if lost := sorted({top(path) for path in others} - {top(path) for path in images}):
        raise ConfigError(
            f"No file of the class {folder / lost[0]} is named like an image ({known}): convert "
            "its images, or remove it."
        )
    if others:
        warnings.warn(
            f"{len(others)} files of {folder} are not named like images and are left out, such as "
            f"{others[0]}; images end in {known}.",
            stacklevel=3,
        )
    require_inside = _guard(folder)
    for path in images:
        require_inside(path)
    return [Entry(path) for path in images]


def read_metadata(folder: Path, group: str | None) -> list[Entry]:
    """The images that metadata.jsonl lists, in its order; a warning counts those it does not.

    Args:
        group: column of the groups.

    Raises:
        ConfigError: a line is not JSON with a `file_name`, a name leads out of the folder, or a
            record has no column `group`.
        QDGSError: metadata.jsonl cannot be read.
    """
    metadata = folder / METADATA
    require_inside = _guard(folder)
    require_inside(METADATA)
    if not metadata.is_file():
        raise ConfigError(f"{metadata} is not a regular file: replace it.")
    entries = []
    try:
        with open(metadata, "rb") as file:
            for number, record in records(metadata, file):
                if group and group not in record:
                    raise ConfigError(
                        f"{metadata} has no column '{group}'{did_you_mean(group, record)} in line "
                        f"{number}: name the column of the groups."
                    )
                entries.append(_entry(folder, record, group, number))
                require_inside(entries[-1].path)
                _require_few(folder, len(entries))
    except OSError as error:
        raise QDGSError(f"{metadata} cannot be read ({error.strerror}): check it.") from None
    listed = {entry.path for entry in entries}
    if missed := [path for path in _walk(folder)[0] if path not in listed]:
        warnings.warn(
            f"{metadata} lists {len(listed)} images; {len(missed)} others in the folder are left "
            f"out, such as {missed[0]}.",
            stacklevel=3,
        )
    return entries


def top(path: str) -> str:
    """The first folder of a path, which is the class; the file itself where it is in none."""
    return path.partition("/")[0]


def records(metadata: Path, file: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and records of an open metadata.jsonl.

    Lines end in \\n alone: U+2028 and others may stand in a text.

    Raises:
        ConfigError: a line is not JSON with a `file_name`.
    """
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        line = line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"")
        if not line.strip():
            continue
        try:
            if len(line) > MAX_LINE:
                raise ValueError(f"it has more than {MAX_LINE:,} bytes")
            record = pydantic_core.from_json(line)
            if not isinstance(record, dict) or not isinstance(record.get("file_name"), str):
                raise ValueError("`file_name` is missing or no text")
        except ValueError as error:
            raise ConfigError(
                f"{metadata} is not a line of JSON with a `file_name` for each image (line "
                f"{number}: {error}): correct it."
            ) from None
        yield number, record


def _entry(folder: Path, record: dict[str, Any], group: str | None, number: int) -> Entry:
    name = record["file_name"].replace("\\", "/")  # as written on Windows
    base = os.path.abspath(folder)
    path = os.path.normpath(os.path.join(base, name))
    if not path.startswith(base + os.sep) or "\0" in name or re.match("[A-Za-z]:", name):
        raise ConfigError(
            f"Line {number} of {folder / METADATA} names {shorten(ascii(name))}, which is not in "
            "the folder: use names relative to it."
        )
    value = record.get(group) if group else None
    if isinstance(value, dict | list):
        raise ConfigError(
            f"`{group}` in line {number} of {folder / METADATA} is neither a text nor a number: "
            "name another column."
        )
    empty = value is None or (isinstance(value, float) and math.isnan(value))
    return Entry(
        path[len(base) + 1 :].replace(os.sep, "/"),
        group="" if empty else str(value).strip(),
        in_no_bin="bin" in record and record["bin"] is None,
    )


def _walk(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Sorted paths of images, other files, and links to folders; relative, without hidden ones."""
    images: list[str] = []
    others: list[str] = []
    links: list[str] = []
    folders = [""]
    try:
        while folders:
            here = folders.pop()
            with os.scandir(folder / here) as items:
                for item in items:
                    path = here + item.name
                    if item.name.startswith(".") or item.name.lower() in JUNK:
                        continue
                    if item.is_dir():
                        links.append(path) if item.is_symlink() else folders.append(path + "/")
                    elif os.path.splitext(item.name)[1].lower() in SUFFIXES:
                        images.append(path)
                    else:
                        others.append(path)
                    _require_few(folder, len(images) + len(others) + len(folders))
    except OSError as error:
        raise QDGSError(f"{folder} cannot be read ({error.strerror}): check it.") from None
    for paths in (images, others, links):
        paths.sort(key=lambda path: path.split("/"))
    return images, others, links


def _require_few(folder: Path, images: int) -> None:
    if images > MAX_IMAGES:
        raise ConfigError(f"{folder} lists more than {MAX_IMAGES:,} files: divide it.")


def _guard(folder: Path) -> Callable[[str], None]:
    """Raises ConfigError for a path, relative to `folder`, whose links lead out of it."""
    is_within = functools.partial(files.is_within, folder)
    is_folder_within = functools.cache(is_within)  # few folders hold the many images

    def require_inside(path: str) -> None:
        if not is_folder_within(os.path.dirname(path)) or (
            os.path.islink(folder / path) and not is_within(path)
        ):
            raise ConfigError(f"{folder / path} leads out of its folder: put a copy there.")

    return require_inside
