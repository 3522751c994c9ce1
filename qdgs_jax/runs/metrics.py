"""metrics.csv: a row every `run.log_every` generations."""

import contextlib
import csv
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from qdgs_jax import files
from qdgs_jax.search import Metrics

Row = dict[str, float]

NAME = "metrics.csv"
COLUMNS = ("generation", "evaluations", *Metrics.__dataclass_fields__, "seconds")
_WHOLE = ("generation", "evaluations", "restarts", "non_finite", "atypical", "below_floor")
MAX_BYTES = 2**28


def make_row(generation: int, evaluations: int, figures: Metrics, seconds: float) -> Row:
    """A row of a state's figures."""
    values = {name: value.item() for name, value in vars(jax.device_get(figures)).items()}
    return {"generation": generation, "evaluations": evaluations, **values, "seconds": seconds}


def read(out: Path) -> list[Row]:
    """The rows of a run's metrics.csv that can be read, in ascending order of generations.

    A file that is missing, torn or overwritten has fewer of them, or none.
    """
    rows: list[Row] = []
    with contextlib.suppress(OSError, csv.Error):
        with files.open_regular(out / NAME, MAX_BYTES) as file:
            lines = file.read().decode(errors="replace").splitlines()
        for texts in csv.DictReader(line for line in lines if "\0" not in line):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                row = {name: _number(name, texts[name]) for name in COLUMNS}
                if row["generation"] > (rows[-1]["generation"] if rows else 0):
                    rows.append(row)
    return rows


def _number(name: str, text: str) -> float:
    value = int(text) if name in _WHOLE else float(text)
    if math.isnan(value):
        raise ValueError
    return value


@contextlib.contextmanager
def appending(out: Path, rows: list[Row]) -> Iterator[Callable[[Row], object]]:
    """Replaces the rows of metrics.csv by `rows`; yields a function that appends a row."""
    partial = out / f".{NAME}.partial"
    partial.unlink(missing_ok=True)
    with open(partial, "x", newline="", buffering=1) as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        files.sync(file)
        partial.replace(out / NAME)
        files.sync_folder(out)
        yield writer.writerow
