"""Runs a search in a folder, from the start or from its last checkpoint."""

import contextlib
import dataclasses
import functools
import json
import logging
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from qdgs_jax import files, folders, processes, search, sharding
from qdgs_jax.chunks import program_memory
from qdgs_jax.config import Config, load_config, save_config
from qdgs_jax.errors import ConfigError, QDGSError
from qdgs_jax.generators import Generator
from qdgs_jax.problem import Problem, load_problem, require_memory
from qdgs_jax.runs import checkpoints, metrics, results
from qdgs_jax.runs.metrics import Row
from qdgs_jax.schema import read_json
from qdgs_jax.search import Metrics, SearchState
from qdgs_jax.typing import Params

Report = Callable[[Row], None]

CHECKPOINTS = "checkpoints"
PROVENANCE = "provenance.json"
MODELS = ("generator", "encoder")
LOG = logging.getLogger(__name__)


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

    It is divided over the ambient mesh (`jax.set_mesh`), or without one over all devices. After
    `jax.distributed.initialize`, all processes call this alike, with a folder that all share.

    Args:
        generator: your own generator and its weights, instead of the config's.
        resume: continue the run in `out`: where it stopped, or to more `search.generations` than
            it had. `[run]` and `[export]` may have changed, what decides the search may not.
        report: called with every row of metrics.
        allow_code: whether generator, encoder and measures may be functions of other packages,
            which are imported.

    Returns:
        The contents of summary.json.

    Raises:
        ConfigError: the folder holds another run, or this one and `resume` is false.
        CheckpointError: all checkpoints are damaged; of the newest alone, a warning tells.
        QDGSError: interrupted by a signal (a checkpoint is kept), out of disk space, another
            process writes in the folder, or another process of this command has failed.
    """
    out = Path(out)
    whose: dict[str, Any] = {
        "holds": "a run",
        "others": "files that are no run's",
        "resume": resume,
    }
    again = "run the same command with --resume"
    with sharding.all_devices(), processes.losses_explained(again=again):
        processes.first(lambda: bool(folders.claim(out, results.CONFIG, **whose)))
        with sharding.no_mesh(), processes.errors_shared():
            config = _with_recorded_chunk_size(config, out)
            problem = load_problem(config, generator=generator, allow_code=allow_code)
        processes.require_same(**_identity(problem))
        require_memory(problem)
        with (
            folders.interruptions_explained(out, again=again),
            processes.entered_by_first(folders.claimed(out, results.CONFIG, **whose)) as known,
        ):
            with processes.errors_shared():
                before = _read_config(out, problem, known)
            return results.write(problem, out, *_search(problem, out, before, report))


def _identity(problem: Problem) -> dict[str, Any]:
    """What all processes of a search must have alike."""
    found = problem.provenance()
    return {
        "config": _searched(problem.config),
        "weights": [found[model] for model in MODELS],
        "versions": found["versions"],
    }


def _with_recorded_chunk_size(config: Config, out: Path) -> Config:
    """A number for an `auto` chunk_size where a run in `out` has one: it may resume on another
    device, of another memory."""
    if config.search.chunk_size != "auto" or not (out / results.CONFIG).is_file():
        return config
    size = load_config(out / results.CONFIG).search.chunk_size
    return dataclasses.replace(config, search=dataclasses.replace(config.search, chunk_size=size))


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
    found = problem.provenance()
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
        known |= before.get("classifiers", {})
    except (QDGSError, KeyError, TypeError):
        if checkpoints.numbers(out / CHECKPOINTS):
            warnings.warn(
                f"{out / PROVENANCE} is missing or damaged: the models are taken for those that "
                "began the run, and it is written again.",
                stacklevel=2,
            )
        return False
    weights = {model: found[model] and found[model]["sha256"] for model in MODELS}
    for model, sha256 in (weights | found.get("classifiers", {})).items():
        if sha256 and known.get(model) != sha256:
            name = f"{model} {found[model]['name']}" if model in MODELS else f"classifier {model}"
            raise ConfigError(
                f"{out} was started with other weights of the {name}: restore those, or choose "
                "another folder."
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
    programs = compile_programs(problem, config.run.log_every)
    LOG.info("searching")
    began = time.perf_counter()
    state = programs.begin()
    state, rows = _restore(problem, out, state)
    began -= rows[-1]["seconds"] if rows else 0
    generation, last = int(state.generation), config.search.generations
    processes.first(lambda: _claim(out, problem, before))
    with (
        _stop_signals() as stop,
        processes.entered_by_first(metrics.appending(out, rows)) as write,
        checkpoints.saving(out / CHECKPOINTS) as save,
    ):
        while generation < last:
            steps = config.run.log_every - generation % config.run.log_every
            state, figures = programs.advance(steps)(state)
            generation += steps
            rows.append(_row(problem, state, figures, time.perf_counter() - began))
            with processes.errors_shared():
                if write:
                    (out / results.CONFIG).stat()  # an error, if the folder was removed meanwhile
                    write(rows[-1])
                    if report:
                        report(rows[-1])
            stopping = any(processes.gather(stop.is_set()))
            if generation == last or stopping or not generation % config.run.checkpoint_every:
                save(state)
            if stopping and generation < last:
                raise QDGSError(
                    f"Stopped at generation {generation} of {last}: "
                    "run the same command with --resume to continue."
                )
    LOG.info("writing results")
    return state, rows, {
        "seconds_compile": programs.seconds,
        "seconds_run": time.perf_counter() - began,
    }  # fmt: skip


class Programs(NamedTuple):
    """The compiled programs of a search."""

    begin: Callable[[], SearchState]
    """`search.init`."""
    advance: Callable[[int], Callable[[SearchState], tuple[SearchState, Metrics]]]
    """`search.run` for a number of generations, compiled once for each; it takes the state."""
    seconds: float
    """Of compiling, for the first number of generations."""
    memory: int
    """Bytes that each device holds while they run."""


def compile_programs(problem: Problem, generations: int) -> Programs:
    """Compiles a search for the ambient mesh; `generations` is the first number of them."""
    LOG.info("compiling")
    params, latents = sharding.on_all_devices((problem.params, problem.initial_latents()))
    began = time.perf_counter()
    # Of new functions: what jit keeps lasts as long as they do, so programs end with their run.
    init, run = (functools.partial(each, problem.search) for each in (search.init, search.run))
    traced = jax.jit(init).lower(params, *latents)
    begin = traced.compile()
    start = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        traced.out_info,
        begin.output_shardings,
    )
    # A generation leaves the state where it was, for the next call and the donated memory.
    program = jax.jit(
        run, static_argnums=2, donate_argnums=1, out_shardings=(begin.output_shardings, None)
    )

    @functools.cache
    def advance(generations: int) -> Any:
        return functools.partial(program.lower(params, start, generations).compile(), params)

    memory = max(program_memory(each) for each in (begin, advance(generations).func))
    return Programs(
        functools.partial(begin, params, *latents), advance, time.perf_counter() - began, memory
    )


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
    known = processes.first(lambda: metrics.read(out))
    rows = [row for row in known if row["generation"] <= generation]
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
    if problem.search.keeps_initial:
        evaluations += problem.config.search.initial_samples
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
