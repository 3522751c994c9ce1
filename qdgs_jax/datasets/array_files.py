"""Labelled images in files of plain bytes: IDX, as of MNIST, and the binary version of CIFAR.

Sizes are checked against those of the files before anything is read.
"""

import gzip
import math
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from qdgs_jax import files
from qdgs_jax.datasets.class_folders import MAX_BYTES, LabelledImages, require_text
from qdgs_jax.datasets.listing import MAX_IMAGES
from qdgs_jax.errors import ConfigError, shorten

Split: TypeAlias = Literal["train", "test"]

_IDX_PREFIX = {"train": "train", "test": "t10k"}
_CIFAR_10 = {
    "train": tuple(f"data_batch_{n}.bin" for n in range(1, 6)),
    "test": ("test_batch.bin",),
}
_CIFAR_100 = {"train": ("train.bin",), "test": ("test.bin",)}
_CIFAR_10_NAMES, _CIFAR_100_NAMES = "batches.meta.txt", "fine_label_names.txt"
_CIFAR_SHAPE = 3, 32, 32
_MAX_NAMES = 2**16  # bytes
_DEFLATE = 1032
"""Bytes that one byte of a gzip file can stand for, at most."""


def has_idx(folder: Path) -> bool:
    """Whether a folder holds IDX files of labelled images, by their names."""
    return any(path.exists() for split in _IDX_PREFIX for path in _idx_paths(folder, split, 3))


def read_idx(folder: Path, *, split: Split, classes: Sequence[str] = ()) -> LabelledImages:
    """Images [N, H, W, 1] of `train-images-idx3-ubyte` or `t10k-images-idx3-ubyte`, and their
    labels of `...-labels-idx1-ubyte`, each plain or with `.gz`.

    Args:
        classes: names of the labels; without them, labels are numbers.

    Raises:
        ConfigError: a file is absent, damaged or larger than `MAX_BYTES`, the two do not fit, or a
            label has no name.
    """
    pixels, labels = (_read_idx(_idx_paths(folder, split, axes), axes) for axes in (3, 1))
    if len(pixels) != len(labels):
        raise ConfigError(
            f"{folder} has {len(pixels)} images and {len(labels)} labels of '{split}': replace "
            "both files by two that belong together."
        )
    return LabelledImages(pixels[..., None], name_labels(labels, classes, str(folder)), ())


def has_cifar(folder: Path) -> bool:
    """Whether a folder holds the binary version of CIFAR-10 or CIFAR-100, by the names of files."""
    return any((folder / names).exists() for names in (_CIFAR_10_NAMES, _CIFAR_100_NAMES))


def read_cifar(folder: Path, *, split: Split) -> LabelledImages:
    """Images [N, 32, 32, 3] of the binary version of CIFAR-10 or, with fine labels, CIFAR-100.

    Raises:
        ConfigError: a file is absent, damaged or larger than `MAX_BYTES`, or a label has no name.
    """
    # A record is the label, in CIFAR-100 after a coarse one, then all red, green and blue pixels.
    is_10 = (folder / _CIFAR_10_NAMES).exists()
    label_bytes, parts = (1, _CIFAR_10) if is_10 else (2, _CIFAR_100)
    classes = _read_names(folder / (_CIFAR_10_NAMES if is_10 else _CIFAR_100_NAMES))
    size = label_bytes + math.prod(_CIFAR_SHAPE)
    read = []
    for path in (folder / name for name in parts[split]):
        content = _read(path, most=MAX_BYTES // len(parts[split]))
        if not content or len(content) % size:
            raise _damaged(path, f"its {len(content):,} bytes are no records of {size:,}")
        read.append(np.frombuffer(content, np.uint8).reshape(-1, size))
    records = np.concatenate(read)
    pixels = records[:, label_bytes:].reshape(-1, *_CIFAR_SHAPE).transpose(0, 2, 3, 1)
    labels = name_labels(records[:, label_bytes - 1], classes, str(folder))
    return LabelledImages(np.ascontiguousarray(pixels), labels, ())


def name_labels(labels: np.ndarray, classes: Sequence[str], source: str) -> tuple[str, ...]:
    """Names of labels [N], the numbers themselves if `classes` is empty.

    Raises:
        ConfigError: a label has no name, a name stands for two, or cannot be printed.
    """
    require_text(source, set(classes))
    if len(set(classes)) < len(classes):
        raise ConfigError(f"Two classes of {source} have one name: rename one.")
    low, high = labels.min(), labels.max()
    if low < 0 or (classes and high >= len(classes)):
        raise ConfigError(
            f"{source} has an image of the label {low if low < 0 else high}, which is none of its "
            f"{len(classes) or ''} classes: remove that image, or add the class's name."
        )
    return tuple(classes[label] if classes else str(label) for label in map(int, labels))


def _idx_paths(folder: Path, split: str, axes: int) -> tuple[Path, Path]:
    name = f"{_IDX_PREFIX[split]}-{'images' if axes == 3 else 'labels'}-idx{axes}-ubyte"
    return folder / name, folder / f"{name}.gz"


def _read_idx(paths: tuple[Path, Path], axes: int) -> np.ndarray:
    """The array of bytes in the file that is there, plain or compressed."""
    path = next((path for path in paths if path.exists()), paths[0])
    header = 4 + 4 * axes
    content = _read(path, header)
    # Two zeros, 8 for bytes, the number of axes, then their lengths, with the high bytes first.
    if len(content) < header or content[:4] != bytes([0, 0, 8, axes]):
        raise _damaged(path, f"it is no IDX file of bytes with {axes} axes")
    shape = struct.unpack(f">{axes}I", content[4:])
    size = math.prod(shape)
    if not size or shape[0] > MAX_IMAGES:
        raise _damaged(path, f"it announces {shape[0]:,} entries in {size:,} bytes")
    # One byte more would be too much: there must be none.
    content = _read(path, header + size + 1, needed=header + size)
    if len(content) != header + size:
        found = "more" if len(content) > header + size else "less"
        raise _damaged(path, f"it holds {found} than the {size:,} bytes that it announces")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _read(path: Path, limit: int = -1, *, needed: int = 0, most: int = MAX_BYTES) -> bytes:
    """The first `limit` bytes of a file, or all, decompressed if its name ends in `.gz`.

    Args:
        needed: bytes that the file must hold; it is refused before reading if it cannot.
        most: bytes that it may hold.
    """
    try:
        with files.open_regular(path) as file:
            stored = os.fstat(file.fileno()).st_size
            compressed = path.suffix == ".gz"
            if max(needed, stored) > most:
                raise ConfigError(f"{path} holds more than the {most:,} bytes allowed: divide it.")
            if needed > stored * (_DEFLATE if compressed else 1):
                raise _damaged(path, f"it is too small for the {needed:,} bytes that it announces")
            if not compressed:
                return file.read(limit)
            with gzip.GzipFile(fileobj=file) as content:
                return content.read(limit)
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing: put it there.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, getattr(error, "strerror", None) or str(error)) from None


def _read_names(path: Path) -> tuple[str, ...]:
    """The classes that a text file names, one a line."""
    content = _read(path, _MAX_NAMES + 1)
    if len(content) > _MAX_NAMES:
        raise _damaged(path, f"it has more than {_MAX_NAMES:,} bytes")
    try:
        names = tuple(filter(None, map(str.strip, content.decode().split("\n"))))
    except UnicodeDecodeError:
        names = ()
    if not names:
        raise _damaged(path, "it names no classes, one a line")
    return names


def _damaged(path: Path, reason: str) -> ConfigError:
    return ConfigError(f"{path} cannot be read ({shorten(reason)}): replace it.")
