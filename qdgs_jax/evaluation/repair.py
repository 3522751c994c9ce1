"""Trains classifiers, repairs them by fine-tuning on other images, tests them by group.

A folder of results, from which an interrupted call resumes:

plan.json        the config, the device and versions
results/         a file for each training: counts of predicted classes by group
results.json     fairness before and after, over seeds
table.md         the same as a table
"""

import dataclasses
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from qdgs_jax import files
from qdgs_jax.chunks import bytes_of, device_memory
from qdgs_jax.datasets.class_folders import LabelledImages, read_folder, require_fit
from qdgs_jax.errors import ConfigError
from qdgs_jax.evaluation import fairness
from qdgs_jax.evaluation.fairness import Groups
from qdgs_jax.evaluation.results import claimed_results
from qdgs_jax.keys import make_key
from qdgs_jax.training import classifier
from qdgs_jax.training.classifier import Data
from qdgs_jax.training.config import TrainConfig
from qdgs_jax.typing import Array, Key

BEFORE = "before repair"
AFTER = "after repair"
EPOCHS_AT_ONCE = 2  # epochs a call, so that Ctrl-C is noticed


class Test(NamedTuple):
    """The test images of all classifiers."""

    images: Array  # [N, H, W, 3] uint8
    groups: Groups
    classes: tuple[str, ...]


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
    """Trains on one ImageFolder, fine-tunes with another, and tests by group on a third.

    Args:
        out: folder to write, or with `resume` to continue in.
        train: images in class folders.
        test: images in class folders, with a metadata.jsonl.
        group: column of the test's metadata.jsonl: the protected attribute.
        repair: images in class folders; None: training only.

    Returns:
        The contents of results.json.

    Raises:
        ConfigError: `out` holds other results, folders that do not fit each other, or a
            classifier too large for the device.
        QDGSError: an image cannot be read, or no space.
    """
    folders = {"train": train, "test": test, **({"repair": repair} if repair else {})}
    read = {
        name: read_folder(path, group=group if name == "test" else None)
        for name, path in folders.items()
    }
    classes = require_fit(read, folders, halvings=len(config.classifier.channels))
    require_memory(config, read["test"].pixels.shape[1:])
    _warn_of_seen(read, folders)
    names = {name: str(path) for name, path in folders.items()}
    plan = {"config": dataclasses.asdict(config), "folders": names, "group": group}
    with claimed_results(out, plan, resume=resume):
        data = {name: as_data(images, classes) for name, images in read.items()}
        tested = Test(data["test"].images, _groups(read["test"], classes), classes)
        repairs = {AFTER: data["repair"]} if repair else {}
        epochs = dict.fromkeys(repairs, config.training.repair_epochs)
        results = train_and_repair(
            config, out, tested, lambda bias, seed: (data["train"], repairs), epochs
        )
        write_results(out, results)
    return results


def _warn_of_seen(read: Mapping[str, LabelledImages], folders: Mapping[str, Path]) -> None:
    """Warns of test images that are also trained on: their accuracy says nothing of new images."""
    tested = [image.tobytes() for image in read["test"].pixels]
    for name in read.keys() - {"test"}:
        seen = {image.tobytes() for image in read[name].pixels}
        if same := sum(image in seen for image in tested):
            warnings.warn(
                f"{same} of the {len(tested)} test images are also in {folders[name]}: test on "
                "others, or the accuracy is that of known images.",
                stacklevel=3,
            )


def require_memory(config: TrainConfig, image_shape: tuple[int, ...]) -> None:
    """Refuses a classifier of images [H, W, 3] whose training no device could hold.

    Raises:
        ConfigError: its weights and their optimiser take more than the memory of the device.
    """

    def largest() -> classifier.TrainingState:
        keys = jax.random.split(jax.random.key(0), len(_together(range(config.seeds))[0]))
        params = classifier.init(config.classifier, keys, image_shape=image_shape, classes=2)
        return classifier.start(config.training, params)

    needed, memory = bytes_of(largest), device_memory()
    if needed > memory:
        raise ConfigError(
            f"The classifier needs {needed / 2**30:,.0f} GiB to be trained, but the device has "
            f"{memory / 2**30:,.0f}: lower classifier.channels or classifier.hidden."
        )


def as_data(images: LabelledImages, classes: Sequence[str]) -> Data:
    """Images with the positions of their labels among `classes`, all of weight 1."""
    labels = jnp.array([classes.index(label) for label in images.labels])
    return Data(jnp.asarray(images.pixels), labels, jnp.ones(len(labels)))


