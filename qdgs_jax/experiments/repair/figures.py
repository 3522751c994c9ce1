"""Plots accuracy after repair."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from qdgs_jax.runs.figures import save


def draw_accuracy(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Mean and worst accuracy over groups, by arm and bias: dots are seeds, lines are means.

    Args:
        rows: of `fairness.over_seeds`, each with its `bias` and `arm`.
    """
    biases, arms = (list(dict.fromkeys(row[about] for row in rows)) for about in ("bias", "arm"))
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    for axes, name in zip(panels, ("mean", "worst"), strict=True):
        for row in rows:
            place = arms.index(row["arm"])
            x = biases.index(row["bias"]) + (place + 1) / (len(arms) + 1) - 0.5
            seeds, colour = row[name]["seeds"], f"C{place}"
            axes.plot([x] * len(seeds), seeds, "o", color=colour, alpha=0.5, label=row["arm"])
            axes.plot(x, row[name]["mean"], "_", color=colour, markersize=12, markeredgewidth=2.5)
        axes.set_ylim(-0.05, 1.05)
        axes.set_ylabel(f"{name} of the groups")
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_title("accuracy: dots are seeds, lines are means", fontsize="medium")
    panels[1].set_xticks(range(len(biases)), [str(bias) for bias in biases])
    panels[1].set_xlabel("colour bias of the training drawings")
    handles, _ = panels[0].get_legend_handles_labels()
    figure.legend(handles=handles[: len(arms)], loc="outside lower center", ncols=4)
    save(figure, path)
