"""Pictures of evaluations."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
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
