"""Assigns rows of measures to bins, draws evenly from bins, and proposes bins."""

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from qdgs_jax.config import MAX_BINS, BinConfig, Config, Interval, MeasureConfig
from qdgs_jax.errors import ConfigError, QDGSError, did_you_mean, shorten

EVERYTHING = BinConfig(name="all", label="all", where={})
"""The one bin of a config without bins."""
UNLABELLED = "unlabelled"
"""Class folder of images that no bin holds."""
MAX_LABEL = 200  # bytes; file systems take 255
QUANTILES = (0, 10, 25, 50, 75, 90, 100)
"""Per cent, in a survey."""
Split = Literal["quantiles", "equal"]

_END = r"[-+]?(?:\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|inf)"
_CONDITION = re.compile(rf"\s*(.+?)\s*=\s*({_END})?\s*\.\.\s*({_END})?\s*")


def bins_of(config: Config) -> tuple[BinConfig, ...]:
    """The bins to fill; if the config has none, one bin that holds everything.

    Raises:
        ConfigError: a bin's label cannot be the name of a folder everywhere.
    """
    for bin in config.export.bins:
        if not _names_a_folder(bin.label):
            raise ConfigError(
                f"The label '{bin.label[:MAX_LABEL]}' of bin '{bin.name}' cannot be the name of a "
                f"class folder: use up to {MAX_LABEL} letters, digits, spaces, '-' and '_', and "
                f"not '{UNLABELLED}'."
            )
    return config.export.bins or (EVERYTHING,)


def _names_a_folder(label: str) -> bool:
    fits = re.fullmatch(r"\w([\w +,()=-]*[\w)])?", label)
    return bool(fits) and len(label.encode()) <= MAX_LABEL and label != UNLABELLED


def with_bins(config: Config, bins: Sequence[BinConfig]) -> Config:
    """The config with these bins in place of its own.

    Raises:
        ConfigError: two have one name, or one names a measure that the config lacks.
    """
    export = dataclasses.replace(config.export, bins=tuple(bins))
    return dataclasses.replace(config, export=export)


def parse_bin(text: str) -> BinConfig:
    """The bin of "NAME:LABEL:measure=low..high,measure2=low..high"; ends left out are open.

    Raises:
        ConfigError: the text is none, or an interval is empty.
    """
    name, label, conditions = (*text.split(":", 2), "", "")[:3]
    where: dict[str, Interval] = {}
    for condition in conditions.split(","):
        found = _CONDITION.fullmatch(condition)
        if not found or found[1] in where:
            raise ConfigError(
                f"The bin '{shorten(text)}' is not NAME:LABEL:measure=low..high,measure2=..high "
                "with each measure once: correct it, or write it into a file for --bins."
            )
        where[found[1]] = float(found[2] or "-inf"), float(found[3] or "inf")
    return BinConfig(name=name.strip(), label=label.strip(), where=where)


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


def survey(
    config: Config,
    objective: np.ndarray,
    measures: np.ndarray,
    *,
    min_objective: float = -math.inf,
    split: Split = "quantiles",
    parts: int = 2,
    names: Sequence[str] = (),
) -> dict[str, Any]:
    """What elites there are: by measure, in the config's bins, and in bins that are proposed.

    Args:
        objective: of the elites, [n].
        measures: of the elites, [n, M].
        min_objective: elites below it are counted and left out.
        split, parts, names: of `propose_bins`.

    Returns:
        Plain JSON values; an open end of an interval is None. `toml` has the proposed bins as
        `config.load_bins` reads them.

    Raises:
        ConfigError: as `bins_of` and `propose_bins`.
        QDGSError: no elite is left.
    """
    kept = measures[objective >= min_objective]
    below = len(measures) - len(kept)
    if not len(kept):
        raise QDGSError(
            f"There are {len(measures)} elites, {below} of them with an objective below "
            f"{min_objective:g}, so bins would hold none: lower `min_objective`, or search longer."
        )
    proposed = propose_bins(config, kept, split=split, parts=parts, names=names)
    own, new = (_counted(config, bins, kept) for bins in (bins_of(config), proposed))
    return {
        "elites": len(measures),
        "min_objective": min_objective if math.isfinite(min_objective) else None,
        "below_min_objective": below,
        "measures": [
            {
                "measure": measure.name,
                "range": list(measure.ends),
                **{f"{each}%": float(np.percentile(values, each)) for each in QUANTILES},
            }
            for measure, values in zip(config.measures, kept.T, strict=True)
        ],
        "bins": own,
        "outside_bins": len(kept) - sum(each["elites"] for each in own),
        "proposed": new,
        "toml": as_toml(proposed, [f"{each['elites']} elites" for each in new]),
    }


