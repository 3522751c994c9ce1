"""The arms of the experiment on drawings: the images that each repair uses."""

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from qdgs_jax.config import Config
from qdgs_jax.datasets import export as dataset
from qdgs_jax.datasets.class_folders import LabelledImages, read_folder
from qdgs_jax.evaluation.repair import as_data
from qdgs_jax.experiments.repair.config import RepairConfig
from qdgs_jax.experiments.searches import finished_run
from qdgs_jax.keys import make_key
from qdgs_jax.shapes import drawings as shapes
from qdgs_jax.training.classifier import Data
from qdgs_jax.typing import Array, Key

CLASSES = shapes.SHAPES[:2]
COLOURS = tuple(shapes.COLOURS)[:2]


def epochs_of(config: RepairConfig, arm: str) -> int:
    """Epochs of an arm's repair: fewer for the biased drawings, whose epochs have more images."""
    epochs = config.training.repair_epochs
    if arm == "biased":
        return max(1, round(epochs * config.repair_images / config.images))
    return epochs


def make_synthetic(
    config: RepairConfig, search: Config, seed: int, out: Path, *, allow_code: bool = False
) -> dict[str, LabelledImages]:
    """The seed's elites and random samples, read from their folders; makes missing folders."""
    search = dataclasses.replace(search, seed=search.seed + seed)
    run = out / f"search-{seed}"
    found = finished_run(search, run, f"search {seed}", allow_code=allow_code).config
    elites, random = out / f"qdgs-{seed}", out / f"random-{seed}"
    count = config.repair_images
    dataset.export(run, elites, count=count, seed=seed, allow_code=allow_code)
    dataset.baseline(
        found, random, count=count, seed=search.seed, nearest_bin=True, allow_code=allow_code
    )
    sets = {"qdgs": read_folder(elites, group="bin"), "random": read_folder(random, group="bin")}
    # If bins are empty, elites of all others repeat: all arms have equally many images and updates.
    return {name: images.repeated(count) for name, images in sets.items()}


def make_arms(
    config: RepairConfig, draw: Any, bias: float, seed: int, synthetic: dict[str, LabelledImages]
) -> tuple[Data, dict[str, Data]]:
    """The biased drawings, and the images of each arm's repair."""
    biased = _plain(draw(make_key(seed, "biased drawings"), config.images, bias))
    random, qdgs = (as_data(synthetic[name], CLASSES) for name in ("random", "qdgs"))
    made = {
        "biased": lambda: biased,
        "random": lambda: random,
        "random_equal_classes": lambda: random._replace(weights=equal(synthetic["random"].labels)),
        "random_equal_bins": lambda: random._replace(weights=equal(synthetic["random"].groups)),
        "qdgs": lambda: qdgs,
        "unbiased": lambda: _plain(
            draw(make_key(seed, "unbiased drawings"), config.repair_images, 0.5)
        ),
    }
    return biased, {arm: made[arm]() for arm in config.arms}


def equal(values: Sequence[str]) -> Array:
    """Weights [N], 1 on average, that give each value the same total weight."""
    counts = Counter(values)
    return jnp.array([len(values) / len(counts) / counts[value] for value in values])


@functools.partial(jax.jit, static_argnums=1, static_argnames="image_size")
def draw_in_bytes(
    key: Key, n: int, colour_bias: Array | float, *, image_size: int
) -> shapes.Drawings:
    """Drawings with images of uint8; see `qdgs_jax.shapes.drawings.draw`."""
    some = functools.partial(shapes.draw, colour_bias=colour_bias, image_size=image_size)
    return shapes.in_bytes(some, key, n)


def _plain(drawings: shapes.Drawings) -> Data:
    return Data(drawings.images, drawings.shape, jnp.ones(len(drawings.shape)))


def describe_synthetic(out: Path, seed: int) -> dict[str, Any]:
    """Numbers of elites and random samples of the seed in each bin."""
    summary = json.loads((out / f"search-{seed}/summary.json").read_text())
    described: dict[str, Any] = {"seed": seed, "coverage": summary.get("coverage")}
    for name in ("qdgs", "random"):
        bins = json.loads((out / f"{name}-{seed}/balance.json").read_text())["bins"]
        described[name] = {
            bin["name"]: {key: bin[key] for key in ("available", "got", "distinct")} for bin in bins
        }
    return described
