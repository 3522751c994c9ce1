"""Several processes that run one program together: what one does for all, and how they agree.

All processes call these functions in the same order. A process that is alone exchanges nothing.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np

from qdgs_jax.errors import ConfigError, LostProcessError, QDGSError, shorten

T = TypeVar("T")

_OF_EXCHANGES = ("UNKNOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "ABORTED", "CANCELLED")
"""Codes of XLA's errors that may come of another process; the others are a program's own."""

HEARTBEAT = 30  # seconds after which a process that is silent counts as lost
FAREWELL = 15  # seconds that processes wait for each other at their end


def start(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Joins the processes of a command, before anything is computed.

    Args:
        coordinator: HOST:PORT of process 0, the same for all; None: SLURM, Open MPI, Kubernetes
            or Cloud TPU tell it, and the two numbers.
        processes: their number.
        process: this one, from 0.

    Raises:
        ConfigError: some of the three are missing or impossible.
        QDGSError: the others did not come.
    """
    given = [coordinator is not None, processes is not None, process is not None]
    if any(given) and not all(given):
        raise ConfigError(
            "A list of processes needs all of --coordinator HOST:PORT, --processes N and "
            "--process I: add what is missing."
        )
    if all(given) and not 0 <= (process or 0) < (processes or 0):
        raise ConfigError(f"--process {process} is none of 0 to {(processes or 0) - 1}.")
    if coordinator is not None and not re.fullmatch(r".+:\d{1,5}", coordinator):
        raise ConfigError(f"--coordinator {coordinator} has no port: give HOST:PORT.")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX's own notifier would take SIGTERM, which here ends a search with a checkpoint.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=FAREWELL,
        )
    except ValueError as error:
        raise ConfigError(
            f"No list of processes was found here ({shorten(error)}): start them by srun, "
            "Kubernetes or on Cloud TPU, or give --coordinator, --processes and --process."
        ) from error
    except RuntimeError as error:
        raise QDGSError(
            f"The processes did not come together ({shorten(error)}): start all of them with the "
            "same --coordinator, which each can reach, and different --process."
        ) from error


def is_first() -> bool:
    """Whether this is process 0, which writes what there is one of."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """The values of all processes, in their order; plain JSON values."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental.multihost_utils import process_allgather

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = process_allgather(np.array([len(text)])).ravel()
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(text)] = text
    rows = zip(process_allgather(padded), sizes, strict=True)
    return [json.loads(bytes(row[:size])) for row, size in rows]


def summed(values: np.ndarray) -> np.ndarray:
    """The sum over all processes of arrays of one shape."""
    if jax.process_count() == 1:
        return values
    from jax.experimental.multihost_utils import process_allgather

    total: np.ndarray = process_allgather(values).sum(axis=0)
    return total


def is_mine(number: int) -> bool:
    """Whether this process does part `number` of a work that processes share in turns."""
    return number % jax.process_count() == jax.process_index()


def first(action: Callable[[], T]) -> T:
    """Calls `action` on process 0 alone; all processes get its result, a plain JSON value.

    Raises:
        QDGSError: on all processes, if it raises.
    """
    value: Any = None
    with errors_shared():
        if is_first():
            value = action()
    shared: T = gather(value)[0]
    return shared


@contextlib.contextmanager
def errors_shared() -> Iterator[None]:
    """Waits at its end for all processes; an error of one of them is then raised by all.

    The body must not exchange anything: a process that fails there does not take part.

    Raises:
        ConfigError, QDGSError: what another process raised.
    """
    if jax.process_count() == 1:
        yield
        return
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    outcomes = gather(error and (str(error), type(error).__name__))
    if error:
        raise error
    for process, outcome in enumerate(outcomes):
        if outcome:
            text, kind = outcome
            if kind == ConfigError.__name__:
                raise ConfigError(text)
            raise QDGSError(f"Process {process} has failed: {text}")


@contextlib.contextmanager
def entered_by_first(context: contextlib.AbstractContextManager[T]) -> Iterator[T | None]:
    """Enters a context on process 0 alone, and yields its value there, None elsewhere.

    Raises:
        QDGSError: on all processes, if it cannot be entered.
    """
    with contextlib.ExitStack() as stack:
        value: T | None = None
        with errors_shared():
            if is_first():
                value = stack.enter_context(context)
        yield value


def require_same(**values: Any) -> None:
    """Compares plain JSON values of all processes.

    Raises:
        ConfigError: on all processes, if one has other values than process 0.
    """
    all_values = gather(values)
    for process, others in enumerate(all_values):
        for name, value in others.items():
            if value != all_values[0][name]:
                raise ConfigError(
                    f"Process {process} has another {name} than process 0: start all processes "
                    "with the same command, files and versions."
                )


def is_loss(error: BaseException) -> bool:
    """Whether an exchange has failed, so that other processes are no longer to be waited for."""
    return (
        jax.process_count() > 1
        and isinstance(error, jax.errors.JaxRuntimeError)
        and str(error).startswith(_OF_EXCHANGES)
    )


@contextlib.contextmanager
def losses_explained(*, again: str) -> Iterator[None]:
    """Turns the failure of an exchange with other processes into a sentence.

    Args:
        again: the remedy, in the imperative.

    Raises:
        LostProcessError: another process has ended.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_loss(error):
            raise
        reason = str(error).partition("\n")[0][:200]
        raise LostProcessError(
            f"Another process of this command has ended or cannot be reached ({reason}): {again}."
        ) from error
