"""The experiment, with a generator that draws two shapes."""

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from qdgs_jax import encoders, files, generators
from qdgs_jax.cli import run_command
from qdgs_jax.config import (
    BinConfig,
    Config,
    ExportConfig,
    MeasureConfig,
    ObjectiveConfig,
    SearchConfig,
    load_config,
    save_config,
)
from qdgs_jax.datasets.class_folders import read_folder
from qdgs_jax.encoders import Encoder
from qdgs_jax.errors import ConfigError
from qdgs_jax.evaluation.repair import BEFORE
from qdgs_jax.experiments.config import load_experiment_config
from qdgs_jax.experiments.repair import experiment as repair
from qdgs_jax.experiments.repair.arms import equal, make_synthetic
from qdgs_jax.experiments.repair.config import LABELS, RepairConfig
from qdgs_jax.generators import Generator
from qdgs_jax.image_measures import IMAGE_MEASURES
from qdgs_jax.shapes import drawings as shapes
from qdgs_jax.training import classifier
from qdgs_jax.training.config import ClassifierConfig, TrainingConfig

CONFIGS = Path(__file__).parents[3] / "configs/experiments"
SIZE = 12
BELOW, ABOVE = (-math.inf, 0.0), (0.0, math.inf)
TINY = RepairConfig(
    seeds=2,
    biases=(0.9,),
    images=24,
    repair_images=16,
    test_images=24,
    classifier=ClassifierConfig(channels=(3,), hidden=4),
    training=TrainingConfig(batch_size=8, epochs=1, repair_epochs=3),
)


def render(params: Any, latents: Any) -> Any:
    """Colour by the first latent number, shape by the second; squares are larger."""
    shape = (latents[:, 1] > 0).astype(int)
    colour = jnp.array([[1.0, 0, 0], [0, 0, 1]])[(latents[:, 0] > 0).astype(int)]
    place, angle = jnp.full((len(latents), 2), 0.5), jnp.zeros(len(latents))
    return shapes.render(
        shape, colour, place=place, size=0.3 + 0.3 * shape, angle=angle, image_size=SIZE
    )


def blueness(images: Any) -> Any:
    return (images[..., 2] - images[..., 0]).mean(axis=(1, 2))


def largeness(images: Any) -> Any:
    return 0.8 - images[..., 1].mean(axis=(1, 2))


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    def sample(key: Any, n: int) -> Any:
        return jax.random.uniform(key, (n, 2), minval=-1, maxval=1)

    def embed(params: Any, values: Any) -> Any:
        return jnp.ones((len(values), 2)) / math.sqrt(2)

    encoder = Encoder(
        name="eye", sha256="b" * 64, image_size=SIZE, embed_images=embed, embed_tokens=embed,
        tokenize=lambda texts: jnp.zeros((len(texts), 1), int), unknown_words=lambda text: [],
    )  # fmt: skip
    generator = Generator("two shapes", 2, SIZE, sample, render, "a" * 64)
    monkeypatch.setattr(generators, "load", lambda model, **_: (generator, jnp.int32(0)))
    monkeypatch.setattr(encoders, "load", lambda model, **_: (encoder, jnp.int32(0)))
    monkeypatch.setitem(IMAGE_MEASURES, "blueness", blueness)
    monkeypatch.setitem(IMAGE_MEASURES, "largeness", largeness)


def make_search(*, range: Any = "auto") -> Config:
    bins = tuple(
        BinConfig(name=f"{colour} {shape}", label=shape, where={"colour": blue, "shape": large})
        for (colour, blue), (shape, large) in itertools.product(
            (("red", BELOW), ("blue", ABOVE)), (("triangle", BELOW), ("square", ABOVE))
        )
    )
    return Config(
        objective=ObjectiveConfig(positive="good", negative="bad"),
        measures=tuple(
            MeasureConfig(name=name, function=function, range=range, cells=2)
            for name, function in (("colour", "blueness"), ("shape", "largeness"))
        ),
        search=SearchConfig(chunk_size=8, initial_samples=8, constraint="none", threshold_min=0.0),
        export=ExportConfig(bins=bins),
    )


