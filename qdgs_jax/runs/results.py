"""The files of a run's folder: written at the end of the run, and read back.

config.toml          the resolved config (measure ranges in numbers)
provenance.json      models and their checksums, versions, device, precision
metrics.csv          a row every `run.log_every` generations
checkpoints/         Orbax
archive.safetensors  solution [n, D], objective [n], measures [n, M], index [n], by cell
archive.csv          the same as a table with pyribs' column names
heatmap.png, curves.png, elites.png
summary.json         written last: a folder with it holds a finished run
"""

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from qdgs_jax import files, provenance
from qdgs_jax.archives import GridArchive
from qdgs_jax.config import Config, MeasureConfig, load_config
from qdgs_jax.errors import QDGSError
from qdgs_jax.problem import Problem
from qdgs_jax.runs import figures, metrics
from qdgs_jax.runs.metrics import Row
from qdgs_jax.search import SearchState

CONFIG = "config.toml"
"""The file that makes a folder a run's."""
MAX_TABLE_LATENT = 64
"""archive.csv has no latents longer than this; it would grow to gigabytes."""


@dataclasses.dataclass(frozen=True)
class Elites:
    """The elitist archive's filled cells, by cell."""

    latents: np.ndarray  # [n, D]
    objective: np.ndarray  # [n]
    measures: np.ndarray  # [n, M]
    index: np.ndarray  # [n] int32


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run, read from its folder."""

    config: Config
    elites: Elites
    summary: dict[str, Any]


def load_run(path: str | Path) -> Run:
    """Reads a finished run.

    Raises:
        QDGSError: the folder holds no finished run, or its archive is damaged.
    """
    path = Path(path)
    if not (path / "summary.json").is_file():
        raise QDGSError(
            f"{path} holds no finished run: finish it with `qdgs sample CONFIG --out {path} "
            "--resume`, or name another folder."
        )
    try:
        tensors = safetensors.numpy.load_file(path / "archive.safetensors")
        elites = Elites(*(tensors[k] for k in ("solution", "objective", "measures", "index")))
        summary = json.loads((path / "summary.json").read_text())
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise QDGSError(
            f"The run in {path} is damaged ({error}): run `qdgs sample` again with --resume."
        ) from None
    return Run(load_config(path / CONFIG), elites, summary)


def write(
    problem: Problem, out: Path, state: SearchState, seconds: dict[str, float]
) -> dict[str, Any]:
    """Writes the archive, its table and the pictures, then the summary, and returns the summary."""
    elites = _collect(state)
    tensors = {
        "solution": elites.latents,
        "objective": elites.objective,
        "measures": elites.measures,
        "index": elites.index,
    }
    files.write(out / "archive.safetensors", safetensors.numpy.save(tensors))
    _write_table(out / "archive.csv", elites)
    rows = metrics.read(out)
    _draw(problem, out, elites, rows)

    last = rows[-1]
    summary = {
        "qd_score": last["qd_score"],
        "qd_score_normalised": last["qd_score"] / problem.search.archive.size,
        "coverage": last["coverage"],
        "best_objective": last["best_objective"],
        "elites": len(elites.index),
        "generations": int(last["generation"]),
        "evaluations": int(last["evaluations"]),
        "non_finite": int(last["non_finite"]),
        **seconds,
        "evaluations_per_second": last["evaluations"] / seconds["seconds_run"],
        **provenance.describe(problem.generator, problem.encoder, problem.config),
    }
    files.write(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _collect(state: SearchState) -> Elites:
    """The filled cells of the elitist archive, on the host."""
    archive = jax.device_get(state.elites)
    index = np.flatnonzero(archive.objective > -np.inf).astype(np.int32)
    return Elites(archive.latents[index], archive.objective[index], archive.measures[index], index)


def _write_table(path: Path, elites: Elites) -> None:
    """Columns index, solution_*, objective, measures_*, as pyribs' ArchiveDataFrame has them."""
    D, M = elites.latents.shape[1], elites.measures.shape[1]
    table = np.hstack(
        [elites.latents, elites.objective[:, None], elites.measures]
        if D <= MAX_TABLE_LATENT
        else [elites.objective[:, None], elites.measures]
    )
    solution = [f"solution_{i}" for i in range(D)] if D <= MAX_TABLE_LATENT else []
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["index", *solution, "objective", *(f"measures_{i}" for i in range(M))])
    for cell, row in zip(elites.index.tolist(), table, strict=True):
        writer.writerow([cell, *(str(value) for value in row)])
    files.write(path, text.getvalue())


def _draw(problem: Problem, out: Path, elites: Elites, rows: list[Row]) -> None:
    measures, index = _plane(problem, elites)
    figures.draw_curves(out / "curves.png", rows)
    figures.draw_heatmap(
        out / "heatmap.png", measures, index, elites.objective, cells=problem.search.archive.size
    )
    tiles = figures.choose_tiles(measures, index, elites.objective)
    if tiles:
        images = jax.jit(problem.generator.render)(
            problem.params["generator"], elites.latents[list(tiles.values())]
        )
        figures.draw_contact_sheet(out / "elites.png", measures, list(tiles), np.asarray(images))


def _plane(problem: Problem, elites: Elites) -> tuple[tuple[MeasureConfig, ...], np.ndarray]:
    """The grid of the pictures, as its measures, and the cell of each elite in that grid.

    Elites of an archive that is not a grid are shown on a grid over its first two measures.
    """
    measures, archive = problem.config.measures, problem.search.archive
    if isinstance(archive, GridArchive):
        return measures, elites.index
    shown = measures[:2]
    grid = GridArchive(tuple(m.cells for m in shown), archive.lower[:2], archive.upper[:2])
    return shown, np.asarray(grid.index_of(jnp.asarray(elites.measures[:, :2])))