def _counted(
    config: Config, bins: Sequence[BinConfig], measures: np.ndarray
) -> list[dict[str, Any]]:
    found = assign_bins(config, bins, measures)
    return [
        {
            "bin": bin.name,
            "label": bin.label,
            "where": {
                name: [end if math.isfinite(end) else None for end in ends]
                for name, ends in bin.where.items()
            },
            "elites": int((found == number).sum()),
        }
        for number, bin in enumerate(bins)
    ]


def propose_bins(
    config: Config,
    measures: np.ndarray,
    *,
    split: Split = "quantiles",
    parts: int = 2,
    names: Sequence[str] = (),
) -> tuple[BinConfig, ...]:
    """Bins for all combinations of equal parts of measures; the outer parts have open ends.

    Args:
        measures: of elites, [n, M], n at least 1.
        split: into parts of equally many elites, as far as equal values allow, or of equal width.
        parts: of each measure.
        names: measures to divide; without any, all.

    Raises:
        ConfigError: a name is not that of a measure, or the bins are too few or too many.
    """
    known = [measure.name for measure in config.measures]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"There is no measure '{shorten(name)}'{did_you_mean(name, known)}: name some of "
                f"{', '.join(known)}."
            )
    divided = [number for number, name in enumerate(known) if name in names or not names]
    if not 2 <= parts <= MAX_BINS or parts ** len(divided) > MAX_BINS:
        raise ConfigError(
            f"{parts} parts of each of {len(divided)} measures are impossible: choose at least 2, "
            f"and parts and measures that make at most {MAX_BINS} bins."
        )
    axes = []
    for number in divided:
        edges = _edges(config.measures[number], measures[:, number], split, parts)
        ends = list(itertools.pairwise([-math.inf, *edges, math.inf]))
        words = {2: ("low", "high"), 3: ("low", "middle", "high")}.get(
            len(ends), [f"{part + 1} of {len(ends)}" for part in range(len(ends))]
        )
        axes.append([(known[number], *each) for each in zip(words, ends, strict=True)])
    return tuple(
        _proposed(number, [part for part in each if part[2] != (-math.inf, math.inf)])
        for number, each in enumerate(itertools.product(*axes))
    )


def _proposed(number: int, parts: list[tuple[str, str, Interval]]) -> BinConfig:
    """A bin, named and labelled by its parts where these can be the name of a folder."""
    label = ", ".join(f"{name} {word}" for name, word, _ in parts) or EVERYTHING.label
    label = re.sub(r"[^\w +,()=-]", "_", label)
    if not _names_a_folder(label) or len(label) > 100:
        label = f"bin {number + 1}"
    return BinConfig(name=label, label=label, where={name: ends for name, _, ends in parts})


def _edges(measure: MeasureConfig, values: np.ndarray, split: Split, parts: int) -> list[float]:
    """Where a measure is divided, rounded; fewer edges where values are alike.

    Args:
        values: of elites, [n].
    """
    inner = np.arange(1, parts) / parts
    if split == "equal":
        low, high = measure.ends
        edges = [low + share * (high - low) for share in inner]
    else:
        low, high, edges = float(values.min()), float(values.max()), []
        start = low  # least value of the part that the next edge ends
        for value in np.quantile(values, inner, method="higher"):
            if start < high:
                start = max(float(value), float(values[values > start].min()))
                edges.append((float(values[values < start].max()) + start) / 2)
    digits = 5 - math.floor(math.log10(high - low)) if high > low else 0
    rounded = sorted({round(edge, digits) for edge in edges})
    return [edge for edge in rounded if low < edge <= high]


def as_toml(bins: Sequence[BinConfig], comments: Sequence[str]) -> str:
    """The file of bins that `config.load_bins` reads, with a comment to each."""
    lines = []
    for bin, comment in zip(bins, comments, strict=True):
        where = (
            f"{name if re.fullmatch(r'[A-Za-z0-9_-]+', name) else _quoted(name)} = {list(ends)}"
            for name, ends in bin.where.items()
        )
        lines += [
            f"[[bins]] # {comment}",
            f"name = {_quoted(bin.name)}",
            f"label = {_quoted(bin.label)}",
            f"where = {{ {', '.join(where)} }}",
            "",
        ]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    """As a string of TOML: one of JSON, where DEL is escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