def write_run(path: Path, config: Config) -> None:
    """A finished search with one elite in each of four cells, whose shape measures are swapped.

    Labels by the drawn shapes would therefore differ from labels by the measures.
    """
    measures = np.array(list(itertools.product((-0.5, 0.5), repeat=2)), np.float32)
    path.mkdir(parents=True)
    save_config(path / "config.toml", config)
    index = np.arange(4, dtype=np.int32)
    save_file(
        {
            "solution": measures * np.array([1, -1], np.float32),
            "objective": index.astype(np.float32),
            "measures": measures,
            "index": index,
        },
        path / "archive.safetensors",
    )
    summary = {
        "generator": {"name": "two shapes", "sha256": "a" * 64},
        "encoder": {"name": "eye", "sha256": "b" * 64},
        "precision": "highest", "device": "test", "versions": {}, "coverage": 1.0,
        "elites": 4, "archive_sha256": files.sha256(path / "archive.safetensors"),
    }  # fmt: skip
    (path / "summary.json").write_text(json.dumps(summary))


def prepare(out: Path) -> Path:
    """A folder that was interrupted after its searches."""
    for seed in range(TINY.seeds):
        found = dataclasses.replace(make_search(range=(-1, 1)), seed=seed)
        write_run(out / f"search-{seed}", found)
    (out / "results").mkdir()
    (out / "plan.json").write_text(json.dumps(repair.plan(TINY)))
    return out


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("repair") / "out")


def test_experiment(out: Path) -> None:
    results = repair.run_experiment(TINY, make_search(), out, resume=True)
    assert results == json.loads((out / "results.json").read_text())
    arms = [LABELS.get(arm, arm) for arm in TINY.arms]
    assert [row["arm"] for row in results["rows"]] == [BEFORE, *arms]
    assert sum(results["groups"].values()) == TINY.test_images
    for row in results["rows"]:
        for name in ("mean", "worst", "equalised odds gap", "blue triangle"):
            low, high = row[name]["interval"]
            assert 0 <= low <= row[name]["mean"] <= high <= 1
            assert len(row[name]["seeds"]) == 2
    assert results["synthetic"][1]["qdgs"]["red square"] == {
        "available": 1, "got": 4, "distinct": 1,
    }  # fmt: skip
    assert (out / "table.md").read_text().count("\n") == 2 + len(results["rows"])
    assert "| random, equal bins |" in (out / "table.md").read_text()  # arms in words
    assert (out / "accuracy.png").stat().st_size > 10_000

    # Missing files are made again, with the same content; the others stay.
    path, kept = (out / f"results/bias-0.9-seed-{seed}.json" for seed in (1, 0))
    before, kept_text = json.loads(path.read_text()), kept.read_text()
    path.unlink()
    compiled = classifier.train._cache_size()
    repair.run_experiment(TINY, make_search(), out, resume=True)
    assert classifier.train._cache_size() == compiled
    assert json.loads(path.read_text())["counts"] == before["counts"]
    assert kept.read_text() == kept_text

    with pytest.raises(ConfigError, match="already holds results: pass --resume"):
        repair.run_experiment(TINY, make_search(), out)
    with pytest.raises(ConfigError, match="another config"):
        repair.run_experiment(dataclasses.replace(TINY, images=8), make_search(), out, resume=True)
    path.unlink()
    with pytest.raises(ConfigError, match="the run of another search"):
        repair.run_experiment(
            TINY, dataclasses.replace(make_search(), search=SearchConfig()), out, resume=True
        )


