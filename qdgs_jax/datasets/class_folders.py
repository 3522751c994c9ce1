"""Images in class folders -> arrays, with their groups from metadata.jsonl."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qdgs_jax.errors import ConfigError, QDGSError, did_you_mean

UNLABELLED = "unlabelled"
"""Class folder of random samples that no bin holds."""
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
MAX_BYTES = 8 * 2**30


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """Images of one size, with the names of their classes and groups."""

    pixels: np.ndarray  # [N, H, W, 3] uint8
    labels: tuple[str, ...]  # [N]
    groups: tuple[str, ...]  # [N], or empty

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "LabelledImages":
        """The images of these rows, in their order."""
        names = (
            tuple(values[row] for row in rows) if values else ()
            for values in (self.labels, self.groups)
        )
        return LabelledImages(self.pixels[rows], *names)


def read_folder(folder: Path, *, group: str | None = None) -> LabelledImages:
    """Reads an ImageFolder; the first folder of each path is the label.

    Images of the class `unlabelled`, which no bin of their dataset holds, are left out.

    Args:
        group: column of metadata.jsonl that names each image's group.

    Raises:
        ConfigError: there are no images, or they have no class folder, no group, or several sizes.
        QDGSError: an image cannot be read.
    """
    records = _records(folder, group)
    paths = [Path(record["file_name"]) for record in records]
    if unplaced := [path for path in paths if len(path.parts) < 2]:
        raise ConfigError(
            f"{folder / unplaced[0]} has no class: put the images of each class in a folder "
            "named after it."
        )
    kept = [row for row, path in enumerate(paths) if path.parts[0] != UNLABELLED]
    if not kept:
        raise ConfigError(f"{folder} holds no labelled images: name another folder.")
    pixels = _read_images([folder / paths[row] for row in kept])
    groups = tuple(str(records[row][group]) for row in kept) if group else ()
    return LabelledImages(pixels, tuple(paths[row].parts[0] for row in kept), groups)


def require_fit(
    read: dict[str, LabelledImages], folders: dict[str, Path], *, halvings: int
) -> tuple[str, ...]:
    """Checks that one classifier can read all folders, and returns its classes.

    Raises:
        ConfigError: "train" has fewer than two classes, another folder has other classes, or the
            sizes of images differ or cannot be halved `halvings` times.
    """
    classes = tuple(sorted(set(read["train"].labels)))
    if len(classes) < 2:
        raise ConfigError(
            f"{folders['train']} holds the one class {classes[0]}: a classifier needs two or more."
        )
    shape = read["train"].pixels.shape[1:]
    for name, images in read.items():
        if images.pixels.shape[1:] != shape:
            raise ConfigError(
                f"The images of {folders[name]} are {_size(images.pixels.shape[1:])}, those of "
                f"{folders['train']} {_size(shape)}: resize them alike."
            )
        if unknown := sorted(set(images.labels) - set(classes)):
            raise ConfigError(
                f"{folders[name]} holds the class {unknown[0]}, which {folders['train']} lacks"
                f"{did_you_mean(unknown[0], classes)}: name the class folders alike."
            )
    if min(shape[:2]) < 2**halvings:
        raise ConfigError(
            f"Images of {_size(shape)} cannot be halved {halvings} times: enlarge them, or give "
            "the classifier fewer `channels`."
        )
    return classes


def _records(folder: Path, group: str | None) -> list[dict[str, Any]]:
    """The records of metadata.jsonl; without that file, a record for each image of the folder."""
    metadata = folder / "metadata.jsonl"
    if not metadata.is_file():
        if group:
            raise ConfigError(
                f"{metadata} is missing: write it, with a column '{group}' that names the groups."
            )
        paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES]
        return [{"file_name": path.relative_to(folder).as_posix()} for path in paths]
    try:
        records = [json.loads(line) for line in metadata.read_text().splitlines() if line.strip()]
        if not all("file_name" in record for record in records):
            raise ValueError("a line has no `file_name`")
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{metadata} is not one line of JSON with a `file_name` for each image ({error}): "
            "correct it."
        ) from None
    for record in records:
        if group and group not in record:
            raise ConfigError(
                f"{metadata} has no column '{group}'{did_you_mean(group, list(record))}: "
                "name the column of the groups."
            )
    return records


def _read_images(paths: Sequence[Path]) -> np.ndarray:
    first = _read_image(paths[0])
    if len(paths) * first.nbytes > MAX_BYTES:
        raise ConfigError(
            f"{len(paths)} images of {_size(first.shape)} take "
            f"{len(paths) * first.nbytes / 2**30:.0f} GiB of memory, more than the "
            f"{MAX_BYTES / 2**30:.0f} GiB allowed: take fewer, or make them smaller."
        )
    pixels = np.empty((len(paths), *first.shape), np.uint8)
    for row, path in enumerate(paths):
        image = _read_image(path)
        if image.shape != first.shape:
            raise ConfigError(
                f"Images must have one size, but {paths[0]} is {_size(first.shape)} and {path} "
                f"{_size(image.shape)}: resize them alike."
            )
        pixels[row] = image
    return pixels


def _read_image(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise QDGSError(f"The image {path} cannot be read ({error}): replace it.") from None


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]} x {shape[0]}"
