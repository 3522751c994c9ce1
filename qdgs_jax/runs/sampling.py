"""A run's folder: the resolved config, metrics, checkpoints, the archive and its pictures.

config.toml          the resolved config (measure ranges in numbers)
provenance.json      models and their checksums, versions, device, precision
metrics.csv          a row every `run.log_every` generations
checkpoints/         Orbax
archive.safetensors  solution [n, D], objective [n], measures [n, M], index [n], by cell
archive.csv          the same as a table with pyribs' column names
heatmap.png, curves.png, elites.png
summary.json         written last: a folder with it holds a finished run
"""

import contextlib
import csv
import dataclasses
import importlib.metadata
import io
import json
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import safetensors
import safetensors.numpy

from qdgs_jax import files, search
from qdgs_jax.config import Config, load_config, save_config
from qdgs_jax.encoders import Encoder
from qdgs_jax.errors import CheckpointError, ConfigError, QDGSError
from qdgs_jax.generators import Generator
from qdgs_jax.problem import Problem, load_problem
from qdgs_jax.runs import figures
from qdgs_jax.search import SearchState

MAX_TABLE_LATENT = 64
"""Latents longer than this stay out of archive.csv, which would grow to gigabytes."""

Row = dict[str, float]
Report = Callable[[Row], None]


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


def sample(
    config: Config, out: Path, *, resume: bool = False, report: Report | None = None
) -> dict[str, Any]:
    """Runs the search of `config` in the folder `out`, from the start or from its last checkpoint.

    Args:
        report: called with every row of metrics.

    Returns:
        What summary.json holds.

    Raises:
        ConfigError: the folder holds another run, or this one and `resume` is false.
        QDGSError: interrupted by a signal (a checkpoint is kept), or out of disk space.
    """
    _check_folder(out, resume)
    problem = load_problem(config)
    with files.interruptions_explained(out, again="run the same command with --resume"):
        _claim_folder(out, problem)
        with ocp.CheckpointManager(
            (out / "checkpoints").absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=2, save_interval_steps=1, enable_async_checkpointing=False
            ),
        ) as checkpoints:
            state, seconds = _search(problem, out, checkpoints, report)
        return _write_results(problem, out, state, seconds)


def load_run(path: Path) -> Run:
    """Reads a finished run.

    Raises:
        QDGSError: the folder holds no finished run, or its archive is damaged.
    """
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
    return Run(load_config(path / "config.toml"), elites, summary)


def provenance(generator: Generator, encoder: Encoder | None, config: Config) -> dict[str, Any]:
    """What made a result: models, versions, device, precision."""
    return {
        "generator": {"name": generator.name, "sha256": generator.sha256},
        "encoder": encoder and {"name": encoder.name, "sha256": encoder.sha256},
        "precision": config.encoder.precision,
        "seed": config.seed,
        **environment(),
    }


def environment() -> dict[str, Any]:
    """What a result was computed on and with: device, versions."""
    packages = ("jax", "jaxlib", "flax", "numpy", "optax", "orbax-checkpoint", "qdgs-jax")
    return {
        "device": f"{jax.devices()[0].device_kind} x {jax.device_count()}",
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
        },
    }


def _check_folder(out: Path, resume: bool) -> None:
    """Refuses a folder that would mix two runs, before anything slow happens."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is not a folder: choose another --out.")
    if (out / "config.toml").is_file():
        if not resume:
            raise ConfigError(
                f"{out} already holds a run: pass --resume to go on with it, "
                "or choose another --out."
            )
    elif out.is_dir() and any(not item.name.startswith(".") for item in out.iterdir()):
        raise ConfigError(f"{out} holds files that are no run's: choose another --out.")


def _claim_folder(out: Path, problem: Problem) -> None:
    """Writes the resolved config and the provenance, or checks that they are this run's."""
    found = provenance(problem.generator, problem.encoder, problem.config)
    if (out / "config.toml").is_file():
        difference = _first_difference(
            dataclasses.asdict(load_config(out / "config.toml")), dataclasses.asdict(problem.config)
        )
        if difference:
            raise ConfigError(
                f"{out} belongs to another config ({difference}): resume with the config that "
                "began it, or choose another --out."
            )
        before = json.loads((out / "provenance.json").read_text())
        for model in ("generator", "encoder"):
            if found[model] and before[model]["sha256"] != found[model]["sha256"]:
                raise ConfigError(
                    f"{out} began with other weights of the {model} {found[model]['name']}: "
                    "bring those back, or choose another --out."
                )
        return
    out.mkdir(parents=True, exist_ok=True)
    files.write(out / "provenance.json", json.dumps(found, indent=2) + "\n")
    save_config(out / "config.toml", problem.config)  # last: it makes the folder a run's


