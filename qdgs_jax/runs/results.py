"""The files of a run's folder: written at the end of the run, and read back.

config.toml          the resolved config (measure ranges in numbers)
provenance.json      models and their checksums, versions, device, precision
metrics.csv          a row every `run.log_every` generations
checkpoints/         the state every `run.checkpoint_every` generations; see `runs.checkpoints`
archive.safetensors  solution [n, D], objective [n], measures [n, M], index [n], by cell
archive.csv          the same as a table with pyribs' column names
summary.json         written after them: a folder with it holds a finished run
heatmap.png, curves.png, elites.png
"""

import csv
import dataclasses
import io
import json
import math
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import safetensors
import safetensors.numpy

from qdgs_jax import files, processes, sharding
from qdgs_jax.archives import GridArchive
from qdgs_jax.chunks import in_chunks
from qdgs_jax.config import Config, MeasureConfig, load_config
from qdgs_jax.errors import QDGSError
from qdgs_jax.problem import Problem
from qdgs_jax.runs import figures, verdict
from qdgs_jax.runs.metrics import Row
from qdgs_jax.schema import read_json
from qdgs_jax.search import SearchState
from qdgs_jax.typing import Images, Latents, Params

CONFIG = "config.toml"
"""The file that makes a folder a run's."""
ARCHIVE = "archive.safetensors"
SUMMARY = "summary.json"
TILE = 256
"""Pixels of the longer side of an elite in elites.png, at most."""
CHUNK_BYTES = 2**26
"""Latents that are brought from the devices at once."""
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


@dataclasses.dataclass
class _Model:
    name: str
    sha256: str


@dataclasses.dataclass
class _Summary:
    """What readers of a run need of its summary.json."""

    elites: int
    archive_sha256: str
    generator: _Model
    encoder: _Model | None
    precision: str
    device: str
    versions: dict[str, str]
    classifiers: dict[str, str] = dataclasses.field(default_factory=dict)
    """Name -> SHA-256."""


def load_run(path: str | Path) -> Run:
    """Reads a finished run.

    Raises:
        QDGSError: the folder holds no finished run, or what it holds is damaged or does not fit.
    """
    path = Path(path)
    if not (path / SUMMARY).is_file():
        raise QDGSError(
            f"{path} holds no finished run: finish it with `qdgs sample CONFIG --out {path} "
            "--resume`, or name another folder."
        )
    try:
        config = load_config(path / CONFIG)
        summary = read_json(path / SUMMARY)
        needed = pydantic.TypeAdapter(_Summary).validate_python(summary)
        archive = path / ARCHIVE
        if not archive.is_file() or files.sha256(archive) != needed.archive_sha256:
            raise ValueError(f"{ARCHIVE} is not the file that was written")
        elites = _read_elites(archive, config, needed.elites)
    except pydantic.ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise _damaged(path, f"{SUMMARY} has no such `{where}` as a run's") from None
    except (OSError, ValueError, QDGSError, safetensors.SafetensorError) as error:
        raise _damaged(path, str(error).rstrip(".")) from None
    return Run(config, elites, summary)


def _damaged(path: Path, reason: str) -> QDGSError:
    return QDGSError(
        f"The run in {path} is damaged ({reason}): run `qdgs sample` again with --resume."
    )


def _read_elites(path: Path, config: Config, count: int) -> Elites:
    """The archive's tensors; their types and shapes are compared before anything is read.

    Raises:
        ValueError: they are not the elites of such a config.
    """
    n, M = count, len(config.measures)
    if any(measure.range == "auto" for measure in config.measures):
        raise ValueError(f"{CONFIG} has a range that is not in numbers")
    if config.search.chunk_size == "auto":
        raise ValueError(f"{CONFIG} has a chunk_size that is not a number")
    wanted: dict[str, tuple[str, list[int | None]]] = {
        "solution": ("F32", [n, None]), "objective": ("F32", [n]), "measures": ("F32", [n, M]),
        "index": ("I32", [n]),
    }  # fmt: skip
    with safetensors.safe_open(path, framework="numpy") as archive:
        for name, (dtype, shape) in wanted.items():
            found = archive.get_slice(name) if name in archive.keys() else None  # noqa: SIM118
            sizes = found.get_shape() if found else []
            fits = len(sizes) == len(shape) and all(
                size == each or each is None for size, each in zip(sizes, shape, strict=True)
            )
            if not (found and found.get_dtype() == dtype and fits):
                raise ValueError(f"`{name}` of {ARCHIVE} does not fit the config and the summary")
        elites = Elites(*(archive.get_tensor(name) for name in wanted))
    for values in (elites.latents, elites.objective, elites.measures):
        if not np.isfinite(values).all():
            raise ValueError(f"{ARCHIVE} holds numbers that are not finite")
    index = elites.index.astype(np.int64)
    if n and not (index[0] >= 0 and index[-1] < _cells(config) and (np.diff(index) > 0).all()):
        raise ValueError(f"the cells in {ARCHIVE} are not those of the config")
    return elites


