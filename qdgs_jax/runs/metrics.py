"""metrics.csv: a row every `run.log_every` generations."""

import contextlib
import csv
from collections.abc import Callable, Iterator
from pathlib import Path

from qdgs_jax import search

Row = dict[str, float]


def read(out: Path) -> list[Row]:
    """All rows of a run's metrics.csv."""
    with open(out / "metrics.csv", newline="") as file:
        return [
            {name: int(text) if text.isdigit() else float(text) for name, text in row.items()}
            for row in csv.DictReader(file)
        ]


@contextlib.contextmanager
def appending(out: Path, rows: list[Row]) -> Iterator[Callable[[Row], object]]:
    """Replaces the rows of metrics.csv by `rows`; yields a function that appends a row."""
    names = ["generation", "evaluations", *search.Metrics.__dataclass_fields__, "seconds"]
    partial = out / ".metrics.csv.partial"
    with open(partial, "w", newline="", buffering=1) as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
        partial.replace(out / "metrics.csv")
        yield writer.writerow