def _first_difference(old: Any, new: Any, where: str = "") -> str:
    """The first value in which two nested configs differ, in words; empty if none.

    Plain values come before tables: another seed is the reason, the ranges it leads to are not.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        items = [(f"{where}.{key}".lstrip("."), old.get(key), new.get(key)) for key in old | new]
        items.sort(key=lambda item: isinstance(item[1], dict | list | tuple))
    elif isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        items = [(f"{where}.{i}", *pair) for i, pair in enumerate(zip(old, new, strict=True))]
    else:
        return "" if old == new else f"{where} was {old!r}, now {new!r}"
    return next(filter(None, (_first_difference(a, b, at) for at, a, b in items)), "")


def _search(
    problem: Problem, out: Path, checkpoints: ocp.CheckpointManager, report: Report | None
) -> tuple[SearchState, dict[str, float]]:
    """Searches to the end; returns the state and what compiling and running took, in seconds."""
    config = problem.config
    begin, advance, seconds_compile = _compile(problem)
    began = time.perf_counter()
    state = begin(problem.params, *problem.initial_latents())
    rows: list[Row] = []
    if (latest := checkpoints.latest_step()) is not None:
        state = _restore(checkpoints, latest, state)
        rows = [row for row in _read_metrics(out) if row["generation"] <= latest]
        began -= rows[-1]["seconds"]

    with _stop_signals() as stop, _open_metrics(out, rows) as write:
        first = int(state.generation) + config.run.log_every
        for generation in range(first, config.search.generations + 1, config.run.log_every):
            state, metrics = advance(problem.params, state)
            row = {
                "generation": generation,
                "evaluations": generation * problem.search.evaluations_per_generation,
                **{name: value.item() for name, value in vars(jax.device_get(metrics)).items()},
                "seconds": time.perf_counter() - began,
            }
            write(row)
            if report:
                report(row)
            last = generation == config.search.generations
            if last or stop.is_set() or generation % config.run.checkpoint_every == 0:
                checkpoints.save(generation, args=ocp.args.StandardSave(state))
            if stop.is_set() and not last:
                raise QDGSError(
                    f"Stopped at generation {generation} of {config.search.generations}: "
                    "run the same command with --resume to go on."
                )
    return state, {
        "seconds_compile": seconds_compile,
        "seconds_run": time.perf_counter() - began,
    }


def _compile(problem: Problem) -> tuple[Callable[..., Any], Callable[..., Any], float]:
    """Compiles `search.init` and one logging interval of `search.run`; both take `params` first."""
    began = time.perf_counter()
    arguments = (problem.search, problem.params)
    begin = jax.jit(search.init, static_argnums=0).lower(*arguments, *problem.initial_latents())
    state = begin.out_info
    advance = jax.jit(search.run, static_argnums=(0, 3), donate_argnums=2).lower(
        *arguments, state, problem.config.run.log_every
    )
    return begin.compile(), advance.compile(), time.perf_counter() - began


def _restore(checkpoints: ocp.CheckpointManager, generation: int, like: SearchState) -> SearchState:
    try:
        return checkpoints.restore(generation, args=ocp.args.StandardRestore(like))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"The checkpoint of generation {generation} in {checkpoints.directory} is damaged "
            f"({type(error).__name__}): delete that checkpoint's folder and resume from the one "
            "before it."
        ) from None


def _read_metrics(out: Path) -> list[Row]:
    with open(out / "metrics.csv", newline="") as file:
        return [
            {name: int(text) if text.isdigit() else float(text) for name, text in row.items()}
            for row in csv.DictReader(file)
        ]


@contextlib.contextmanager
def _open_metrics(out: Path, rows: list[Row]) -> Iterator[Callable[[Row], None]]:
    """Keeps `rows` of metrics.csv and gives a function that appends to them and to the file."""
    kept = list(rows)
    names = ["generation", "evaluations", *search.Metrics.__dataclass_fields__, "seconds"]
    partial = out / ".metrics.csv.partial"
    with open(partial, "w", newline="", buffering=1) as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(kept)
        partial.replace(out / "metrics.csv")

        def write(row: Row) -> None:
            writer.writerow(row)
            rows.append(row)

        yield write


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, so that the loop can end at a checkpoint.

    A second Ctrl-C acts as usual. Outside the main thread signals are left alone.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask_to_stop(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, ask_to_stop)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_results(
    problem: Problem, out: Path, state: SearchState, seconds: dict[str, float]
) -> dict[str, Any]:
    """Writes the archive, its table, the pictures, and last the summary, which it returns."""
    elites = _collect(state)
    tensors = {
        "solution": elites.latents,
        "objective": elites.objective,
        "measures": elites.measures,
        "index": elites.index,
    }
    files.write(out / "archive.safetensors", safetensors.numpy.save(tensors))
    _write_table(out / "archive.csv", elites)
    rows = _read_metrics(out)
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
        **provenance(problem.generator, problem.encoder, problem.config),
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
    measures = problem.config.measures
    figures.draw_curves(out / "curves.png", rows)
    figures.draw_heatmap(out / "heatmap.png", measures, elites.index, elites.objective)
    tiles = figures.choose_tiles(measures, elites.index, elites.objective)
    if tiles:
        images = jax.jit(problem.generator.render)(
            problem.params["generator"], elites.latents[list(tiles.values())]
        )
        figures.draw_contact_sheet(out / "elites.png", measures, list(tiles), np.asarray(images))
