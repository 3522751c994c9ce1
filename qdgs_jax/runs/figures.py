"""Pictures of a run: its archive as a heatmap, its metrics as curves, and its elites."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from qdgs_jax import files
from qdgs_jax.config import MeasureConfig

MAX_PLANE = 1000


def draw_heatmap(
    path: Path,
    measures: Sequence[MeasureConfig],
    index: np.ndarray,
    objective: np.ndarray,
    *,
    cells: int,
) -> None:
    """Objective of the elites over the first two measures; the best one over any other measures.

    Of more than `MAX_PLANE` cells along a measure, several share a place.

    Args:
        index: [n] cells of the elites.
        objective: [n] their objectives.
        cells: number of cells of the archive.
    """
    shape = tuple(min(MAX_PLANE, cells) for cells in _plane_shape(measures))
    grid = np.full(shape, -np.inf)
    np.maximum.at(grid, _blocks(measures, index, shape), objective)
    figure = Figure(figsize=(6, 4.8 if shape[1] > 1 else 2), layout="constrained")
    axes = figure.subplots()
    mesh = axes.pcolormesh(
        *_plane_edges(measures, shape), np.ma.masked_invalid(grid).T, cmap="viridis"
    )
    figure.colorbar(mesh, label="objective")
    axes.set_title(f"{len(index)} elites in {cells} cells")
    _label(axes, measures)
    save(figure, path)


def draw_curves(path: Path, rows: Sequence[dict[str, float]]) -> None:
    """QD score, coverage and objective over evaluations, from the rows of metrics.csv."""
    evaluations = [row["evaluations"] for row in rows]
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    panels = (["qd_score"], ["coverage"], ["best_objective", "mean_objective"])
    for axes, names in zip(figure.subplots(1, 3), panels, strict=True):
        for name in names:
            axes.plot(evaluations, [row[name] for row in rows], label=name.replace("_", " "))
        axes.set_xlabel("evaluations")
        axes.legend(loc="lower right")
        axes.ticklabel_format(axis="both", style="sci", scilimits=(-2, 4))
    save(figure, path)


def choose_tiles(
    measures: Sequence[MeasureConfig], index: np.ndarray, objective: np.ndarray, across: int = 12
) -> dict[tuple[int, int], int]:
    """The best elite of each block of cells: (column, row) -> row of the archive."""
    shape = tuple(min(across, cells) for cells in _plane_shape(measures))
    columns, rows = _blocks(measures, index, shape)
    tiles: dict[tuple[int, int], int] = {}
    for elite in np.argsort(objective, kind="stable"):  # the best is the last to be written
        tiles[int(columns[elite]), int(rows[elite])] = int(elite)
    return tiles


def draw_contact_sheet(
    path: Path,
    measures: Sequence[MeasureConfig],
    tiles: Sequence[tuple[int, int]],
    images: np.ndarray,
    across: int = 12,
) -> None:
    """Elites laid out over the first two measures.

    Args:
        tiles: (column, row) of each image, as `choose_tiles` numbers them.
        images: [n, H, W, 3] in [0, 1].
    """
    columns, rows = (min(across, cells) for cells in _plane_shape(measures))
    height, width = images.shape[1:3]
    sheet = np.full((rows * height, columns * width, 3), 0.92, np.float32)
    for (column, row), image in zip(tiles, images, strict=True):
        top = (rows - 1 - row) * height  # the second measure points upwards
        sheet[top : top + height, column * width : (column + 1) * width] = image
    x, y = _plane_edges(measures, (1, 1))
    figure = Figure(figsize=(8, 8 * len(sheet) / sheet.shape[1] + 0.5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(
        sheet, extent=(x[0], x[-1], y[0], y[-1]), aspect="auto", interpolation="antialiased"
    )
    _label(axes, measures)
    save(figure, path)


def _plane_shape(measures: Sequence[MeasureConfig]) -> tuple[int, int]:
    return measures[0].cells, measures[1].cells if len(measures) > 1 else 1


def _plane_index(
    measures: Sequence[MeasureConfig], index: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cells along the first two measures."""
    axes = np.unravel_index(index, [measure.cells for measure in measures])
    return axes[0], axes[1] if len(measures) > 1 else np.zeros_like(axes[0])


def _blocks(
    measures: Sequence[MeasureConfig], index: np.ndarray, shape: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Places of elites along the first two measures, where these have `shape` blocks of cells."""
    columns, rows = (
        position * blocks // cells
        for position, blocks, cells in zip(
            _plane_index(measures, index), shape, _plane_shape(measures), strict=True
        )
    )
    return columns, rows


def _plane_edges(
    measures: Sequence[MeasureConfig], shape: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    edges = [np.linspace(*m.ends, n + 1) for m, n in zip(measures, shape, strict=False)]
    return edges[0], edges[1] if len(measures) > 1 else np.array([0.0, 1.0])


def _label(axes, measures: Sequence[MeasureConfig]) -> None:  # type: ignore[no-untyped-def]
    def meaning(measure: MeasureConfig) -> str:
        if not measure.has_prompts:
            return measure.name
        return f"{measure.name}\n{measure.low}  ←→  {measure.high}"

    axes.set_xlabel(meaning(measures[0]), fontsize="small")
    if len(measures) > 1:
        axes.set_ylabel(meaning(measures[1]), fontsize="small")
    else:
        axes.set_yticks([])


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG whose bytes depend only on the figure."""
    with files.replacing(path) as file:
        figure.savefig(file, dpi=110, format="png", metadata={"Software": None})
