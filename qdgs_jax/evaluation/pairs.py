"""Pairs of faces for verification: InsightFace's .bin files, and folders of people."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qdgs_jax.datasets.class_folders import MAX_BYTES, read_folder
from qdgs_jax.datasets.image_files import decode_image
from qdgs_jax.errors import ConfigError, QDGSError
from qdgs_jax.models.checkpoint import explained, map_file
from qdgs_jax.models.pickles import UnreadableError, unpickle

MAX_PAIRS = 1 << 17
"""Of a .bin; the known ones have at most 7,000."""
MAX_DRAWN = 3000
"""Images of a group that pairs are drawn of, all those of some people."""


class Pairs(NamedTuple):
    """Pairs of images, and what is known of them."""

    images: np.ndarray  # [N, H, W, 3] uint8
    rows: np.ndarray  # [P, 2] int, positions of both images
    same: np.ndarray  # [P] bool, whether they show one person
    people: np.ndarray  # [P, 2] int, whom they show; -1 where it is unknown
    groups: tuple[str, ...] = ()  # [P] group of both people, or empty


def read_bin(path: str | Path) -> Pairs:
    """Reads a .bin file of InsightFace, such as lfw.bin or agedb_30.bin.

    It is a pickle of (images, same): encoded images, two for each pair, and for each pair whether
    they show one person. Nothing in it is executed, and nothing but lists, bytes and booleans read.

    Raises:
        QDGSError: it is absent, damaged, hostile, or something else.
    """
    path = Path(path)
    with explained(path, "give a .bin file as InsightFace's code packs it"):
        content = unpickle(map_file(path), lambda module, name: None, texts_as_bytes=True)
        encoded, same = _checked(content)
    first = decode_image(encoded[0], f"1 of {path}")
    if len(encoded) * first.nbytes > MAX_BYTES:
        raise QDGSError(f"The images of {path} take more than {MAX_BYTES:,} bytes: give fewer.")
    images = np.empty((len(encoded), *first.shape), np.uint8)
    for row, each in enumerate(encoded):
        image = decode_image(each, f"{row + 1} of {path}")
        if image.shape != first.shape:
            raise QDGSError(f"The images of {path} have several sizes: give aligned faces.")
        images[row] = image
    rows = np.arange(len(images)).reshape(-1, 2)
    return Pairs(images, rows, np.array(same), np.full(rows.shape, -1))


def _checked(content: Any) -> tuple[list[memoryview], list[bool]]:
    if not isinstance(content, tuple | list) or len(content) != 2:
        raise UnreadableError("it is no pair of images and answers")
    encoded, same = content
    for name, values, kind in (("images", encoded, memoryview), ("answers", same, bool)):
        if not isinstance(values, list | tuple) or not all(type(each) is kind for each in values):
            raise UnreadableError(f"its {name} are no list of them")
    if not 0 < len(same) <= MAX_PAIRS or len(encoded) != 2 * len(same):
        raise UnreadableError(f"it has {len(encoded)} images and {len(same)} answers")
    return list(encoded), list(same)


def read_pairs(
    folder: str | Path, *, group: str | None = None, count: int = 6000, seed: int = 0
) -> Pairs:
    """Draws pairs of images in a folder that has a folder for each person.

    Half of the pairs, in each group, show one person and half two. No pair is drawn twice.

    Args:
        group: column of metadata.jsonl; pairs are within a group, and groups have equal shares of
            `count`, as far as they have enough pairs.
        count: pairs at most.
        seed: of the draws.

    Raises:
        ConfigError: as `read_folder`, or no group has two people, one of them with two images.
        QDGSError: an image cannot be read.
    """
    labelled = read_folder(folder, group=group)
    names = sorted(set(labelled.labels))
    people = np.array([names.index(label) for label in labelled.labels])
    pairs = draw_pairs(labelled.pixels, people, labelled.groups, count=count, seed=seed)
    if not len(pairs.rows):
        raise ConfigError(
            f"{folder} has no two people, one of them with two images"
            f"{' of one group' if group else ''}: add images."
        )
    return pairs


def draw_pairs(
    images: np.ndarray,
    people: np.ndarray,
    groups: Sequence[str] = (),
    *,
    count: int = 6000,
    seed: int = 0,
) -> Pairs:
    """Draws pairs as `read_pairs` does, perhaps none, of images [N, H, W, 3] of these people [N].

    Args:
        groups: that of each image, or empty.
    """
    of = np.array(groups or ("",) * len(people))
    random = np.random.default_rng(seed)
    kinds = sorted(set(of.tolist()))
    drawn = [
        _draw(random, np.flatnonzero(of == kind), people, count // (2 * len(kinds)))
        for kind in kinds
    ]
    rows, named = np.concatenate(drawn), np.repeat(kinds, [len(rows) for rows in drawn])
    order = random.permutation(len(rows))  # folds are alike
    rows, named = rows[order], named[order]
    both = people[rows]
    same = both[:, 0] == both[:, 1]
    return Pairs(images, rows, same, both, tuple(map(str, named)) if groups else ())


def _draw(
    random: np.random.Generator, members: np.ndarray, people: np.ndarray, half: int
) -> np.ndarray:
    """At most `half` pairs of one person and as many of two, [P, 2], of the images `members`."""
    place = random.permutation(people.max() + 1)[people[members]]
    some = members[np.argsort(place, kind="stable")[:MAX_DRAWN]]
    rows = some[np.stack(np.triu_indices(len(some), 1), axis=1)]
    same = people[rows[:, 0]] == people[rows[:, 1]]
    kinds = np.flatnonzero(same), np.flatnonzero(~same)
    half = min(half, *map(len, kinds))
    return np.concatenate([rows[random.choice(kind, half, replace=False)] for kind in kinds])
