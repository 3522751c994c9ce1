"""Biased classifiers, repaired by other images: the experiment on drawings, or anybody's folders.

Both write the same folder, and go on in it where they were interrupted:

plan.json        the config, and what made the results
results/         a file for each training: how often each group was given each class
results.json     fairness before and after, over seeds
table.md         the same as a table
accuracy.png     over biases (the experiment alone)
search-SEED/, qdgs-SEED/, random-SEED/   the experiment's runs and synthetic images
"""

import dataclasses
import functools
import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from qdgs_jax import files, generators, provenance
from qdgs_jax.config import Config
from qdgs_jax.datasets import class_folders as labelled_folder
from qdgs_jax.datasets import export as dataset
from qdgs_jax.datasets.class_folders import LabelledImages, read_folder
from qdgs_jax.errors import ConfigError
from qdgs_jax.evaluation import fairness
from qdgs_jax.evaluation.fairness import Groups
from qdgs_jax.experiments.repair import figures
from qdgs_jax.experiments.repair.config import LABELS, RepairConfig
from qdgs_jax.folders import claim, interruptions_explained, require_same_config
from qdgs_jax.runs import sampling as runs
from qdgs_jax.runs.results import load_run
from qdgs_jax.shapes import drawings as shapes
from qdgs_jax.training import classifier
from qdgs_jax.training.classifier import Data
from qdgs_jax.training.config import TrainConfig
from qdgs_jax.typing import Array, Key

BEFORE = "before repair"
AFTER = "after repair"
CLASSES = shapes.SHAPES[:2]
COLOURS = tuple(shapes.COLOURS)[:2]
EPOCHS_AT_ONCE = 2  # between two looks at the keyboard


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
        out: folder to write, or with `resume` to go on in.

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
    with interruptions_explained(out, again="run the same command with --resume"):
        _claim(out, {"config": _without_search(config)}, resume=resume)
        size = generators.load(search.generator.model)[0].image_size
        draw = functools.partial(_draw, image_size=size)
        test = _unbiased_test(draw(jax.random.key(2**32 - 1), config.test_images, 0.5))
        todo = [
            (bias, seed)
            for bias in config.biases
            for seed in range(config.seeds)
            if not _result_path(out, seed, bias).exists()
        ]
        synthetic = {
            seed: _make_synthetic(config, search, seed, out)
            for seed in sorted({seed for _, seed in todo})
        }
        epochs: dict[str, int] = {arm: epochs_of(config, arm) for arm in config.arms}
        with _bar(config, len(todo), epochs) as bar:
            for bias in config.biases:
                for seeds in _together([seed for at, seed in todo if at == bias]):
                    first, arms = zip(
                        *(_make_arms(config, draw, bias, s, synthetic[s]) for s in seeds),
                        strict=True,
                    )
                    _train_and_test(config, out, seeds, first, arms, epochs, test, bar, bias=bias)
        results = _collect(config, out, test, config.biases)
        results["synthetic"] = [_describe_synthetic(out, seed) for seed in range(config.seeds)]
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
        out: folder to write, or with `resume` to go on in.
        train: images in class folders.
        test: images in class folders, with a metadata.jsonl.
        group: column of the test's metadata.jsonl that must not matter.
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
    with interruptions_explained(out, again="run the same command with --resume"):
        _claim(out, plan, resume=resume)
        data = {name: _as_data(images, classes) for name, images in read.items()}
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
    """Trains with `first`, then anew from there with each of the arms; writes a file a seed.

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
    """Seeds in parts that are trained beside each other: cores are busy with one already."""
    size = 1 if jax.default_backend() == "cpu" else max(1, len(seeds))
    return [seeds[start : start + size] for start in range(0, len(seeds), size)]


def epochs_of(config: RepairConfig, arm: str) -> int:
    """Epochs of an arm's repair: fewer for the biased drawings, of which an epoch shows more."""
    epochs = config.training.repair_epochs
    if arm == "biased":
        return max(1, round(epochs * config.repair_images / config.images))
    return epochs


def _bar(config: TrainConfig, trainings: int, repair_epochs: dict[str, int]) -> tqdm:
    epochs = config.training.epochs + sum(repair_epochs.values())
    return tqdm(total=trainings * epochs, unit="epoch", disable=None, dynamic_ncols=True)


