"""What a command prints: progress, its result, one sentence about what went wrong."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from tqdm import tqdm

from qdgs_jax.errors import QDGSError


def open_standard_files() -> None:
    """Puts the null device in place of closed standard files: without it the next file that is
    opened would take their number, and what libraries print would go into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        getattr(sys, name).reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def progress(
    generations: int, devices: Callable[[], int]
) -> Iterator[Callable[[dict[str, float]], None] | None]:
    """A progress bar on a terminal; silence elsewhere (metrics.csv has it all).

    Args:
        devices: their number, while the search runs.
    """
    if not sys.stderr.isatty():
        yield None
        return
    with tqdm(total=generations, unit="gen", dynamic_ncols=True) as bar:
        before = {"evaluations": 0.0, "seconds": 0.0}

        def report(row: dict[str, float]) -> None:
            nonlocal before
            speed = (row["evaluations"] - before["evaluations"]) / max(
                row["seconds"] - before["seconds"], 1e-9
            )
            before = row
            if bar.n == 0:
                bar.initial = bar.n = int(row["generation"])  # a resumed run starts further on
            each = f" ({speed / devices():.0f} a device)" if devices() > 1 else ""
            bar.set_postfix_str(
                f"{speed:.0f} eval/s{each}, QD score {row['qd_score']:.0f}, "
                f"coverage {row['coverage']:.1%}",
                refresh=False,
            )
            bar.update(int(row["generation"]) - bar.n)

        yield report


def tell(result: dict[str, Any], sentence: str) -> None:
    """The result in a sentence on a terminal, as one line of JSON elsewhere.

    Raises:
        QDGSError: nobody reads the standard output, or it is full.
    """
    try:
        print(sentence.format(**result) if sys.stdout.isatty() else json.dumps(result), flush=True)
    except OSError as error:
        discard(sys.stdout)
        raise QDGSError(
            f"All is written, but the result could not be printed ({error.strerror}): see "
            f"{next(iter(result.values()))}."
        ) from None


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    say(str(message))


def say(sentence: str) -> None:
    """A sentence on standard error, if that can be written."""
    try:
        print(f"qdgs: {sentence}", file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


def discard(file: TextIO) -> None:
    """Leads what a file that cannot be written still holds to the null device: flushing it at the
    end would raise again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
