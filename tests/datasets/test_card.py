"""The card of a dataset says what it is."""

import dataclasses
import json
import math

import pytest
import yaml

from qdgs_jax import encoders
from qdgs_jax.config import (
    NOTICES,
    BinConfig,
    Config,
    ExportConfig,
    MeasureConfig,
    ObjectiveConfig,
    RunConfig,
    SearchConfig,
)
from qdgs_jax.datasets import export as dataset
from qdgs_jax.runs import sampling as runs

LEFT = BinConfig(name="left", label="low", where={"x": (-math.inf, -0.5)})
RIGHT = BinConfig(name="right", label="high", where={"x": (0.5, math.inf)})


def test_the_card_is_filled(run, tmp_path):
    dataset.export(run(LEFT, RIGHT), tmp_path / "out", count=11)
    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith("---\nlicense: cc0-1.0\n")  # make_config names the built-in generator
    assert "- synthetic" in card
    assert "- n<1K" in card
    assert "| left | low | 6 | 6 | 6 |" in card
    assert 'd(image, "low x") - d(image, "high x")' in card
    assert "{" not in card.split("\n---\n")[1]


@pytest.mark.slow
def test_no_encoder_is_loaded_or_named_without_prompts(tmp_path, monkeypatch, records):
    monkeypatch.setattr(encoders, "load", lambda model, **_: pytest.fail("nobody needs it"))
    config = Config(
        objective=ObjectiveConfig(typicality=0.5),
        measures=(MeasureConfig(name="light", function="brightness"),),
        search=SearchConfig(
            generations=2, emitters=2, batch_size=2, initial_samples=8, threshold_min=-1e6
        ),
        run=RunConfig(log_every=1, checkpoint_every=2),
    )
    assert runs.sample(config, tmp_path / "run")["encoder"] is None
    runs.sample(config, tmp_path / "run", resume=True)
    dataset.export(tmp_path / "run", tmp_path / "out", count=3)
    assert json.loads((tmp_path / "out/manifest.json").read_text())["encoder"] is None
    assert all("encoder" not in record for record in records(tmp_path / "out"))
    card = (tmp_path / "out/README.md").read_text()
    assert "* encoder: none\n" in card
    assert "100 - 50 (0.5 x the distance of the image to random images" in card
    assert "d is the angle" not in card


def test_the_card_repeats_the_notice_and_the_whole_objective(tmp_path, make_config, write_run):
    config = make_config(LEFT, RIGHT)
    objective = dataclasses.replace(config.objective, regularisation=0.5, uniqueness=0.2)
    config = dataclasses.replace(config, notice="faces", objective=objective)
    dataset.export(write_run(tmp_path / "run", config), tmp_path / "out", count=2)
    card = (tmp_path / "out/README.md").read_text()
    assert f"\n\n{NOTICES['faces']}\n\n" in card
    assert '"no red") + 0.5 x the squared distance' in card
    assert "+ 0.2 x how similar the image is to recent good images" in card


def header_of(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


AWKWARD = (
    "train",
    "test",
    "validation",
    "yes",
    "null",
    "1e3",
    "010",
    "été",
    "日本",
    "a, b+c (d=-e)",
)


def test_the_header_declares_files_and_columns(tmp_path, make_config, write_run):
    """What YAML reads as numbers, truth values or nothing is quoted; nothing is a split by name."""
    config = make_config()
    odd = dataclasses.replace(config.measures[0], name="\U0001f600: \u2028\x85")
    bins = tuple(
        BinConfig(name=label, label=label, where={odd.name: (place / 5 - 1, place / 5 - 0.8)})
        for place, label in enumerate(AWKWARD)
    )
    export = ExportConfig(bins=bins)
    config = dataclasses.replace(config, measures=(odd, config.measures[1]), export=export)
    path = write_run(tmp_path / "run", config)
    dataset.export(path, tmp_path / "out", count=10)
    (config,) = header_of((tmp_path / "out/README.md").read_text())["configs"]
    files = {"split": "train", "path": ["metadata.jsonl", "**/*.png"]}
    assert config["config_name"] == "default"
    assert config["data_files"] == [files]
    types = {column["name"]: column["dtype"] for column in config["features"]}
    names = [types["label"]["class_label"]["names"][str(number)] for number in range(10)]
    assert names == sorted(AWKWARD)
    record = json.loads((tmp_path / "out/metadata.jsonl").read_text().split("\n")[0])
    assert list(types) == ["image", *list(record)[1:]]
    assert types["measure_" + odd.name] == types["objective"] == "float64"

    dataset.export(path, tmp_path / "split", count=40, test_share=0.25)
    (config,) = header_of((tmp_path / "split/README.md").read_text())["configs"]
    assert config["data_files"] == [
        {"split": part, "path": [f"{part}/metadata.jsonl", f"{part}/**/*.png"]}
        for part in ("train", "test")
    ]


@pytest.mark.parametrize(
    ("labels", "count", "share"),
    [
        (("train", "test"), 8, None),
        (("train", "bus"), 8, None),
        (AWKWARD, 30, None),
        (AWKWARD, 1, None),  # nine classes are empty
        (("one",), 1, None),
        (("test", "dev"), 40, 0.25),
    ],
)
def test_hugging_face_reads_every_image_with_its_label(
    tmp_path, make_config, write_run, records, monkeypatch, labels, count, share
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    edges = [-math.inf, *(2 * place / len(labels) - 1 for place in range(1, len(labels))), math.inf]
    bins = [
        BinConfig(name=label, label=label, where={"x": (edges[place], edges[place + 1])})
        for place, label in enumerate(labels)
    ]
    path, out = write_run(tmp_path / "run", make_config(*bins)), tmp_path / "out"
    dataset.export(path, out, count=count, test_share=share)
    read = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    sizes = {"train": count} if share is None else {"train": 30, "test": 10}
    assert {part: len(images) for part, images in read.items()} == sizes
    for part, images in read.items():
        assert images.features["label"].names == sorted(labels)
        expected = records(out if share is None else out / part)
        for image, record in zip(images, expected, strict=True):
            assert images.features["label"].int2str(image["label"]) == record["label_name"]
            assert image.pop("image").size == (4, 4)
            assert record.pop("file_name")
            assert image == record