def _make_synthetic(
    config: RepairConfig, search: Config, seed: int, out: Path
) -> dict[str, LabelledImages]:
    """The seed's elites and random samples, from their folders, which are made where missing."""
    search = dataclasses.replace(search, seed=search.seed + seed)
    run = out / f"search-{seed}"
    if not (run / "summary.json").is_file():
        name, total = f"search {seed}", search.search.generations
        with tqdm(desc=name, total=total, unit="gen", disable=None, dynamic_ncols=True) as bar:
            runs.sample(
                search,
                run,
                resume=True,
                report=lambda row: bar.update(int(row["generation"]) - bar.n),
            )
    found = load_run(run).config
    wanted = [measure.range for measure in search.measures]
    measures = tuple(
        dataclasses.replace(measure, range=range)
        for measure, range in zip(found.measures, wanted, strict=False)
    )
    if dataclasses.replace(found, measures=measures) != search:
        raise ConfigError(f"{run} is the run of another search: choose another --out.")
    elites, random = out / f"qdgs-{seed}", out / f"random-{seed}"
    count = config.repair_images
    dataset.export(run, elites, count=count, seed=seed)
    dataset.baseline(found, random, count=count, seed=search.seed, nearest_bin=True)
    sets = {"qdgs": read_folder(elites, group="bin"), "random": read_folder(random, group="bin")}
    # Where bins are empty, elites repeat: each arm has as many images, and so as many updates.
    return {name: images.take(np.arange(count) % len(images)) for name, images in sets.items()}


def _make_arms(
    config: RepairConfig, draw: Any, bias: float, seed: int, synthetic: dict[str, LabelledImages]
) -> tuple[Data, dict[str, Data]]:
    """The biased drawings, and what each arm repairs with."""
    biased_key, unbiased_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1))
    biased = _plain(draw(biased_key, config.images, bias))
    random, qdgs = (_as_data(synthetic[name], CLASSES) for name in ("random", "qdgs"))
    made = {
        "biased": lambda: biased,
        "random": lambda: random,
        "random_equal_classes": lambda: random._replace(weights=equal(synthetic["random"].labels)),
        "random_equal_bins": lambda: random._replace(weights=equal(synthetic["random"].groups)),
        "qdgs": lambda: qdgs,
        "unbiased": lambda: _plain(draw(unbiased_key, config.repair_images, 0.5)),
    }
    return biased, {arm: made[arm]() for arm in config.arms}


def equal(values: Sequence[str]) -> Array:
    """Weights [N], 1 on average, by which each value weighs as much as any other."""
    counts = Counter(values)
    return jnp.array([len(values) / len(counts) / counts[value] for value in values])


@functools.partial(jax.jit, static_argnums=1, static_argnames="image_size")
def _draw(key: Key, n: int, colour_bias: Array | float, *, image_size: int) -> shapes.Drawings:
    draw = functools.partial(shapes.draw, colour_bias=colour_bias, image_size=image_size)
    return shapes.in_bytes(draw, key, n)


def _plain(drawings: shapes.Drawings) -> Data:
    return Data(drawings.images, drawings.shape, jnp.ones(len(drawings.shape)))


def _unbiased_test(drawings: shapes.Drawings) -> Test:
    names = tuple(f"{colour} {shape}" for shape in CLASSES for colour in COLOURS)
    of = np.asarray(drawings.shape * len(COLOURS) + drawings.colour)
    if missing := [name for group, name in enumerate(names) if group not in of]:
        raise ConfigError(
            f"Among {len(of)} drawings to test on, none is a {missing[0]}: raise `test_images`."
        )
    return Test(drawings.images, Groups(names, np.array([0, 0, 1, 1]), of), CLASSES)


def _as_data(images: LabelledImages, classes: Sequence[str]) -> Data:
    labels = jnp.array([classes.index(label) for label in images.labels])
    return Data(jnp.asarray(images.pixels), labels, jnp.ones(len(labels)))


def _groups(images: LabelledImages, classes: Sequence[str]) -> Groups:
    pairs = list(zip(images.labels, images.groups, strict=True))
    known = sorted(set(pairs))
    labels = np.array([classes.index(label) for label, _ in known])
    names = tuple(f"{label}, {group}" for label, group in known)
    return Groups(names, labels, np.array([known.index(pair) for pair in pairs]))


def _claim(out: Path, plan: dict[str, Any], *, resume: bool) -> None:
    """Makes `out` the folder of this plan, or checks that it is."""
    if known := claim(out, "plan.json", holds="results", resume=resume):
        before, now = json.loads(known.read_text()), json.loads(json.dumps(plan))
        require_same_config(out, {key: before.get(key) for key in now}, now)
        return
    (out / "results").mkdir(parents=True)
    text = json.dumps({**plan, **provenance.environment()}, indent=1) + "\n"
    files.write(out / "plan.json", text)


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


def _describe_synthetic(out: Path, seed: int) -> dict[str, Any]:
    """What the seed's search found and its random samples happened to be, by bin."""
    summary = json.loads((out / f"search-{seed}/summary.json").read_text())
    described: dict[str, Any] = {"seed": seed, "coverage": summary.get("coverage")}
    for name in ("qdgs", "random"):
        bins = json.loads((out / f"{name}-{seed}/balance.json").read_text())["bins"]
        described[name] = {
            bin["name"]: {key: bin[key] for key in ("available", "got", "distinct")} for bin in bins
        }
    return described


def _write(out: Path, results: dict[str, Any]) -> None:
    files.write(out / "results.json", json.dumps(results, indent=1) + "\n")
    files.write(out / "table.md", fairness.table(results["rows"]))
