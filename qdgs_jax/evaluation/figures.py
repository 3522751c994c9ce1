"""Pictures of evaluations."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from qdgs_jax.evaluation.verification import roc
from qdgs_jax.runs.figures import save


def draw_roc(path: Path, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Rates of true matches over rates of false ones.

    Args:
        curves: name -> squared distances [P], and whether each pair shows one person [P].
    """
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    least = 1.0
    for name, (distances, same) in curves.items():
        false, true = roc(distances, same)
        axes.step(false, true, where="post", label=name)
        least = min(least, 1 / max(int((~same).sum()), 1))
    axes.set_xscale("log")
    axes.set_xlim(least, 1)
    axes.set_ylim(0, 1.01)
    axes.set_xlabel("pairs of two people that match")
    axes.set_ylabel("pairs of one person that match")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    save(figure, path)


def draw_frechet_distances(
    path: Path, distances: Mapping[str, tuple[Sequence[float], Sequence[float]]]
) -> None:
    """Bars of Frechet distances of several sets of images, with standard deviations over seeds.

    Args:
        distances: set -> those to a biased and to a balanced reference, of each seed [S].
    """
    figure = Figure(figsize=(1.5 + 1.1 * len(distances), 3.5), layout="constrained")
    axes = figure.subplots()
    for place, (reference, colour) in enumerate((("biased", "0.7"), ("balanced", "tab:orange"))):
        seeds = [np.asarray(both[place]) for both in distances.values()]
        axes.bar(
            np.arange(len(seeds)) + 0.4 * (place - 0.5),
            [each.mean() for each in seeds],
            0.4,
            yerr=[each.std(ddof=1) if len(each) > 1 else 0 for each in seeds],
            label=f"to {reference} images",
            color=colour,
        )
    axes.set_xticks(range(len(distances)), [name.replace(" ", "\n") for name in distances])
    axes.set_ylabel("Frechet distance")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=2)
    save(figure, path)


def draw_class_shares(path: Path, shares: Mapping[str, np.ndarray], classes: Sequence[str]) -> None:
    """A bar for each set of images, divided by classes; dashed lines divide it evenly.

    Args:
        shares: set -> shares of all K classes, of each seed [S, K]; the bar shows their means.
    """
    figure = Figure(figsize=(8, 1.2 + 0.4 * len(shares)), layout="constrained")
    axes = figure.subplots()
    means = np.array([np.mean(each, axis=0) for each in shares.values()])  # [sets, K]
    starts = np.cumsum(means, axis=1) - means
    colours = colormaps["viridis"](np.linspace(0, 1, len(classes)))
    for name, start, mean, colour in zip(classes, starts.T, means.T, colours, strict=True):
        axes.barh(range(len(shares)), 100 * mean, left=100 * start, label=name, color=colour)
    for edge in range(1, len(classes)):
        axes.axvline(100 * edge / len(classes), color="black", linestyle="--", linewidth=0.8)
    axes.set_yticks(range(len(shares)), list(shares))
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of images")
    figure.legend(loc="outside upper center", ncols=min(len(classes), 6))
    save(figure, path)
