"""Biased classifiers, repaired by other images: the experiment on drawings, or anybody's folders.

Both write the same folder, and resume in it where they were interrupted:

plan.json        the config, and what made the results
results/         a file for each training: how often each group was given each class
results.json     fairness before and after, over seeds
table.md         the same as a table
accuracy.png     over biases (the experiment alone)
search-SEED/, qdgs-SEED/, random-SEED/   the experiment's runs and synthetic images
"""

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from qdgs_jax import files, generators, provenance
from qdgs_jax.config import Config
from qdgs_jax.datasets import class_folders as labelled_folder
from qdgs_jax.datasets.class_folders import LabelledImages, read_folder
from qdgs_jax.errors import ConfigError, QDGSError
from qdgs_jax.evaluation import fairness
from qdgs_jax.evaluation.fairness import Groups
from qdgs_jax.experiments.repair import figures
from qdgs_jax.experiments.repair.arms import (
    CLASSES,
    COLOURS,
    as_data,
    describe_synthetic,
    draw_in_bytes,
    epochs_of,
    make_arms,
    make_synthetic,
)
from qdgs_jax.experiments.repair.config import LABELS, RepairConfig
from qdgs_jax.folders import claimed, interruptions_explained, require_same_config
from qdgs_jax.schema import read_json
from qdgs_jax.shapes import drawings as shapes
from qdgs_jax.training import classifier
from qdgs_jax.training.classifier import Data
from qdgs_jax.training.config import TrainConfig
from qdgs_jax.typing import Array, Key

BEFORE = "before repair"
AFTER = "after repair"
EPOCHS_AT_ONCE = 2  # epochs a call, so that Ctrl-C is noticed


class Test(NamedTuple):
    """What all classifiers are tested on."""

    images: Array  # [N, H, W, 3] uint8
    groups: Groups
    classes: tuple[str, ...]


def run_experiment(
    config: RepairConfig, search: Config, out: Path, *, resume: bool = False
) -> dict[str, Any]:
    """Trains on biased drawings, repairs with each arm's images, tests on unbiased drawings.

    Args:
        config: what is compared; its `search` is not read.
        search: of the synthetic images. Their labels come from its bins, that is from measures;
            each seed has a search and random samples of its own.
        out: folder to write, or with `resume` to continue in.

    Returns:
        What results.json holds.

    Raises:
        ConfigError: the folder holds other results, the search has no bins of both shapes, or
            there are too few drawings to test on.
        QDGSError: a search was interrupted or is too short to fill any bin, or no space.
    """
    labels = {bin.label for bin in search.export.bins}
    if labels != set(CLASSES):
        raise ConfigError(
            f"The bins of the search have the labels {', '.join(sorted(labels)) or '(none)'}, "
            f"but the drawings are {' and '.join(CLASSES)}s: label its bins so."
        )
    plan = {"config": _without_search(config)}
    with (
        interruptions_explained(out, again="run the same command with --resume"),
        _claimed(out, plan, resume=resume),
    ):
        size = generators.load(search.generator.model)[0].image_size
        draw = functools.partial(draw_in_bytes, image_size=size)
        test = _unbiased_test(draw(jax.random.key(2**32 - 1), config.test_images, 0.5))
        todo = [
            (bias, seed)
            for bias in config.biases
            for seed in range(config.seeds)
            if not _result_path(out, seed, bias).exists()
        ]
        synthetic = {
            seed: make_synthetic(config, search, seed, out)
            for seed in sorted({seed for _, seed in todo})
        }
        epochs: dict[str, int] = {arm: epochs_of(config, arm) for arm in config.arms}
        with _bar(config, len(todo), epochs) as bar:
            for bias in config.biases:
                for seeds in _together([seed for at, seed in todo if at == bias]):
                    first, arms = zip(
                        *(make_arms(config, draw, bias, s, synthetic[s]) for s in seeds),
                        strict=True,
                    )
                    _train_and_test(config, out, seeds, first, arms, epochs, test, bar, bias=bias)
        results = _collect(config, out, test, config.biases)
        results["synthetic"] = [describe_synthetic(out, seed) for seed in range(config.seeds)]
        _write(out, results)
        figures.draw_accuracy(out / "accuracy.png", results["rows"])
    return results


