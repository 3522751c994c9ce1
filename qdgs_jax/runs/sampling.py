"""Runs a search in a folder, from the start or from its last checkpoint."""

import contextlib
import dataclasses
import functools
import json
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from qdgs_jax import files, folders, provenance, search
from qdgs_jax.config import Config, load_config, save_config
from qdgs_jax.errors import ConfigError, QDGSError
from qdgs_jax.generators import Generator
from qdgs_jax.problem import Problem, load_problem
from qdgs_jax.runs import checkpoints, metrics, results
from qdgs_jax.runs.metrics import Row
from qdgs_jax.schema import read_json
from qdgs_jax.search import Metrics, SearchState
from qdgs_jax.typing import Params

Report = Callable[[Row], None]

CHECKPOINTS = "checkpoints"
PROVENANCE = "provenance.json"
MODELS = ("generator", "encoder")


def sample(
    config: Config,
    out: str | Path,
    *,
    generator: tuple[Generator, Params] | None = None,
    resume: bool = False,
    report: Report | None = None,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Runs the search of `config` in the folder `out`, from the start or from its last checkpoint.

    Args:
        generator: your own generator and its weights, instead of the config's.
        resume: continue the run in `out`: where it stopped, or to more `search.generations` than
            it had. `[run]` and `[export]` may have changed, what decides the search may not.
        report: called with every row of metrics.
        allow_code: whether measures may be functions of other packages, which are imported.

    Returns:
        The contents of summary.json.

    Raises:
        ConfigError: the folder holds another run, or this one and `resume` is false.
        CheckpointError: all checkpoints are damaged; of the newest alone, a warning tells.
        QDGSError: interrupted by a signal (a checkpoint is kept), out of disk space, or another
            process writes in the folder.
    """
    out = Path(out)
    whose: dict[str, Any] = {
        "holds": "a run",
        "others": "files that are no run's",
        "resume": resume,
    }
    folders.claim(out, results.CONFIG, **whose)
    problem = load_problem(config, generator=generator, allow_code=allow_code)
    with (
        folders.interruptions_explained(out, again="run the same command with --resume"),
        folders.claimed(out, results.CONFIG, **whose) as known,
    ):
        before = _read_config(out, problem, known)
        return results.write(problem, out, *_search(problem, out, before, report))


def _read_config(out: Path, problem: Problem, known: Path | None) -> Config | None:
    """The config of the run in `out`, if there is one.

    Raises:
        ConfigError: it is of another search.
    """
    if not known:
        return None
    before = load_config(known)
    folders.require_same_config(out, _searched(before), _searched(problem.config))
    return before


def _claim(out: Path, problem: Problem, before: Config | None) -> None:
    """Makes `out` the folder of this run, the resolved config first.

    Args:
        before: the config that stands there.

    Raises:
        ConfigError: the run began with other weights.
    """
    config = problem.config
    found = provenance.describe(problem.generator, problem.encoder, config)
    known = before is not None and _is_provenance_known(out, found)
    if before and before.search.generations != config.search.generations:
        (out / results.SUMMARY).unlink(missing_ok=True)  # it is of another number of them
    if before != config:
        save_config(out / results.CONFIG, config)
    if not known:
        files.write(out / PROVENANCE, json.dumps(found, indent=2) + "\n")


def _searched(config: Config) -> dict[str, Any]:
    """What decides the result of each generation; a resumed run may change the rest."""
    values = dataclasses.asdict(config)
    del values["run"], values["export"], values["notice"], values["search"]["generations"]
    return values


def _is_provenance_known(out: Path, found: dict[str, Any]) -> bool:
    """Whether the run says what it was made with: the models that are `found`.

    Raises:
        ConfigError: it began with other weights.
    """
    try:
        before = read_json(out / PROVENANCE)
        known = {model: before[model] and before[model]["sha256"] for model in MODELS}
    except (QDGSError, KeyError, TypeError):
        if checkpoints.generations(out / CHECKPOINTS):
            warnings.warn(
                f"{out / PROVENANCE} is missing or damaged: the models are taken for those that "
                "began the run, and it is written again.",
                stacklevel=2,
            )
        return False
    for model in MODELS:
        if found[model] and known[model] != found[model]["sha256"]:
            raise ConfigError(
                f"{out} was started with other weights of the {model} {found[model]['name']}: "
                "restore those, or choose another folder."
            )
    return True


def _search(
    problem: Problem, out: Path, before: Config | None, report: Report | None
) -> tuple[SearchState, list[Row], dict[str, float]]:
    """Searches to the end.

    Args:
        before: the config of what is resumed.

    Returns:
        The state, all rows of metrics, and what compiling and running took, in seconds.
    """
    config = problem.config
    begin, advance, seconds_compile = _compile(problem)
    began = time.perf_counter()
    state = begin(problem.params, *problem.initial_latents())
    state, rows = _restore(problem, out, state)
    began -= rows[-1]["seconds"] if rows else 0
    generation, last = int(state.generation), config.search.generations
    _claim(out, problem, before)
    with _stop_signals() as stop, metrics.appending(out, rows) as write:
        while generation < last:
            steps = config.run.log_every - generation % config.run.log_every
            state, figures = advance(steps)(problem.params, state)
            generation += steps
            rows.append(_row(problem, state, figures, time.perf_counter() - began))
            (out / results.CONFIG).stat()  # an error, where the folder was removed meanwhile
            write(rows[-1])
            if report:
                report(rows[-1])
            if generation == last or stop.is_set() or not generation % config.run.checkpoint_every:
                checkpoints.save(out / CHECKPOINTS, state)
            if stop.is_set() and generation < last:
                raise QDGSError(
                    f"Stopped at generation {generation} of {last}: "
                    "run the same command with --resume to continue."
                )
    return state, rows, {
        "seconds_compile": seconds_compile,
        "seconds_run": time.perf_counter() - began,
    }  # fmt: skip


def _compile(problem: Problem) -> tuple[Callable[..., Any], Callable[[int], Any], float]:
    """Compiles `search.init`, and `search.run` for each number of generations; and says how long
    the first took for one logging interval. Both programs take `params` first."""
    began = time.perf_counter()
    # Of new functions: what jit keeps lasts as long as they do, so programs end with their run.
    init, run = (functools.partial(each, problem.search) for each in (search.init, search.run))
    begin = jax.jit(init).lower(problem.params, *problem.initial_latents())

    @functools.cache
    def advance(generations: int) -> Any:
        program = jax.jit(run, static_argnums=2, donate_argnums=1)
        return program.lower(problem.params, begin.out_info, generations).compile()

    compiled = begin.compile()
    advance(problem.config.run.log_every)
    return compiled, advance, time.perf_counter() - began


def _restore(problem: Problem, out: Path, start: SearchState) -> tuple[SearchState, list[Row]]:
    """The state of the newest checkpoint, else `start`, and the rows of metrics up to it."""
    state = checkpoints.restore(out / CHECKPOINTS, start)
    if state is None:
        return start, []
    generation, asked = int(state.generation), problem.config.search.generations
    if generation > asked:
        raise ConfigError(
            f"{out} has searched {generation} generations already: set search.generations to as "
            f"many or more instead of {asked}, or choose another folder."
        )
    rows = [row for row in metrics.read(out) if row["generation"] <= generation]
    if not rows or rows[-1]["generation"] < generation:
        warnings.warn(
            f"{out / metrics.NAME} is missing or damaged: it lacks rows up to generation "
            f"{generation}.",
            stacklevel=2,
        )
        seconds = rows[-1]["seconds"] if rows else 0.0
        rows.append(_row(problem, state, jax.jit(search.metrics)(state), seconds))
    return state, rows


def _row(problem: Problem, state: SearchState, figures: Metrics, seconds: float) -> Row:
    generation = int(state.generation)
    evaluations = generation * problem.search.evaluations_per_generation
    return metrics.make_row(generation, evaluations, figures, seconds)


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