@pytest.mark.slow
def test_arms_differ_in_images_and_weights_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each repair starts from the trained weights with a new optimiser, and sees 60 images."""
    trainings: list[list[Any]] = []

    def train(_model: Any, _training: Any, state: Any, keys: Any, data: Any, epochs: int, **_: Any):
        if state.epoch.max() == 0:
            trainings.append([])
        trainings[-1].append((state, keys, data, epochs))
        return jax.tree.map(lambda leaf: leaf + 1, state)

    monkeypatch.setattr(classifier, "train", train)
    # The number of repair images is odd: neither classes nor bins happen to be equal.
    training = dataclasses.replace(TINY.training, repair_epochs=4)
    config = dataclasses.replace(TINY, seeds=1, images=30, repair_images=15, training=training)
    out = prepare(tmp_path / "out")
    (out / "plan.json").write_text(json.dumps(repair.plan(config)))
    repair.run_experiment(config, make_search(), out, resume=True)
    first, *repairs = trainings
    assert sum(call[-1] for call in first) == config.training.epochs
    trained = jax.tree.map(lambda leaf: leaf + 1, first[-1][0].params)
    start = classifier.start(config.training, trained)
    for state, keys, data, _ in (each[0] for each in repairs):
        jax.tree.map(np.testing.assert_array_equal, state, start)
        assert (keys == repairs[0][0][1]).all()
        assert (keys != first[0][1]).all()
        assert data.weights.mean() == pytest.approx(1)
    for calls in repairs:
        seen = sum(epochs * data.labels.size for _, _, data, epochs in calls)
        assert seen == config.training.repair_epochs * config.repair_images == 60

    names = [arm.replace(",", "").replace(" ", "_") for arm in config.arms]
    arms = {name: calls[0][2] for name, calls in zip(names, repairs, strict=True)}
    jax.tree.map(np.testing.assert_array_equal, arms["biased"], first[0][2])
    random = read_folder(out / "random-0", group="bin")
    np.testing.assert_array_equal(arms["random"].images[0], random.pixels)
    np.testing.assert_array_equal(arms["qdgs"].images[0], read_folder(out / "qdgs-0").pixels)
    for name, values in (("classes", random.labels), ("bins", random.groups)):
        arm = arms[f"random_equal_{name}"]
        np.testing.assert_array_equal(arm.images, arms["random"].images)
        np.testing.assert_array_equal(arm.labels, arms["random"].labels)
        of, counts = np.unique(values, return_inverse=True, return_counts=True)[1:]
        weights = np.bincount(of, np.asarray(arm.weights[0]))
        np.testing.assert_allclose(weights, len(values) / len(counts), rtol=1e-6)
    for name in ("biased", "random", "qdgs", "unbiased"):
        assert (arms[name].weights == 1).all()


def test_labels_come_from_the_measures(tmp_path: Path) -> None:
    synthetic = make_synthetic(TINY, make_search(), 0, prepare(tmp_path / "out"))
    elites, random = synthetic["qdgs"], synthetic["random"]
    assert len(elites) == len(random) == TINY.repair_images
    # The run's measures call small shapes large; random samples are scored correctly.
    small = np.asarray(largeness(elites.pixels / 255)) < 0
    assert np.array_equal(small, [label == "square" for label in elites.labels])
    small = np.asarray(largeness(random.pixels / 255)) < 0
    assert np.array_equal(small, [label == "triangle" for label in random.labels])


def test_code_of_the_search_is_run_if_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("def blueness(images): return images[:, 0, 0, 2]")
    monkeypatch.chdir(tmp_path)
    search = make_search(range=(-1, 1))
    measures = (dataclasses.replace(search.measures[0], function="mine:blueness"),)
    search = dataclasses.replace(search, measures=measures + search.measures[1:])
    write_run(tmp_path / "out/search-0", search)
    with pytest.raises(ConfigError, match="allow-code"):
        make_synthetic(TINY, search, 0, tmp_path / "out")
    make_synthetic(TINY, search, 0, tmp_path / "out", allow_code=True)


def test_equal_weights() -> None:
    weights = np.asarray(equal(["a", "b", "a", "a"]))
    np.testing.assert_allclose(weights, [2 / 3, 2, 2 / 3, 2 / 3])


def test_search_needs_bins_of_both_shapes(tmp_path: Path) -> None:
    search = dataclasses.replace(make_search(), export=ExportConfig())
    with pytest.raises(ConfigError, match="give its bins these labels"):
        repair.run_experiment(TINY, search, tmp_path / "out")


def test_a_group_without_drawings_is_refused(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, test_images=2)
    with pytest.raises(ConfigError, match=r"^None of the 2 test drawings is a .*test_images"):
        repair.run_experiment(config, make_search(), tmp_path / "out")


def test_a_missing_config_takes_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["experiment", "repair", "absent.toml"]) == 2
    assert "Cannot read the config absent.toml" in capsys.readouterr().err


def test_shipped_config() -> None:
    config = load_experiment_config(RepairConfig, CONFIGS / "repair.toml")
    assert config == RepairConfig(search=config.search)  # the defaults are the paper's
    assert load_config(Path(config.search)).export.bins


def test_mistakes_in_a_config(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    for text, sentence in {
        "[training]\nepoch = 1": r"unknown key 'training.epoch' \(did you mean 'epochs'\?\)",
        "biases = [1.5]": "less than or equal to 1",
        "classifier.channels = [1_000_000_000]": "less than or equal to 65536",
        "test_images = 1_000_000_000": "less than or equal to 1000000",
        "arms = ['magic']": "arms",
        "a = ": "not valid TOML",
    }.items():
        path.write_text(text)
        with pytest.raises(ConfigError, match=sentence):
            load_experiment_config(RepairConfig, path)
