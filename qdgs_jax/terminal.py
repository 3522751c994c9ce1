"""What a command prints: progress, its result, one sentence about what went wrong."""

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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

    Before the first row of metrics and after the last, its place says what is done, as the
    package's loggers tell.

    Args:
        devices: their number, while the search runs.
    """
    if not sys.stderr.isatty():
        yield None
        return
    with contextlib.ExitStack() as stack:
        line: tqdm | None = None
        bar: tqdm | None = None
        before = {"evaluations": 0.0, "seconds": 0.0}

        def show(words: str) -> None:
            nonlocal line
            if bar is not None and not bar.disable:  # it is open
                return
            if line is None or line.disable:
                line = tqdm(bar_format="{desc}", leave=False, dynamic_ncols=True)
                stack.enter_context(line)
            line.set_description_str(f"{words} ...")

        def report(row: dict[str, float]) -> None:
            nonlocal bar, before
            if bar is None:
                if line is not None:
                    line.close()
                bar = stack.enter_context(tqdm(total=generations, unit="gen", dynamic_ncols=True))
                # The clock of the search, which starts after compilation; that of a resumed one
                # continues, as its generations do.
                bar.start_t = bar.last_print_t = time.time() - row["seconds"]
            speed = (row["evaluations"] - before["evaluations"]) / max(
                row["seconds"] - before["seconds"], 1e-9
            )
            before = row
            each = f" ({speed / devices():.0f} a device)" if devices() > 1 else ""
            bar.set_postfix_str(
                f"{speed:.0f} eval/s{each}, QD score {row['qd_score']:.0f}, "
                f"coverage {row['coverage']:.1%}",
                refresh=False,
            )
            bar.update(int(row["generation"]) - bar.n)
            if bar.n >= generations:
                bar.close()  # with the clock of the search alone

        stack.enter_context(_logs_told(show))
        yield report


@contextlib.contextmanager
def _logs_told(show: Callable[[str], None]) -> Iterator[None]:
    """Shows what the package logs meanwhile, and nothing else does."""
    handler, logger = logging.Handler(), logging.getLogger("qdgs_jax")
    handler.emit = lambda record: show(record.getMessage())  # type: ignore[method-assign]
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def tell(result: dict[str, Any], sentence: str) -> None:
    """The result in a sentence on a terminal, as one line of JSON elsewhere.

    Args:
        sentence: a template of the result's values; see `literal`.

    Raises:
        QDGSError: nobody reads the standard output, or it is full.
    """
    try:
        print(sentence.format(**result) if sys.stdout.isatty() else json.dumps(result), flush=True)
    except OSError as error:
        discard(sys.stdout)
        told = f"the result could not be printed ({error.strerror})"
        written = next(iter(result.values()))
        if isinstance(written, str):
            raise QDGSError(f"All is written, but {told}: see {written}.") from None
        raise QDGSError(f"T{told[1:]}: mend the standard output.") from None


def literal(text: str) -> str:
    """A finished text as a template of `tell`: names in it may have braces."""
    return text.replace("{", "{{").replace("}", "}}")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys, which are the headings, in columns."""
    cells = [list(rows[0]), *([_shown(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def _shown(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case list():
            return " to ".join(map(_shown, value))
    return str(value)


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    say(str(message))


def say(sentence: str) -> None:
    """A sentence on standard error, if that can be written."""
    try:
        tqdm.write(f"qdgs: {sentence}", file=sys.stderr)  # above a progress bar
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)


def discard(file: TextIO) -> None:
    """Leads what a file that cannot be written still holds to the null device: flushing it at the
    end would raise again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
