"""Predicted classes by group -> accuracy of each group, the worst one, and equalised odds.

"Counts" are arrays [..., G, K]: the number of images of group g with the predicted class k.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


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
        learning").
    """
    rates = counts / counts.sum(axis=-1, keepdims=True)
    accuracy = rates[..., np.arange(len(labels)), labels]
    gaps = [np.ptp(rates[..., labels == label, :], axis=-2).max(axis=-1) for label in set(labels)]
    return {
        "accuracy": accuracy,
        "mean": accuracy.mean(axis=-1),
        "worst": accuracy.min(axis=-1),
        "equalised odds gap": np.max(gaps, axis=0),
    }


def intervals(
    counts: np.ndarray, labels: np.ndarray, *, level: float = 0.95, draws: int = 4000
) -> dict[str, np.ndarray]:
    """Credible intervals of `measure`, given the counts [G, K] of finitely many images.

    Each group's rates are drawn from their posterior given the counts (Jeffreys' prior), so that a
    group of ten correct images has a wide interval too. The interval contains the measured value.

    Returns:
        The keys of `measure`, each with the ends of its interval [2, ...].
    """
    random = np.random.default_rng(0)
    rates = np.stack([random.dirichlet(group + 0.5, size=draws) for group in counts], axis=1)
    drawn, measured = measure(rates, labels), measure(counts, labels)
    tail = (1 - level) / 2
    ends = {name: np.quantile(values, [tail, 1 - tail], axis=0) for name, values in drawn.items()}
    return {
        name: np.stack([np.minimum(low, measured[name]), np.maximum(high, measured[name])])
        for name, (low, high) in ends.items()
    }


def over_seeds(counts: np.ndarray, groups: Groups) -> dict[str, dict[str, Any]]:
    """Each value of `measure` of counts [S, G, K]: "seeds", "mean", "spread" and "interval".

    The spread is the standard deviation over seeds. The interval is that of one seed, with its ends
    averaged over seeds: it shows the effect of the choice of test images.
    """
    measured = measure(counts, groups.labels)
    each = [intervals(seed, groups.labels) for seed in counts]
    ends = {name: np.mean([seed[name] for seed in each], axis=0) for name in measured}
    for values in (measured, ends):
        accuracy = values.pop("accuracy")
        values |= {name: accuracy[..., group] for group, name in enumerate(groups.names)}
    return {
        name: {
            "mean": float(values.mean()),
            "spread": float(values.std(ddof=min(1, len(values) - 1))),
            "interval": ends[name].tolist(),
            "seeds": values.tolist(),
        }
        for name, values in measured.items()
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of `over_seeds` in Markdown, each with its `bias` (if any) and `arm`.

    Values are means and standard deviations over seeds; without a bias, also intervals.
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
            value = f"{row[name]['mean']:.3f} ± {row[name]['spread']:.3f}"
            low, high = row[name]["interval"]
            cells.append(value if "bias" in row else f"{value} [{low:.3f}, {high:.3f}]")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