def _cells(config: Config) -> int:
    if config.archive.kind == "cvt":
        return config.archive.cells
    return math.prod(measure.cells for measure in config.measures)


def write(
    problem: Problem, out: Path, state: SearchState, rows: list[Row], seconds: dict[str, float]
) -> dict[str, Any]:
    """Writes the archive, its table, the summary, which it returns, and last the pictures.

    The run is finished by then: a picture that fails costs a warning. All processes collect the
    elites, process 0 writes.

    Args:
        rows: of metrics.csv; the last is of `state`.
        seconds: what compiling and running took.
    """
    elites = _collect(state)
    devices = sharding.devices()
    with sharding.no_mesh():  # process 0 draws alone
        return processes.first(lambda: _write(problem, out, elites, rows, devices, seconds))


def _write(
    problem: Problem,
    out: Path,
    elites: Elites,
    rows: list[Row],
    devices: int,
    seconds: dict[str, float],
) -> dict[str, Any]:
    tensors = {
        "solution": elites.latents,
        "objective": elites.objective,
        "measures": elites.measures,
        "index": elites.index,
    }
    files.write(out / ARCHIVE, safetensors.numpy.save(tensors))
    _write_table(out / "archive.csv", elites)
    last = rows[-1]
    judged = verdict.judge(problem, elites.latents, elites.objective, elites.measures, last)
    summary = {
        "qd_score": last["qd_score"],
        "qd_score_normalised": last["qd_score"] / problem.search.archive.size,
        "coverage": last["coverage"],
        "best_objective": last["best_objective"],
        "elites": len(elites.index),
        "generations": int(last["generation"]),
        "evaluations": int(last["evaluations"]),
        **seconds,
        "evaluations_per_second": last["evaluations"] / seconds["seconds_run"],
        "devices": devices,
        "archive_sha256": files.sha256(out / ARCHIVE),
        "verdict": judged.as_dict(),
        **problem.provenance(),
    }
    files.write(out / SUMMARY, json.dumps(summary, indent=2) + "\n")
    try:
        _draw(problem, out, elites, rows)
    except Exception as error:
        warnings.warn(
            f"The run in {out} is finished, but not all of its pictures could be drawn "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]}).",
            stacklevel=2,
        )
    return summary


def _collect(state: SearchState) -> Elites:
    """The filled cells of the elitist archive, on the host of process 0; latents in chunks."""
    archive = state.elites
    objective = np.asarray(archive.objective)
    index = np.flatnonzero(objective > -np.inf).astype(np.int32)
    _, D = archive.latents.shape
    size = max(1, min(len(index), CHUNK_BYTES // (D * archive.latents.dtype.itemsize)))
    take = jax.jit(lambda latents, rows: sharding.replicated(latents[rows]))
    latents = np.empty((len(index) if processes.is_first() else 0, D), objective.dtype)
    for start in range(0, len(index), size):
        rows = np.resize(index[start : start + size], size)
        chunk = take(archive.latents, rows)
        if processes.is_first():
            latents[start : start + size] = np.asarray(chunk)[: len(index) - start]
    return Elites(latents, objective[index], np.asarray(archive.measures)[index], index)


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
        images = _render_tiles(problem, elites.latents[list(tiles.values())])
        figures.draw_contact_sheet(out / "elites.png", measures, list(tiles), images)


def _render_tiles(problem: Problem, latents: np.ndarray) -> np.ndarray:
    """Images of latents [n, D], at most `TILE` pixels a side, in chunks as in the search."""

    @jax.jit
    def render(params: Params, latents: Latents) -> Images:
        def one_chunk(latents: Latents) -> Images:
            images = problem.generator.render(params, latents)
            height, width = images.shape[1:3]
            longer = max(height, width)
            if longer <= TILE:
                return images
            sides = (max(1, round(TILE * each / longer)) for each in (height, width))
            return jax.image.resize(images, (len(images), *sides, 3), "linear")

        return in_chunks(one_chunk, problem.config.search.chunk)(latents)

    return np.asarray(render(problem.params["generator"], jnp.asarray(latents)))


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
