"""Adds what networks read from faces to the metadata.jsonl of any folder of images."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from qdgs_jax import files, folders, sharding
from qdgs_jax.config import NOTICES
from qdgs_jax.datasets import listing, manifest
from qdgs_jax.datasets.image_folder import PARTS
from qdgs_jax.datasets.listing import METADATA, top
from qdgs_jax.datasets.manifest import PARTIAL_MANIFEST
from qdgs_jax.datasets.readings import COLUMNS, PREFIX, Networks, load_networks, read_images
from qdgs_jax.errors import ConfigError, QDGSError

AGAIN = "run the same command again, which reads all images again"
CARD = "README.md"
MAX_CARD = 2**24  # bytes
EXAMPLES = 3
BEGIN, END = "<!-- qdgs annotate -->\n", "<!-- end of qdgs annotate -->\n"
SECTION = """\
## What networks read from the faces

`qdgs annotate` added these columns. {notice}

{columns}

Faces are found and aligned before they are read. {outcome}
"""


@dataclasses.dataclass(frozen=True)
class Annotated:
    """What became of the images of a folder."""

    images: int
    without_face: tuple[str, ...]
    """Paths of images in which no face was found."""
    unreadable: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; of the paths the first few."""
        return {
            "images": self.images,
            "faces": self.images - len(self.without_face) - len(self.unreadable),
            "without_face": len(self.without_face),
            "unreadable": len(self.unreadable),
            "without_face_examples": list(self.without_face[:EXAMPLES]),
            "unreadable_examples": list(self.unreadable[:EXAMPLES]),
        }

    def __str__(self) -> str:
        """For people."""
        told = f"A face was found in {self.as_dict()['faces']} of {self.images} images"
        if self.without_face:
            told += f", none in {len(self.without_face)}, such as {_shown(self.without_face[0])}"
        if self.unreadable:
            told += f"; {len(self.unreadable)} cannot be read, such as {_shown(self.unreadable[0])}"
        return f"{told}."


def _shown(name: str) -> str:
    """Names of files go to terminals and into cards."""
    return name if name.isprintable() else ascii(name)


def annotate(folder: str | Path) -> Annotated:
    """Adds the columns `readings.COLUMNS` to a folder's metadata.jsonl, which is made if there is
    none, and describes them in its card, README.md.

    Other columns and the order of images stay. Columns of an earlier call are replaced, so that the
    same call gives the same bytes. Files are replaced whole, at the end. A dataset of `qdgs export`
    with its parts `train` and `test` is annotated as one.

    Raises:
        ConfigError: the folder holds no images, is an unfinished dataset, or a network is missing.
        QDGSError: a file cannot be read or written, or none of the images can.
    """
    folder = Path(folder)
    _require_finished(folder)
    parts = [part for part in PARTS if (folder / part / METADATA).is_file()]
    roots = parts if parts and not (folder / METADATA).exists() else [""]
    networks = load_networks()
    listed = {root: _images(folder / root) for root in roots}
    names = [f"{root}/{path}".lstrip("/") for root in roots for path in listed[root]]
    with (
        folders.interruptions_explained(folder, again=AGAIN),
        folders.locked(folder),
        sharding.local_devices(),
    ):
        paths = [folder / name for name in names]
        read = read_images(networks, paths)
        found = list(tqdm(read, total=len(paths), unit="image", desc=str(folder), disable=None))
        annotated = Annotated(
            len(names),
            tuple(n for n, r in zip(names, found, strict=True) if r["read_face_found"] is False),
            tuple(n for n, r in zip(names, found, strict=True) if r["read_face_found"] is None),
        )
        if len(annotated.unreadable) == len(names):
            raise QDGSError(f"No image of {folder} can be read, such as {names[0]}: replace them.")
        start = 0
        for root, images in listed.items():
            _write_metadata(folder / root, images, found[start : start + len(images)])
            start += len(images)
        _write_card(folder, networks, annotated)
        manifest.renew(folder, {f"{root}/{METADATA}".lstrip("/") for root in roots})
    return annotated


def _require_finished(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder of images: name another.")
    if (folder / PARTIAL_MANIFEST).exists():
        raise ConfigError(
            f"{folder} is an unfinished dataset: finish it by the command that began it."
        )
    if (folder / "metadata.csv").exists() and not (folder / METADATA).exists():
        raise ConfigError(
            f"{folder / 'metadata.csv'} is not read: write it as lines of JSON, {METADATA}."
        )


def _images(root: Path) -> list[str]:
    """Paths within a folder, in the order of its metadata.jsonl if it has one."""
    has_metadata = (root / METADATA).exists()
    found = listing.read_metadata(root, None) if has_metadata else listing.find_images(root, None)
    if not found:
        raise ConfigError(f"{root} holds no images: name another folder.")
    return [entry.path for entry in found]


def _write_metadata(root: Path, paths: list[str], readings: list[dict[str, Any]]) -> None:
    metadata = root / METADATA
    with files.replacing(metadata) as new:
        for record, added in zip(_records(metadata, paths), readings, strict=True):
            kept = {key: value for key, value in record.items() if not key.startswith(PREFIX)}
            new.write(json.dumps(kept | added).encode() + b"\n")


def _records(metadata: Path, paths: list[str]) -> Iterator[dict[str, Any]]:
    """The records of a metadata.jsonl; without one, new ones, which name classes of folders."""
    if not metadata.exists():
        for path in paths:
            yield {"file_name": path} | ({"label_name": top(path)} if "/" in path else {})
        return
    with open(metadata, "rb") as file:
        for _, record in listing.records(metadata, file):
            yield record


def _write_card(folder: Path, networks: Networks, annotated: Annotated) -> None:
    """Puts the section about the columns into README.md, in place of an earlier one."""
    path = folder / CARD
    text = f"# {folder.resolve().name}\n"
    if path.exists():
        with files.open_regular(path, MAX_CARD) as file:
            text = file.read().decode(errors="surrogateescape")
    columns = networks.describe().items()
    section = SECTION.format(
        notice=NOTICES["readings"],
        columns="\n".join(f"* `{column}`: {about}" for column, about in columns),
        outcome=annotated,
    )
    before, begins, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END) if begins else ("", "", "")
    before = _with_features(before.rstrip("\n") + "\n\n")
    content = f"{before}{BEGIN}{section}{END}{after}"
    files.write(path, content.encode(errors="surrogateescape"))


def _with_features(text: str) -> str:
    """A card whose header lists the columns for Hugging Face, if it lists any as `card` does."""
    header, end, rest = text.partition("\n---\n")
    lines = [line for line in header.split("\n") if not line.startswith(f'  - {{"name": "{PREFIX}')]
    if "  features:" not in lines or not lines[-1].startswith('  - {"name": "'):
        return text
    for name, (dtype, _) in COLUMNS.items():
        lines.append(f"  - {json.dumps({'name': name, 'dtype': dtype})}")
    return "\n".join(lines) + end + rest
