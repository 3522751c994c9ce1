"""Balanced, annotated faces: what guidance by a classifier finds, and what a search finds.

A folder of results, from which an interrupted call resumes:

plan.json        config, search, models, device and versions
results/         a file for the random faces, and one for each arm: latents, groups, calls, seconds
search/          the run of the arm `qdgs`
results.json     figures of all arms
table.md         the same as tables
ARM.png          images of each group
"""

import dataclasses
import functools
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors
import safetensors.numpy

from qdgs_jax import files
from qdgs_jax.config import Config
from qdgs_jax.errors import QDGSError
from qdgs_jax.evaluation.repair import claimed_results
from qdgs_jax.experiments.annotated_faces import arms, guidance
from qdgs_jax.experiments.annotated_faces.config import AnnotatedFacesConfig
from qdgs_jax.experiments.annotated_faces.groups import Groups, make_groups
from qdgs_jax.experiments.annotated_faces.judge import find_judge
from qdgs_jax.experiments.annotated_faces.report import Report, table
from qdgs_jax.folders import interruptions_explained
from qdgs_jax.problem import Problem, load_problem

AGAIN = "run the same command with --resume"

T = TypeVar("T", arms.Random, arms.Found)


def run_experiment(
    config: AnnotatedFacesConfig,
    search: Config,
    out: Path,
    *,
    resume: bool = False,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Runs all arms (see `arms`) with one generator, one classifier and as many calls each.

    Args:
        config: groups and calls; its `search` is not read.
        search: generator, measures and search. Its seed and generations are replaced.
        out: folder to write, or with `resume` to continue in.
        allow_code: whether generator, encoder and measures may be functions of other packages.

    Returns:
        The contents of results.json.

    Raises:
        ConfigError: the folder holds other results, an attribute is no measure of the search, no
            measure reads faces, or the calls do not suffice for the search.
        QDGSError: a search was interrupted, a file of the folder is damaged, or no space.
    """
    search = dataclasses.replace(search, seed=config.seed)
    groups = make_groups(config.attributes, [measure.name for measure in search.measures])
    problem = load_problem(search, allow_code=allow_code)
    arms.search_length(problem, search, config.calls)  # refuses before anything slow
    reader = arms.Reader(problem)
    with (
        interruptions_explained(out, again=AGAIN),
        claimed_results(out, plan(config, search, problem), resume=resume),
    ):
        random, found = _find(config, search, problem, reader, groups, out, allow_code)
        report = Report(problem, reader, groups, config, find_judge())
        judge = report.judge_on_random(random)
        rows = [report.row(arm, each, out / f"{arm}.png") for arm, each in found.items()]
        results = {
            **plan(config, search, problem), **problem.provenance(),
            "date": time.strftime("%F"),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "judge": judge, "rows": rows,
        }  # fmt: skip
        files.write(out / "table.md", table(rows, judge))
        files.write(out / "results.json", json.dumps(results, indent=1) + "\n")
    return results


def plan(config: AnnotatedFacesConfig, search: Config, problem: Problem) -> dict[str, Any]:
    """The contents of plan.json: both configs, and the checksums of the models."""
    values = dataclasses.asdict(config)
    del values["search"]
    found = problem.provenance()
    models = {"generator": found["generator"]["sha256"], **found.get("classifiers", {})}
    planned = {"config": values, "search": dataclasses.asdict(search), "models": models}
    plain: dict[str, Any] = json.loads(json.dumps(planned))  # lists in place of tuples
    return plain


def _find(
    config: AnnotatedFacesConfig,
    search: Config,
    problem: Problem,
    reader: arms.Reader,
    groups: Groups,
    out: Path,
    allow_code: bool,
) -> tuple[arms.Random, dict[str, arms.Found]]:
    """The random faces and what each arm found, from their files or found now."""

    def once(name: str, kind: type[T], make: Callable[[], T]) -> T:
        return _remembered(out / "results" / f"{name}.safetensors", kind, make)

    random = once("random", arms.Random, lambda: arms.read_random(problem, reader, config))
    shared = problem, reader, groups, config, random
    published = functools.cache(lambda: guidance.guide_as_published(*shared))
    make: dict[str, Callable[[], arms.Found]] = {
        "plain": lambda: arms.keep_random(groups, config, random),
        "published": lambda: published()["published"],
        "unfiltered": lambda: published()["unfiltered"],
        "improved": lambda: guidance.guide_by_readings(*shared),
        "qdgs": lambda: arms.search(
            problem, groups, config, search, out / "search", allow_code=allow_code
        ),
    }
    return random, {arm: once(arm, arms.Found, each) for arm, each in make.items()}


def _remembered(path: Path, kind: type[T], make: Callable[[], T]) -> T:
    """A named tuple of arrays and plain values, from its file or made now and written there.

    Raises:
        QDGSError: the file is damaged.
    """
    if not path.exists():
        values = make()._asdict()
        arrays = {name: each for name, each in values.items() if isinstance(each, np.ndarray)}
        others = json.dumps({name: each for name, each in values.items() if name not in arrays})
        files.write(path, safetensors.numpy.save(arrays, {"others": others}))
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            stored: dict[str, Any] = json.loads(file.metadata()["others"])
            stored |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return kind(**stored)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise QDGSError(f"{path} is damaged ({error}): remove it, then {AGAIN}.") from None
