"""Repairs classifiers of colour-biased drawings by fine-tuning (QDGS, shapes domain).

Besides what `qdgs_jax.evaluation.repair` writes, the folder has

accuracy.png     accuracy over biases
search-SEED/, qdgs-SEED/, random-SEED/   runs and synthetic images
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from qdgs_jax import generators
from qdgs_jax.config import Config
from qdgs_jax.errors import ConfigError
from qdgs_jax.evaluation import fairness
from qdgs_jax.evaluation.fairness import Groups
from qdgs_jax.evaluation.repair import (
    Test,
    require_memory,
    train_and_repair,
    unfinished,
    write_results,
)
from qdgs_jax.evaluation.results import claimed_results
from qdgs_jax.experiments.repair import figures
from qdgs_jax.experiments.repair.arms import (
    CLASSES,
    COLOURS,
    describe_synthetic,
    draw_in_bytes,
    epochs_of,
    make_arms,
    make_synthetic,
)
from qdgs_jax.experiments.repair.config import LABELS, RepairConfig
from qdgs_jax.keys import make_key
from qdgs_jax.shapes import drawings as shapes


def run_experiment(
    config: RepairConfig,
    search: Config,
    out: Path,
    *,
    resume: bool = False,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Trains on biased drawings, fine-tunes with each arm's images, tests on unbiased drawings.

    Args:
        config: arms, biases and trainings; its `search` is not read.
        search: the search for synthetic images. Its bins label them, by their measures. Each seed
            has its own search and random samples.
        out: folder to write, or with `resume` to continue in.
        allow_code: whether the search's generator, encoder and measures may be functions of other
            packages.

    Returns:
        The contents of results.json.

    Raises:
        ConfigError: the folder holds other results, the search has no bins of both shapes,
            there are too few drawings to test on, or the classifier is too large for the device.
        QDGSError: a search was interrupted or is too short to fill any bin, or no space.
    """
    labels = {bin.label for bin in search.export.bins}
    if labels != set(CLASSES):
        raise ConfigError(
            f"The bins of the search have the labels {', '.join(sorted(labels)) or '(none)'}, "
            f"but the drawings are {' and '.join(CLASSES)}s: give its bins these labels."
        )
    options = dataclasses.asdict(search.generator)
    size, width = generators.load(**options, allow_code=allow_code)[0].image_shape
    if size != width:
        raise ConfigError(
            f"The images of the generator '{search.generator.model}' have {size} x {width} pixels, "
            "but drawings are square: choose another generator."
        )
    require_memory(config, (size, size, 3))
    with claimed_results(out, plan(config), resume=resume):
        draw = functools.partial(draw_in_bytes, image_size=size)
        test = _unbiased_test(draw(make_key(0, "test drawings"), config.test_images, 0.5))
        seeds = sorted({seed for _, seed in unfinished(config, out, config.biases)})
        synthetic = {
            seed: make_synthetic(config, search, seed, out, allow_code=allow_code) for seed in seeds
        }
        results = train_and_repair(
            config,
            out,
            test,
            lambda bias, seed: make_arms(config, draw, bias, seed, synthetic[seed]),
            {arm: epochs_of(config, arm) for arm in config.arms},
            biases=config.biases,
            labels=LABELS,
        )
        results["synthetic"] = [describe_synthetic(out, seed) for seed in range(config.seeds)]
        write_results(out, results)
        figures.draw_accuracy(out / "accuracy.png", results["rows"])
    return results


def table(results: dict[str, Any]) -> str:
    """The contents of results.json as a table."""
    return fairness.table(results["rows"])


def plan(config: RepairConfig) -> dict[str, Any]:
    """The contents of plan.json: the config without the path of the search."""
    values = dataclasses.asdict(config)
    del values["search"]
    return {"config": values}


def _unbiased_test(drawings: shapes.Drawings) -> Test:
    names = tuple(f"{colour} {shape}" for shape in CLASSES for colour in COLOURS)
    of = np.asarray(drawings.shape * len(COLOURS) + drawings.colour)
    if missing := [name for group, name in enumerate(names) if group not in of]:
        raise ConfigError(
            f"None of the {len(of)} test drawings is a {missing[0]}: raise `test_images`."
        )
    return Test(drawings.images, Groups(names, np.array([0, 0, 1, 1]), of), CLASSES)
