"""The searches of experiments."""

import dataclasses
from pathlib import Path
from typing import Any

from tqdm import tqdm

from qdgs_jax.config import Config
from qdgs_jax.errors import ConfigError
from qdgs_jax.image_measures import by_classifier
from qdgs_jax.runs import sampling
from qdgs_jax.runs.results import SUMMARY, Run, load_run


def finished_run(search: Config, run: Path, words: str, *, allow_code: bool = False) -> Run:
    """The run of a search in its folder, where it is started or resumed if need be.

    Args:
        words: what a progress bar says.

    Raises:
        ConfigError: the folder holds another run.
        QDGSError: the search was interrupted, or cannot be written.
    """
    if not (run / SUMMARY).is_file():
        total = search.search.generations
        with tqdm(desc=words, total=total, unit="gen", disable=None, dynamic_ncols=True) as bar:
            sampling.sample(
                search, run, resume=True, allow_code=allow_code,
                report=lambda row: bar.update(int(row["generation"]) - bar.n),
            )  # fmt: skip
    loaded = load_run(run)
    if not is_resolved(loaded.config, search):
        raise ConfigError(f"{run} is the run of another search: choose another --out.")
    return loaded


def is_resolved(found: Config, search: Config) -> bool:
    """Whether a run's config is that of a search, with what was `auto`, and the cells of measures
    that are classes, in numbers."""
    measures = []
    for before, measure in zip(found.measures, search.measures, strict=False):
        measure = by_classifier(measure)
        if measure.classifier and measure.output == "class":
            measure = dataclasses.replace(measure, range=before.range, cells=before.cells)
        measures.append(dataclasses.asdict(measure))
    wanted = {**dataclasses.asdict(search), "measures": tuple(measures)}
    return len(found.measures) == len(search.measures) and _agrees(
        dataclasses.asdict(found), wanted
    )


def _agrees(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(_agrees(found[k], wanted[k]) for k in wanted)
    if isinstance(wanted, list | tuple):
        return len(found) == len(wanted) and all(map(_agrees, found, wanted))
    return bool(wanted == "auto" or found == wanted)
