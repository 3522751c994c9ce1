"""Runs a search in a folder, from the start or from its last checkpoint."""

import contextlib
import dataclasses
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from qdgs_jax import files, folders, provenance, search
from qdgs_jax.config import Config, load_config, save_config
from qdgs_jax.errors import CheckpointError, ConfigError, QDGSError
from qdgs_jax.generators import Generator
from qdgs_jax.problem import Problem, load_problem
from qdgs_jax.runs import metrics, results
from qdgs_jax.runs.metrics import Row
from qdgs_jax.search import SearchState
from qdgs_jax.typing import Params

Report = Callable[[Row], None]


def sample(
    config: Config,
    out: str | Path,
    *,
    generator: tuple[Generator, Params] | None = None,
    resume: bool = False,
    report: Report | None = None,
) -> dict[str, Any]:
    """Runs the search of `config` in the folder `out`, from the start or from its last checkpoint.

    Args:
        generator: your own generator and its weights, instead of the config's.
        report: called with every row of metrics.

    Returns:
        The contents of summary.json.

    Raises:
        ConfigError: the folder holds another run, or this one and `resume` is false.
        QDGSError: interrupted by a signal (a checkpoint is kept), or out of disk space.
    """
    out = Path(out)
    known = folders.claim(
        out, results.CONFIG, holds="a run", others="files that are no run's", resume=resume
    )
    problem = load_problem(config, generator=generator)
    with folders.interruptions_explained(out, again="run the same command with --resume"):
        _claim(out, problem, known)
        with ocp.CheckpointManager(
            (out / "checkpoints").absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=2, save_interval_steps=1, enable_async_checkpointing=False
            ),
        ) as checkpoints:
            state, seconds = _search(problem, out, checkpoints, report)
        return results.write(problem, out, state, seconds)


def _claim(out: Path, problem: Problem, known: Path | None) -> None:
    """Writes the resolved config and the provenance, or checks that they are this run's."""
    found = provenance.describe(problem.generator, problem.encoder, problem.config)
    if not known:
        out.mkdir(parents=True, exist_ok=True)
        files.write(out / "provenance.json", json.dumps(found, indent=2) + "\n")
        save_config(out / results.CONFIG, problem.config)  # last: it makes the folder a run's
        return
    folders.require_same_config(
        out, dataclasses.asdict(load_config(known)), dataclasses.asdict(problem.config)
    )
    before = json.loads((out / "provenance.json").read_text())
    for model in ("generator", "encoder"):
        if found[model] and before[model]["sha256"] != found[model]["sha256"]:
            raise ConfigError(
                f"{out} was started with other weights of the {model} {found[model]['name']}: "
                "restore those, or choose another folder."
            )


def _search(
    problem: Problem, out: Path, checkpoints: ocp.CheckpointManager, report: Report | None
) -> tuple[SearchState, dict[str, float]]:
    """Searches to the end; returns the state, and the seconds of compiling and of running."""
    config = problem.config
    begin, advance, seconds_compile = _compile(problem)
    began = time.perf_counter()
    state = begin(problem.params, *problem.initial_latents())
    rows: list[Row] = []
    if (latest := checkpoints.latest_step()) is not None:
        state = _restore(checkpoints, latest, state)
        rows = [row for row in metrics.read(out) if row["generation"] <= latest]
        began -= rows[-1]["seconds"]

    with _stop_signals() as stop, metrics.appending(out, rows) as write:
        first = int(state.generation) + config.run.log_every
        for generation in range(first, config.search.generations + 1, config.run.log_every):
            state, found = advance(problem.params, state)
            row = {
                "generation": generation,
                "evaluations": generation * problem.search.evaluations_per_generation,
                **{name: value.item() for name, value in vars(jax.device_get(found)).items()},
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
                    "run the same command with --resume to continue."
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


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, so that the loop can end with a checkpoint.

    A second Ctrl-C acts as usual. Outside the main thread, signals are not handled.
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