def repair_folders(
    config: TrainConfig,
    out: Path,
    *,
    train: Path,
    test: Path,
    group: str,
    repair: Path | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Trains on one ImageFolder, repairs with another, tests by group on a third.

    Args:
        out: folder to write, or with `resume` to continue in.
        train: images in class folders.
        test: images in class folders, with a metadata.jsonl.
        group: column of the test's metadata.jsonl: the protected attribute.
        repair: images in class folders; none to train only.

    Returns:
        What results.json holds.

    Raises:
        ConfigError: `out` holds other results, or folders that do not fit each other.
        QDGSError: an image cannot be read, or no space.
    """
    folders = {"train": train, "test": test, **({"repair": repair} if repair else {})}
    read = {
        name: read_folder(path, group=group if name == "test" else None)
        for name, path in folders.items()
    }
    classes = labelled_folder.require_fit(read, folders, halvings=len(config.classifier.channels))
    names = {name: str(path) for name, path in folders.items()}
    plan = {"config": _without_search(config), "folders": names, "group": group}
    with (
        interruptions_explained(out, again="run the same command with --resume"),
        _claimed(out, plan, resume=resume),
    ):
        data = {name: as_data(images, classes) for name, images in read.items()}
        tested = Test(data["test"].images, _groups(read["test"], classes), classes)
        arms = {AFTER: data["repair"]} if repair else {}
        epochs = dict.fromkeys(arms, config.training.repair_epochs)
        todo = [seed for seed in range(config.seeds) if not _result_path(out, seed).exists()]
        with _bar(config, len(todo), epochs) as bar:
            for seeds in _together(todo):
                first = [data["train"]] * len(seeds)
                each = [arms] * len(seeds)
                _train_and_test(config, out, seeds, first, each, epochs, tested, bar)
        results = _collect(config, out, tested)
        _write(out, results)
    return results


def _train_and_test(
    config: TrainConfig,
    out: Path,
    seeds: Sequence[int],
    first: Sequence[Data],
    arms: Sequence[dict[str, Data]],
    repair_epochs: dict[str, int],
    test: Test,
    bar: Any,
    **named: float,
) -> None:
    """Trains with `first`, then fine-tunes from there with each arm; writes a file a seed.

    Args:
        first, arms: one a seed.
        repair_epochs: of each arm.
        named: what the files say beside the seed.
    """
    began = time.perf_counter()
    model, training, classes = config.classifier, config.training, len(test.classes)
    keys = jax.vmap(jax.random.key)(jnp.array(seeds, jnp.uint32))
    init_keys, first_keys, repair_keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys).T
    shape = test.images.shape[1:]
    counts = {}

    def advance(
        state: classifier.TrainingState, keys: Key, data: Sequence[Data], epochs: int, name: str
    ) -> classifier.TrainingState:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *data)
        for start in range(0, epochs, EPOCHS_AT_ONCE):
            some = min(EPOCHS_AT_ONCE, epochs - start)
            state = classifier.train(model, training, state, keys, stacked, some, classes=classes)
            jax.block_until_ready(state)
            bar.update(some * len(seeds))
        predicted = classifier.predict(model, state.params, test.images, classes=classes)
        counts[name] = fairness.count(np.asarray(predicted), test.groups, classes=classes)
        return state

    params = classifier.init(model, init_keys, image_shape=shape, classes=classes)
    state = classifier.start(training, params)
    trained = advance(state, first_keys, first, training.epochs, BEFORE)
    for name, epochs in repair_epochs.items():
        state = classifier.start(training, trained.params)
        advance(state, repair_keys, [each[name] for each in arms], epochs, name)
    seconds = (time.perf_counter() - began) / len(seeds)
    for row, seed in enumerate(seeds):
        found = {name: values[row].tolist() for name, values in counts.items()}
        result = {**named, "seed": seed, "seconds": seconds, "counts": found}
        files.write(_result_path(out, seed, *named.values()), json.dumps(result) + "\n")


def _together(seeds: Sequence[int]) -> Iterable[Sequence[int]]:
    """Groups of seeds trained in one vmapped program: one on a CPU, all on an accelerator."""
    size = 1 if jax.default_backend() == "cpu" else max(1, len(seeds))
    return [seeds[start : start + size] for start in range(0, len(seeds), size)]


def _bar(config: TrainConfig, trainings: int, repair_epochs: dict[str, int]) -> tqdm:
    epochs = config.training.epochs + sum(repair_epochs.values())
    return tqdm(total=trainings * epochs, unit="epoch", disable=None, dynamic_ncols=True)


def _unbiased_test(drawings: shapes.Drawings) -> Test:
    names = tuple(f"{colour} {shape}" for shape in CLASSES for colour in COLOURS)
    of = np.asarray(drawings.shape * len(COLOURS) + drawings.colour)
    if missing := [name for group, name in enumerate(names) if group not in of]:
        raise ConfigError(
            f"Among {len(of)} drawings to test on, none is a {missing[0]}: raise `test_images`."
        )
    return Test(drawings.images, Groups(names, np.array([0, 0, 1, 1]), of), CLASSES)


def _groups(images: LabelledImages, classes: Sequence[str]) -> Groups:
    pairs = list(zip(images.labels, images.groups, strict=True))
    known = sorted(set(pairs))
    labels = np.array([classes.index(label) for label, _ in known])
    names = tuple(f"{label}, {group}" for label, group in known)
    return Groups(names, labels, np.array([known.index(pair) for pair in pairs]))


@contextlib.contextmanager
def _claimed(out: Path, plan: dict[str, Any], *, resume: bool) -> Iterator[None]:
    """Makes `out` the folder of this plan, or checks that it is; no other process writes in it."""
    with claimed(out, "plan.json", holds="results", resume=resume) as known:
        if known:
            before, now = read_json(known), json.loads(json.dumps(plan))
            if not isinstance(before, dict):
                raise QDGSError(f"{known} is damaged: choose another folder.")
            require_same_config(out, {key: before.get(key) for key in now}, now)
        else:  # the plan first: it makes the folder one of results
            text = json.dumps({**plan, **provenance.environment()}, indent=1) + "\n"
            files.write(out / "plan.json", text)
        (out / "results").mkdir(exist_ok=True)
        yield


def _without_search(config: TrainConfig) -> dict[str, Any]:
    """The config but for a path; the search's own config stands in its folder."""
    values = dataclasses.asdict(config)
    values.pop("search", None)
    return values


def _result_path(out: Path, seed: int, bias: float | None = None) -> Path:
    name = f"seed-{seed}.json" if bias is None else f"bias-{bias:g}-seed-{seed}.json"
    return out / "results" / name


def _collect(
    config: TrainConfig, out: Path, test: Test, biases: Sequence[float | None] = (None,)
) -> dict[str, Any]:
    """Fairness over seeds, from the files of all trainings."""
    rows, seconds = [], 0.0
    for bias in biases:
        found = [
            json.loads(_result_path(out, seed, bias).read_text()) for seed in range(config.seeds)
        ]
        seconds += sum(each["seconds"] for each in found)
        for arm in found[0]["counts"]:
            counts = np.array([each["counts"][arm] for each in found])  # [S, G, K]
            label = LABELS.get(arm, arm)
            about = {"arm": label} if bias is None else {"bias": bias, "arm": label}
            rows.append({**about, **fairness.over_seeds(counts, test.groups)})
    return {
        "seeds": config.seeds,
        "classes": list(test.classes),
        "groups": {
            name: int((test.groups.of == group).sum())
            for group, name in enumerate(test.groups.names)
        },
        "seconds": seconds,
        "rows": rows,
    }


def _write(out: Path, results: dict[str, Any]) -> None:
    files.write(out / "results.json", json.dumps(results, indent=1) + "\n")
    files.write(out / "table.md", fairness.table(results["rows"]))