def _groups(images: LabelledImages, classes: Sequence[str]) -> Groups:
    pairs = list(zip(images.labels, images.groups, strict=True))
    known = sorted(set(pairs))
    labels = np.array([classes.index(label) for label, _ in known])
    names = tuple(f"{label}, {group}" for label, group in known)
    return Groups(names, labels, np.array([known.index(pair) for pair in pairs]))


def train_and_repair(
    config: TrainConfig,
    out: Path,
    test: Test,
    make_data: Callable[[Any, int], tuple[Data, Mapping[str, Data]]],
    repair_epochs: Mapping[str, int],
    *,
    biases: Sequence[float | None] = (None,),
    labels: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Runs the trainings that a folder of results lacks, each with all its repairs.

    Args:
        out: folder that `claimed_results` has claimed.
        make_data: (bias, seed) -> the data of the training, and of each arm's repair.
        repair_epochs: of each arm.
        biases: of the training images, where there are several.
        labels: names of arms in tables, if different.

    Returns:
        Fairness of each arm over seeds, by bias.
    """
    todo = unfinished(config, out, biases)
    with _bar(config, len(todo), repair_epochs) as bar:
        for bias in biases:
            for seeds in _together([seed for at, seed in todo if at == bias]):
                data = [make_data(bias, seed) for seed in seeds]
                _train_and_test(config, out, seeds, data, repair_epochs, test, bar, bias)
    return _collect(config, out, test, biases, labels)


def unfinished(
    config: TrainConfig, out: Path, biases: Sequence[float | None]
) -> list[tuple[float | None, int]]:
    """Bias and seed of each training without a file of results."""
    return [
        (bias, seed)
        for bias in biases
        for seed in range(config.seeds)
        if not _result_path(out, seed, bias).exists()
    ]


def _train_and_test(
    config: TrainConfig,
    out: Path,
    seeds: Sequence[int],
    data: Sequence[tuple[Data, Mapping[str, Data]]],
    repair_epochs: Mapping[str, int],
    test: Test,
    bar: Any,
    bias: float | None,
) -> None:
    """Trains on each seed's data, fine-tunes with each arm's, and writes a file for each seed."""
    began = time.perf_counter()
    model, training, classes = config.classifier, config.training, len(test.classes)
    init_keys, first_keys, repair_keys = (
        jnp.stack([make_key(seed, purpose) for seed in seeds])
        for purpose in ("initial weights", "order of training", "order of repair")
    )
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
    first, arms = zip(*data, strict=True)
    trained = advance(state, first_keys, first, training.epochs, BEFORE)
    for name, epochs in repair_epochs.items():
        state = classifier.start(training, trained.params)
        advance(state, repair_keys, [each[name] for each in arms], epochs, name)
    seconds = (time.perf_counter() - began) / len(seeds)
    for row, seed in enumerate(seeds):
        found = {name: values[row].tolist() for name, values in counts.items()}
        about = {} if bias is None else {"bias": bias}
        result = {**about, "seed": seed, "seconds": seconds, "counts": found}
        files.write(_result_path(out, seed, bias), json.dumps(result) + "\n")


def _together(seeds: Sequence[int]) -> list[Sequence[int]]:
    """Groups of seeds trained in one vmapped program: one on a CPU, all on an accelerator."""
    size = 1 if jax.default_backend() == "cpu" else max(1, len(seeds))
    return [seeds[start : start + size] for start in range(0, len(seeds), size)]


def _bar(config: TrainConfig, trainings: int, repair_epochs: Mapping[str, int]) -> tqdm:
    epochs = config.training.epochs + sum(repair_epochs.values())
    return tqdm(total=trainings * epochs, unit="epoch", disable=None, dynamic_ncols=True)


def _result_path(out: Path, seed: int, bias: float | None) -> Path:
    name = f"seed-{seed}.json" if bias is None else f"bias-{bias:g}-seed-{seed}.json"
    return out / "results" / name


def _collect(
    config: TrainConfig,
    out: Path,
    test: Test,
    biases: Sequence[float | None],
    labels: Mapping[str, str],
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
            label = labels.get(arm, arm)
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


def write_results(out: Path, results: dict[str, Any]) -> None:
    files.write(out / "results.json", json.dumps(results, indent=1) + "\n")
    files.write(out / "table.md", fairness.table(results["rows"]))
