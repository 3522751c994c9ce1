"""Labelled images of any source -> arrays; subsets whose classes have given shares."""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import numpy as np

from qdgs_jax.datasets import array_files, image_tables
from qdgs_jax.datasets.array_files import Split
from qdgs_jax.datasets.class_folders import LabelledImages, read_folder
from qdgs_jax.errors import ConfigError, did_you_mean, shorten

SPLITS = get_args(Split)
FASHION_MNIST = "fashion-mnist"
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
    "Ankle boot",
)  # fmt: skip
FASHION_MNIST_FOLDERS = (
    Path(sys.prefix) / "share/qdgs_jax" / FASHION_MNIST,
    Path("/usr/share/datasets") / FASHION_MNIST,
)
"""Where `make assets` puts its files, and where Debian's package does."""
TOLERANCE = 0.005
"""Of the sum of shares: published ones are rounded."""


def read_labelled(source: str | Path, *, split: Split) -> LabelledImages:
    """Reads the images of one split and the names of their classes.

    Pixels are [N, H, W, 3], or [N, H, W, 1] where all images of the split are grey: a generator of
    grey images then has one channel.

    Args:
        source: one of
            * `fashion-mnist`, which `make assets` fetches;
            * a folder with MNIST's IDX files, plain or `.gz`; classes are numbers;
            * a folder with the binary version of CIFAR-10 or CIFAR-100;
            * a folder with Parquet files of images, as Hugging Face's datasets have them, which
              have the split in their names, or `hf:OWNER/NAME@COMMIT` for those of the hub;
            * a folder of class folders (`read_folder`), or one with both `train` and `test` of
              these; the former is a training split.

    Raises:
        ConfigError: the source is absent, damaged or too large, lacks the split, has a label
            without a class, or images of several sizes.
        QDGSError: an image cannot be read.
    """
    if split not in SPLITS:
        raise ConfigError(f"There is no split '{split}': name one of {', '.join(SPLITS)}.")
    images = _read(str(source), split)
    grey = all((image == image[..., :1]).all() for image in images.pixels)
    pixels = np.ascontiguousarray(images.pixels[..., :1]) if grey else images.pixels
    return LabelledImages(pixels, images.labels, images.groups)


def _read(source: str, split: Split) -> LabelledImages:
    if source == FASHION_MNIST:
        folder = _fashion_mnist()
        return array_files.read_idx(folder, split=split, classes=FASHION_MNIST_CLASSES)
    if source.startswith(image_tables.HUB):
        return image_tables.read_tables(image_tables.fetch_tables(source, split=split), source)
    folder = Path(source)
    if not folder.is_dir():
        raise ConfigError(f"{source} is no folder of labelled images: name another.")
    if array_files.has_idx(folder):
        return array_files.read_idx(folder, split=split)
    if array_files.has_cifar(folder):
        return array_files.read_cifar(folder, split=split)
    if tables := image_tables.find_tables(folder, split=split):
        return image_tables.read_tables(tables, source)
    if all((folder / part).is_dir() for part in SPLITS):
        return read_folder(folder / split)
    if split == "test":
        raise ConfigError(
            f"{source} has no split 'test': divide it into a folder `train` and a folder `test`."
        )
    return read_folder(folder)


def _fashion_mnist() -> Path:
    for folder in FASHION_MNIST_FOLDERS:
        if array_files.has_idx(folder):
            return folder
    raise ConfigError(
        f"The dataset {FASHION_MNIST} is not there: run `make assets`, or name a folder with its "
        "IDX files."
    )


def imbalanced(images: LabelledImages, shares: Mapping[str, float], *, seed: int) -> LabelledImages:
    """The largest subset in which classes have these shares; other classes are left out.

    The class that is scarcest for its share keeps all its images, and the others as many as fit,
    rounded, but one at least. Images are drawn at random and stay in their order;
    `LabelledImages.counts` tells how many each class has.

    Args:
        shares: class -> share in [0, 1]; they are divided by their sum.

    Raises:
        ConfigError: a class is unknown, a share is no number from 0 to 1, or the sum is further
            than `TOLERANCE` from 1.
    """
    available = images.counts()
    for name, share in shares.items():
        if name not in available:
            raise ConfigError(
                f"The images have no class '{shorten(name)}'{did_you_mean(name, available)}: name "
                f"one of {shorten(', '.join(available))}."
            )
        if not 0 <= share <= 1:
            raise ConfigError(f"The share of '{name}' is {share}: give a number from 0 to 1.")
    total = math.fsum(shares.values())
    if abs(total - 1) > TOLERANCE:
        raise ConfigError(
            f"The shares of the classes sum to {total:.4g}, not to 1: give 0.01 for a percent."
        )
    wanted = {name: share for name, share in shares.items() if share > 0}
    fitting = min(available[name] / share for name, share in wanted.items())  # images in all
    labels = np.array(images.labels, object)
    order = np.random.default_rng(seed).permutation(len(images))
    kept = [
        order[labels[order] == name][: max(1, round(fitting * share))]
        for name, share in wanted.items()
    ]
    return images.take(np.sort(np.concatenate(kept)))
