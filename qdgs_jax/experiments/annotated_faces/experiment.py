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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qdgs_jax import files, provenance
from qdgs_jax.config import Config
from qdgs_jax.evaluation.results import claimed_results, remembered
from qdgs_jax.experiments.annotated_faces import arms, guidance, report
from qdgs_jax.experiments.annotated_faces.config import AnnotatedFacesConfig
from qdgs_jax.experiments.annotated_faces.groups import Groups, make_groups
from qdgs_jax.experiments.annotated_faces.judge import find_judge
from qdgs_jax.problem import Problem, load_problem


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
    with claimed_results(out, plan(config, search, problem), resume=resume):
        random, found = _find(config, search, problem, reader, groups, out, allow_code)
        reported = report.Report(problem, reader, groups, config, find_judge())
        judge = reported.judge_on_random(random)
        rows = [reported.row(arm, each, out / f"{arm}.png") for arm, each in found.items()]
        results = {
            **plan(config, search, problem), **problem.provenance(), **provenance.occasion(),
            "judge": judge, "rows": rows,
        }  # fmt: skip
        files.write(out / "table.md", table(results))
        files.write(out / "results.json", json.dumps(results, indent=1) + "\n")
    return results


def table(results: dict[str, Any]) -> str:
    """The contents of results.json as tables."""
    return report.table(results["rows"], results["judge"])


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

    def file(name: str) -> Path:
        return out / "results" / f"{name}.safetensors"

    random = remembered(
        file("random"), arms.Random, lambda: arms.read_random(problem, reader, config)
    )
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
    return random, {arm: remembered(file(arm), arms.Found, each) for arm, each in make.items()}
