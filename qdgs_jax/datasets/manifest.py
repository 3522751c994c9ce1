"""manifest.json: how a dataset was made, and the size and SHA-256 of each of its files.

The list of files is the last key and has one line a file, so that it is streamed. A manifest that
is read may be a stranger's: its names are compared, and looked up within the folder, nothing else.
"""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic_core

from qdgs_jax import files
from qdgs_jax.errors import QDGSError

MANIFEST = "manifest.json"
PARTIAL_MANIFEST = "manifest.json.part"
FILES = ' "files": [\n'
MAX_HEADER = 2**26  # bytes
MAX_LINE = 2**16


def header_text(header: dict[str, Any]) -> str:
    """A manifest without its list of files."""
    return json.dumps(header, indent=1) + "\n"


def opening(header: dict[str, Any]) -> bytes:
    """What a manifest begins with; entries follow, separated by commas, then `CLOSING`."""
    return (header_text(header)[:-3] + ",\n" + FILES).encode()


CLOSING = b"\n ]\n}\n"


def entry(out: Path, name: str) -> bytes:
    """The line of a file that is there."""
    path = out / name
    values = {"file_name": name, "bytes": path.stat().st_size, "sha256": files.sha256(path)}
    return b"  " + json.dumps(values).encode()


def read_header(path: Path) -> dict[str, Any]:
    """The keys of a manifest before its list of files, which is not read.

    Raises:
        QDGSError: it is no such JSON.
    """
    content = b""
    try:
        with open(path, "rb") as file:
            while line := file.readline(MAX_HEADER):
                if line == FILES.encode():
                    content = content.rstrip(b",\n") + b"}"
                    break
                content += line
                if len(content) > MAX_HEADER:
                    raise ValueError(f"more than {MAX_HEADER:,} bytes")
        header = pydantic_core.from_json(content)
        if not isinstance(header, dict):
            raise ValueError("it is no table")
    except ValueError as error:
        raise QDGSError(
            f"The manifest {path} is not readable ({error}): delete the folder and start again."
        ) from None
    return header


def entries(path: Path) -> Iterator[dict[str, Any]] | None:
    """The list of files, one by one; what is not readable there is {}. None without a list."""
    with open(path, "rb") as file:
        while line := file.readline(MAX_LINE):
            if line == FILES.encode():
                return _entries(path, file.tell())
    return None


def renew(out: Path, names: set[str]) -> None:
    """Renews the entries of files that a manifest lists and that were changed on purpose; whatever
    else is called manifest.json stays as it is."""
    path = out / MANIFEST
    if not path.is_file() or entries(path) is None:
        return
    starts = {f'  {{"file_name": {json.dumps(name)},'.encode(): name for name in names}
    with open(path, "rb") as old, files.replacing(path) as new:
        while line := old.readline(MAX_HEADER):
            name = next((starts[start] for start in starts if line.startswith(start)), None)
            end = b",\n" if line.endswith(b",\n") else b"\n"
            new.write(entry(out, name) + end if name else line)


def _entries(path: Path, start: int) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as file:
        file.seek(start)
        while (line := file.readline(MAX_LINE)).startswith(b"  "):
            try:
                values = pydantic_core.from_json(line.rstrip(b",\n"))
            except ValueError:
                values = {}
            yield values if isinstance(values, dict) else {}


def is_intact(out: Path, entry: dict[str, Any]) -> bool:
    """Whether the file of an entry is as it says; no name leads out of `out`."""
    name = entry.get("file_name")
    try:
        if not isinstance(name, str) or not files.is_within(out, name):
            return False
        found = os.lstat(out / name)
    except (OSError, ValueError):  # such as a NUL in the name
        return False
    whole = stat.S_ISREG(found.st_mode) and found.st_size == entry.get("bytes")
    return whole and files.sha256(out / name) == entry.get("sha256")
