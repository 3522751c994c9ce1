"""Assigns rows of measures to bins, and draws evenly from bins."""

import re
from collections.abc import Sequence

import numpy as np

from qdgs_jax.config import BinConfig, Config
from qdgs_jax.datasets.class_folders import UNLABELLED
from qdgs_jax.errors import ConfigError

EVERYTHING = BinConfig(name="all", label="all", where={})
"""The one bin of a config without bins."""
MAX_LABEL = 200  # bytes; file systems take 255


def bins_of(config: Config) -> tuple[BinConfig, ...]:
    """The bins to fill; if the config has none, one bin that holds everything.

    Raises:
        ConfigError: a bin's label cannot be the name of a folder everywhere.
    """
    for bin in config.export.bins:
        fits = re.fullmatch(r"\w([\w +,()=-]*[\w)])?", bin.label)
        if not fits or len(bin.label.encode()) > MAX_LABEL or bin.label == UNLABELLED:
            raise ConfigError(
                f"The label '{bin.label[:MAX_LABEL]}' of bin '{bin.name}' cannot be the name of a "
                f"class folder: use up to {MAX_LABEL} letters, digits, spaces, '-' and '_', and "
                f"not '{UNLABELLED}'."
            )
    return config.export.bins or (EVERYTHING,)


def assign_bins(
    config: Config, bins: Sequence[BinConfig], measures: np.ndarray, *, nearest: bool = False
) -> np.ndarray:
    """Number of the first bin that holds each row of measures [n, M], [n]; -1 for none.

    With `nearest`, a finite row that no bin holds is assigned to the nearest bin. The distance is
    Euclidean, with each measure divided by the width of its range.
    """
    names = [measure.name for measure in config.measures]
    inside = np.ones((len(bins), len(measures)), bool)
    squared = np.zeros(inside.shape)  # distances to the bins
    for number, bin in enumerate(bins):
        for name, (low, high) in bin.where.items():
            column = names.index(name)
            values, (start, end) = measures[:, column], config.measures[column].ends
            inside[number] &= (low <= values) & (values < high)
            with np.errstate(invalid="ignore"):  # inf - inf: such a row has no nearest bin
                squared[number] += ((np.clip(values, low, high) - values) / (end - start)) ** 2
    near = nearest & np.isfinite(measures).all(axis=1)
    other = np.where(near, squared.argmin(axis=0), -1)
    return np.where(inside.any(axis=0), inside.argmax(axis=0), other)


def shares(count: int, bins: int) -> list[int]:
    """`count` in equal parts; the first parts take the remainder."""
    return [count // bins + (number < count % bins) for number in range(bins)]


def draw_evenly(
    bin: np.ndarray, bins: int, count: int, seed: int, *, repeat: bool = True
) -> np.ndarray:
    """Rows of elites, bin after bin, with an equal share of `count` for each; none for empty bins.

    Every elite of a bin is drawn once before any of them is drawn twice, and so on.

    Args:
        bin: bin of each elite, [n], -1 for none.
        repeat: draw elites again where a bin has fewer than its share; if not, it gets fewer.
    """
    drawn = []
    for number, share in enumerate(shares(count, bins)):
        random = np.random.default_rng((seed, number))
        members = np.flatnonzero(bin == number)
        passes = -(-share // len(members)) if len(members) else 0
        passes = passes if repeat else min(passes, 1)
        rounds = [random.permutation(members) for _ in range(passes)]
        drawn.append(np.concatenate([members[:0], *rounds])[:share])
    return np.concatenate(drawn)


def choose_test(rows: np.ndarray, bin: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which images are for testing, [N] bool: all copies of an elite or none.

    Of each bin, as near to `share` as copies allow; a bin of one elite is not divided.

    Args:
        rows: the elite that each image shows, [N], drawn by `draw_evenly`: within a bin, their
            numbers of copies differ by one at most.
        bin: bin of each image, [N].
        share: of the images, in (0, 1).
    """
    chosen = []
    for number in np.unique(bin):
        random = np.random.default_rng((seed, int(number), 1))  # `draw_evenly` has no third number
        elites, copies = np.unique(rows[bin == number], return_counts=True)
        order = random.permutation(len(elites))
        fewest = copies.min()
        many, few = (order[copies[order] > fewest], order[copies[order] == fewest])
        # n elites, some of them of `many`, are n * fewest + some images
        n = np.arange(len(elites) + 1)
        target = share * copies.sum()
        some = np.round(target - n * fewest)
        some = np.clip(some, np.maximum(n - len(few), 0), np.minimum(n, len(many))).astype(int)
        best = int(np.abs(n * fewest + some - target).argmin())
        chosen += [elites[many[: some[best]]], elites[few[: best - some[best]]]]
    return np.isin(rows, np.concatenate(chosen))
