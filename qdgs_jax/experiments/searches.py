"""The searches of experiments."""

import dataclasses
from pathlib import Path

from tqdm import tqdm

from qdgs_jax.config import Config
from qdgs_jax.errors import ConfigError
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
    wanted = [measure.range for measure in search.measures]
    measures = tuple(
        dataclasses.replace(measure, range=range)
        for measure, range in zip(loaded.config.measures, wanted, strict=False)
    )
    if dataclasses.replace(loaded.config, measures=measures) != search:
        raise ConfigError(f"{run} is the run of another search: choose another --out.")
    return loaded
