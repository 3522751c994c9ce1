"""How often each group was given each class -> accuracy by group, the worst, and the gap.

"Counts" are arrays [..., G, K]: how many images of group g were given class k.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Groups(NamedTuple):
    """Who is compared: images of one label and one value of the protected attribute."""

    names: tuple[str, ...]
    labels: np.ndarray  # [G] int, position of the group's label among the classes
    of: np.ndarray  # [N] int, group of each image


def count(predicted: np.ndarray, groups: Groups, *, classes: int) -> np.ndarray:
    """How often each group's images were given each class: predicted [..., N] -> [..., G, K]."""
    size = len(groups.names), classes
    flat = np.asarray(predicted).reshape(-1, len(groups.of))
    counts = np.stack(
        [np.bincount(groups.of * classes + row, minlength=math.prod(size)) for row in flat]
    )
    return counts.reshape(*np.shape(predicted)[:-1], *size)


def measure(counts: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Fairness of a classifier, from counts [..., G, K] and the groups' labels [G].

    Returns:
        "accuracy" [..., G]; "mean" and "worst" [...] of these; "equalised odds gap" [...]: how far
        apart the rates are, at most, at which groups of one label are given one class (0 is fair;
        Hardt et al. 2016, "Equality of opportunity in supervised learning").
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
    """Where `measure` of counts [G, K] would lie, were there endless images of each group.

    Each group's rates are drawn from their distribution given the counts (Jeffreys' prior); so a
    group of ten images that are all right has a wide interval too. The measured value is inside.

    Returns:
        The keys of `measure`, each with ends [2, ...].
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
    """Each number of `measure` of counts [S, G, K]: its seeds, mean, spread and interval.

    The interval tells how much the choice of test images matters, the spread how much the seed
    does: it is that of one seed, its ends averaged over seeds.
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
    """Rows of `over_seeds` in Markdown, with the `bias` (if any) and `arm` that each is about.

    Numbers are means and standard deviations over seeds; without a bias, intervals too.
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
