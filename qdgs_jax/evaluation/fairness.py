"""Predicted classes by group -> accuracy of each group, the worst one, and equalised odds.

"Counts" are arrays [..., G, K]: the number of images of group g with the predicted class k.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special, stats

GAP = "equalised odds gap"
NO_GAP = (
    "No label has two groups to compare, so there is no equalised odds gap: test on images in "
    "which each label has several groups."
)


class Groups(NamedTuple):
    """Groups of images: each has one label and one value of the protected attribute."""

    names: tuple[str, ...]
    labels: np.ndarray  # [G] int, position of the group's label among the classes
    of: np.ndarray  # [N] int, group of each image


def count(predicted: np.ndarray, groups: Groups, *, classes: int) -> np.ndarray:
    """Counts [..., G, K] of predicted classes [..., N]."""
    size = len(groups.names), classes
    flat = np.asarray(predicted).reshape(-1, len(groups.of))
    counts = np.stack(
        [np.bincount(groups.of * classes + row, minlength=math.prod(size)) for row in flat]
    )
    return counts.reshape(*np.shape(predicted)[:-1], *size)


def measure(counts: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Fairness of a classifier, from counts [..., G, K] and the groups' labels [G].

    Returns:
        "accuracy" [..., G], in [0, 1]; its "mean" and "worst" [...] over groups; "equalised odds
        gap" [...]: the largest difference between two groups of one label in the rate of one
        predicted class (0 is fair; Hardt et al. 2016, "Equality of opportunity in supervised
        learning"), NaN if no label has two groups.
    """
    rates = counts / counts.sum(axis=-1, keepdims=True)
    accuracy = rates[..., np.arange(len(labels)), labels]
    return {
        "accuracy": accuracy,
        "mean": accuracy.mean(axis=-1),
        "worst": accuracy.min(axis=-1),
        GAP: _largest_difference(rates, rates, labels),
    }


def intervals(
    counts: np.ndarray, labels: np.ndarray, *, level: float = 0.95, draws: int = 2000
) -> dict[str, np.ndarray]:
    """Confidence intervals of `measure` of counts [G, K], for the choice of test images.

    Each covers the value for infinitely many images with at least probability `level`, groups being
    independent. A rate has its exact interval (Clopper and Pearson 1934). The worst group and the
    gap are bounded over the box of all rates' simultaneous intervals: the quantiles of a posterior
    would not cover them, since the extreme of noisy rates is biased. The mean has the quantiles of
    means of the Beta variables whose quantiles are the ends of the rates' intervals.

    Returns:
        The keys of `measure`, each with ends [2, ...].
    """
    groups, classes = counts.shape
    tail = (1 - level) / 2
    right, total = counts[np.arange(groups), labels], counts.sum(axis=-1)
    random = np.random.default_rng(0)
    low = random.beta(np.maximum(right, 1), total - right + 1, size=(draws, groups))
    high = random.beta(right + 1, np.maximum(total - right, 1), size=(draws, groups))
    means = (
        np.where(right == 0, 0, low).mean(axis=1),
        np.where(right == total, 1, high).mean(axis=1),
    )
    rates = groups * (1 if classes == 2 else classes)  # of two classes, one rate implies the other
    low, high = exact_interval(counts, total[:, None], tail / rates)
    return {
        "accuracy": exact_interval(right, total, tail),
        "mean": np.array([np.quantile(means[0], tail), np.quantile(means[1], 1 - tail)]),
        "worst": exact_interval(right, total, tail / groups).min(axis=-1),
        GAP: np.array(
            [
                np.maximum(_largest_difference(low, high, labels), 0),
                _largest_difference(high, low, labels),
            ]
        ),
    }


def over_seeds(counts: np.ndarray, groups: Groups) -> dict[str, dict[str, Any] | None]:
    """Each value of `measure` of counts [S, G, K]: "seeds", "mean", "spread" and "interval".

    The spread is the standard deviation over seeds. The interval is a 95 % confidence interval of
    the mean over infinitely many seeds and images: the root of the sum of squares of two
    half-widths. Seeds share the test images, so the images' half-width is the mean of those of
    single seeds; the seeds' half-width is that of Student's t. One seed has the images' alone.

    Returns:
        None for a gap that does not exist.
    """
    size = len(counts)
    measured = measure(counts, groups.labels)
    each = [intervals(seed, groups.labels) for seed in counts]
    ends = {name: np.mean([seed[name] for seed in each], axis=0) for name in measured}
    for named in (measured, ends):
        accuracy = named.pop("accuracy")
        named |= {name: accuracy[..., group] for group, name in enumerate(groups.names)}
    student = stats.t(size - 1).ppf(0.975) / math.sqrt(size) if size > 1 else 0.0
    found: dict[str, dict[str, Any] | None] = {}
    for name, values in measured.items():
        mean, spread = float(values.mean()), float(values.std(ddof=min(1, size - 1)))
        if math.isnan(mean):
            found[name] = None
            continue
        low, high = (math.hypot(mean - end, student * spread) for end in ends[name])
        found[name] = {
            "mean": mean,
            "spread": spread,
            "interval": [max(mean - low, 0.0), min(mean + high, 1.0)],
            "seeds": values.tolist(),
        }
    return found


def _largest_difference(high: np.ndarray, low: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """max of high_g - low_h over classes and groups g, h of one label: [..., G, K] -> [...]."""
    indices = itertools.permutations(range(len(labels)), 2)
    pairs = [(g, h) for g, h in indices if labels[g] == labels[h]]
    if not pairs:
        return np.full(high.shape[:-2], np.nan)
    g, h = np.transpose(pairs)
    return (high[..., g, :] - low[..., h, :]).max(axis=(-2, -1))


def exact_interval(right: np.ndarray, total: np.ndarray, tail: float) -> np.ndarray:
    """Ends [2, ...] of the interval of Clopper and Pearson, each beyond it with at most `tail`.

    Numbers of images need not be whole: in a sample of dependent ones they are fewer.
    """
    low = special.betaincinv(np.maximum(right, 1), total - right + 1, tail)
    high = special.betaincinv(right + 1, np.maximum(total - right, 1), 1 - tail)
    return np.stack([np.where(right == 0, 0, low), np.where(right == total, 1, high)])


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of `over_seeds` in Markdown, each with its `bias` (if any) and `arm`.

    Values are means and standard deviations over seeds; without a bias, also intervals. A sentence
    says why a gap is missing.
    """
    about = [name for name in ("bias", "arm") if name in rows[0]]
    names = [name for name in rows[0] if name not in about]
    lines = [
        "| " + " | ".join([*about, *names]) + " |",
        "|" + "---|" * len(about) + "---:|" * len(names),
    ]
    for row in rows:
        cells = [str(row[name]) for name in about]
        for name in names:
            if row[name] is None:
                cells.append("none")
                continue
            value = f"{row[name]['mean']:.3f} ± {row[name]['spread']:.3f}"
            low, high = row[name]["interval"]
            cells.append(value if "bias" in row else f"{value} [{low:.3f}, {high:.3f}]")
        lines.append("| " + " | ".join(cells) + " |")
    if any(row.get(GAP, 0) is None for row in rows):
        lines += ["", NO_GAP]
    return "\n".join(lines) + "\n"
