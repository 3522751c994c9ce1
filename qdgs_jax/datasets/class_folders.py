"""Images in class folders -> arrays, with their groups from metadata.jsonl."""

import collections
import dataclasses
import os
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from qdgs_jax.bins import UNLABELLED
from qdgs_jax.datasets import listing
from qdgs_jax.datasets.image_files import read_image
from qdgs_jax.datasets.listing import Entry, top
from qdgs_jax.errors import ConfigError, did_you_mean, shorten

MAX_BYTES = 8 * 2**30


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """Images of one size, with the names of their classes and groups."""

    pixels: np.ndarray  # [N, H, W, C] uint8; C is 3, or 1 for grey images of `read_labelled`
    labels: tuple[str, ...]  # [N]
    groups: tuple[str, ...]  # [N], or empty

    def __len__(self) -> int:
        return len(self.labels)

    def counts(self) -> dict[str, int]:
        """Number of images of each class, by its name in alphabetical order."""
        return dict(sorted(collections.Counter(self.labels).items()))

    def take(self, rows: np.ndarray) -> "LabelledImages":
        """The images of these rows, in their order."""
        names = (
            tuple(values[row] for row in rows) if values else ()
            for values in (self.labels, self.groups)
        )
        return LabelledImages(self.pixels[rows], *names)

    def repeated(self, count: int) -> "LabelledImages":
        """`count` images, in their order, of which none is repeated twice before each is once.

        Repeats are spread evenly over the order, and so over the bins of a dataset.
        """
        return self.take(np.arange(count) * len(self) // count)


def read_folder(folder: str | Path, *, group: str | None = None) -> LabelledImages:
    """Reads an ImageFolder; the first folder of each path is the label.

    If there is a metadata.jsonl, the images that it lists are read, else all images. Images of a
    `qdgs` dataset that no bin holds (class `unlabelled`) are left out. A warning says how many
    images and other files were left out. Hidden files and folders do not count.

    Images are upright, 8 bits a colour and without transparency (`image_files.read_image`).

    Args:
        group: column of metadata.jsonl that names each image's group.

    Raises:
        ConfigError: there are no images, or they have no class folder, no group, several sizes, or
            lie outside the folder.
        QDGSError: an image cannot be read.
    """
    paths, labels, groups = list_folder(folder, group=group)
    pixels = stack_images(((str(path), read_image(path)) for path in paths), len(paths))
    return LabelledImages(pixels, labels, groups)


def list_folder(
    folder: str | Path, *, group: str | None = None
) -> tuple[list[Path], tuple[str, ...], tuple[str, ...]]:
    """Paths [N], labels [N] and groups ([N] or none) of the images that `read_folder` reads, which
    may have any size here.

    Raises:
        ConfigError: as `read_folder`.
    """
    folder = Path(folder)
    if os.path.lexists(folder / listing.METADATA):
        entries = listing.read_metadata(folder, group)
    else:
        entries = listing.find_images(folder, group)
    if unplaced := [entry.path for entry in entries if "/" not in entry.path]:
        raise ConfigError(
            f"{folder / unplaced[0]} has no class: put the images of each class in a folder "
            "named after it."
        )
    kept = [entry for entry in entries if not (entry.in_no_bin and top(entry.path) == UNLABELLED)]
    if left_out := len(entries) - len(kept):
        warnings.warn(
            f"{left_out} images of {folder / UNLABELLED} lie in no bin and are left out.",
            stacklevel=2,
        )
    if not kept:
        raise ConfigError(f"{folder} holds no labelled images: name another folder.")
    labels = tuple(top(entry.path) for entry in kept)
    groups = _groups(folder, kept, group) if group else ()
    require_text(str(folder), {*labels, *groups})
    return [folder / entry.path for entry in kept], labels, groups


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


def _groups(folder: Path, entries: Sequence[Entry], column: str) -> tuple[str, ...]:
    empty = [entry for entry in entries if not entry.group]
    if empty:
        raise ConfigError(
            f"{folder / listing.METADATA} names no `{column}` for {len(empty)} of {len(entries)} "
            f"images, such as {empty[0].path}: name it, or remove their lines."
        )
    return tuple(entry.group for entry in entries)


def require_text(source: str, names: set[str]) -> None:
    """Names are printed and written: no control characters, and nothing that is not UTF-8.

    Raises:
        ConfigError: a name has some.
    """
    for name in sorted(names):
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
            raise ConfigError(
                f"{source} has a class or group {shorten(ascii(name))}, which cannot be "
                "printed: rename it."
            )


def stack_images(images: Iterable[tuple[str, np.ndarray]], count: int) -> np.ndarray:
    """Pixels [count, H, W, 3] uint8 of that many images [H, W, 3] with their names.

    Raises:
        ConfigError: their sizes differ, or they take more than `MAX_BYTES`.
    """
    pixels, first = np.empty((0, 0, 0, 3), np.uint8), ""
    for row, (name, image) in enumerate(images):
        if not row:
            pixels, first = _allocate(count, image), name
        if image.shape != pixels.shape[1:]:
            raise ConfigError(
                f"Images must have one size, but {first} is {_size(pixels.shape[1:])} and {name} "
                f"{_size(image.shape)}: resize them alike."
            )
        pixels[row] = image
    return pixels


def _allocate(count: int, image: np.ndarray) -> np.ndarray:
    if count * image.nbytes > MAX_BYTES:
        raise ConfigError(
            f"{count} images of {_size(image.shape)} take {count * image.nbytes / 2**30:.0f} GiB "
            f"of memory, more than the {MAX_BYTES / 2**30:.0f} GiB allowed: take fewer, or make "
            "them smaller."
        )
    return np.empty((count, *image.shape), np.uint8)


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]} x {shape[0]}"
