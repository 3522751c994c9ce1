"""Assigns rows of measures to bins, and draws evenly from bins."""

import re
from collections.abc import Sequence

import numpy as np

from qdgs_jax.config import BinConfig, Config
from qdgs_jax.errors import ConfigError

EVERYTHING = BinConfig(name="all", label="all", where={})
"""The one bin of a config without bins."""


def bins_of(config: Config) -> tuple[BinConfig, ...]:
    """The bins to fill; if the config has none, one bin that holds everything.

    Raises:
        ConfigError: a bin's label cannot be the name of a folder everywhere.
    """
    for bin in config.export.bins:
        if not re.fullmatch(r"\w([\w +,()=-]*[\w)])?", bin.label):
            raise ConfigError(
                f"The label '{bin.label}' of bin '{bin.name}' cannot be the name of a class "
                "folder: use letters, digits, spaces, '-' and '_'."
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


def draw_evenly(bin: np.ndarray, bins: int, count: int, seed: int) -> np.ndarray:
    """Rows of elites, bin after bin, with an equal share of `count` for each; none for empty bins.

    Every elite of a bin is drawn once before any of them is drawn twice, and so on.

    Args:
        bin: bin of each elite, [n], -1 for none.
    """
    drawn = []
    for number, share in enumerate(shares(count, bins)):
        random = np.random.default_rng((seed, number))
        members = np.flatnonzero(bin == number)
        passes = -(-share // len(members)) if len(members) else 0
        rounds = [random.permutation(members) for _ in range(passes)]
        drawn.append(np.concatenate([members[:0], *rounds])[:share])
    return np.concatenate(drawn)
