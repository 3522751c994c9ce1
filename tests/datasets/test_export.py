"""Elites of a run, or random samples, as a dataset."""

import dataclasses
import json
import math
from collections import Counter
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from qdgs_jax import generators
from qdgs_jax.config import BinConfig
from qdgs_jax.datasets import export as dataset
from qdgs_jax.datasets import image_folder
from qdgs_jax.datasets.class_folders import read_folder
from qdgs_jax.errors import ConfigError, QDGSError
from qdgs_jax.generators import Generator

LEFT = BinConfig(name="left", label="low", where={"x": (-math.inf, -0.5)})
RIGHT = BinConfig(name="right", label="high", where={"x": (0.5, math.inf)})
NOWHERE = BinConfig(name="nowhere", label="missing", where={"x": (7.0, 8.0)})
CELLS = 10


def test_images_show_their_latents_through_the_weights(run, tmp_path, records):
    dataset.export(run(LEFT, RIGHT), tmp_path / "out", count=20)
    for record in records(tmp_path / "out"):
        pixels = np.asarray(Image.open(tmp_path / "out" / record["file_name"]))
        assert pixels.shape == (4, 4, 3)
        expected = np.round(255 * (np.array([record["measure_x"], record["measure_y"]]) + 1) / 2)
        assert abs(pixels[0, 0, :2] - expected).max() <= 1
        assert (pixels[1, 1] == 255).all()


def test_same_arguments_same_bytes(run, tmp_path, contents):
    path = run(LEFT, RIGHT)
    for name in ("one", "two"):
        dataset.export(path, tmp_path / name, count=21, seed=5)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    dataset.export(path, tmp_path / "three", count=21, seed=6)
    assert contents(tmp_path / "one") != contents(tmp_path / "three")


def test_a_split_keeps_copies_together_in_every_bin(run, tmp_path, records, contents):
    corner = BinConfig(name="corner", label="c", where={"x": (0.79, 1.0), "y": (-0.4, 1.0)})
    path, out = run(LEFT, corner, NOWHERE), tmp_path / "out"
    balance = dataset.export(path, out, count=90, test_share=0.2)
    assert [bin.test for bin in balance.bins] == [6, 5, 0]  # of 7 elites, four or five times each
    assert "60 images, 60 of them new; 27 are different" in str(balance)
    assert "11 are in `test`; 90 were asked for" in str(balance)
    assert json.loads((out / "balance.json").read_text())["bins"][1]["test"] == 5
    parts = {part: records(out / part) for part in ("train", "test")}
    rows = [{record["latent_row"] for record in part} for part in parts.values()]
    assert not rows[0] & rows[1]
    assert sorted(record["id"] for part in parts.values() for record in part) == list(range(60))
    for part in ("train", "test"):
        folder = read_folder(out / part, group="bin")
        assert Counter(folder.groups) == Counter(record["bin"] for record in parts[part])
        classes = sorted(path.name for path in (out / part).iterdir() if path.is_dir())
        assert classes == ["c", "low", "missing"]  # as torchvision numbers them
    assert dataset.export(path, out, count=90, test_share=0.2).written == 0
    next((out / "test").rglob("*.png")).unlink()
    before = contents(tmp_path / "out")
    assert dataset.export(path, out, count=90, test_share=0.2).written == 1
    assert len(contents(out)) == len(before) + 1
    with pytest.raises(QDGSError, match="another dataset"):
        dataset.export(path, out, count=90)


def test_a_bin_that_cannot_be_divided_is_named(run, tmp_path):
    dot = BinConfig(name="dot", label="d", where={"x": (0.79, 1.0), "y": (0.8, 1.0)})
    balance = dataset.export(run(LEFT, dot), tmp_path / "out", count=20, test_share=0.2)
    assert [bin.test for bin in balance.bins] == [2, 0]
    assert "2 are in `test`, none of them of these bins: dot" in str(balance)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 2.0, math.nan])
def test_impossible_test_shares(run, tmp_path, share):
    with pytest.raises(ConfigError, match=r"test share of .* is impossible: choose one between"):
        dataset.export(run(), tmp_path / "out", count=9, test_share=share)
    with pytest.raises(ConfigError, match="2 images of 2 elites are too few for a test share of"):
        dataset.export(run(), tmp_path / "out", count=2, test_share=0.1)
    assert not (tmp_path / "out").exists()


def test_all_bins_empty_is_refused(run, tmp_path):
    with pytest.raises(QDGSError, match=r"no bin holds them.*search longer"):
        dataset.export(run(NOWHERE), tmp_path / "out", count=5)
    assert not (tmp_path / "out").exists()  # so that the same folder serves the next attempt


@pytest.mark.parametrize(
    "numbers",
    [{"count": 0}, {"count": 10**12}, {"count": 1, "seed": -1}, {"count": 1, "seed": 2**32}],
)
def test_impossible_numbers(run, tmp_path, numbers, make_config):
    wanted = "or more|more than 10,000,000: ask for fewer|below 2\\^32"
    with pytest.raises(ConfigError, match=wanted):
        dataset.export(run(), tmp_path / "out", **numbers)
    with pytest.raises(ConfigError, match=wanted):
        dataset.baseline(make_config(), tmp_path / "out", **numbers)


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(QDGSError, match="no finished run"):
        dataset.export(tmp_path, tmp_path / "out", count=1)


def test_other_weights_than_the_run_had(run, tmp_path, monkeypatch, make_generator):
    monkeypatch.setattr(generators, "load", lambda model, **_: make_generator(sha256="c" * 64))
    with pytest.raises(QDGSError, match="other weights"):
        dataset.export(run(), tmp_path / "out", count=1)


def test_the_class_of_a_conditional_generator_is_recorded(
    run, tmp_path, monkeypatch, make_generator, records
):
    def render(params: Any, latents: Any) -> Any:  # oblong and grey
        return jnp.broadcast_to(latents[:, :1, None], (len(latents), 4, 6))

    def load(**options: Any) -> Any:
        assert options["allow_code"]
        generator, params = make_generator()
        changes: Any = {"image_size": (4, 6), "render": render, "classes": ("p", "q")}
        return generators.checked(dataclasses.replace(generator, **changes), params)

    monkeypatch.setattr(generators, "load", load)
    dataset.export(run(LEFT, RIGHT), tmp_path / "out", count=20, allow_code=True)
    for record in records(tmp_path / "out"):
        x, y = record["measure_x"], record["measure_y"]
        assert record["generator_class"] == ("p" if x >= y else "q")
        with Image.open(tmp_path / "out" / record["file_name"]) as image:
            assert (image.size, image.mode) == ((6, 4), "RGB")
    assert set(read_folder(tmp_path / "out", group="generator_class").groups) == {"p", "q"}
    card = (tmp_path / "out/README.md").read_text()
    assert '- {"name": "generator_class", "dtype": "string"}' in card
    assert "* `generator_class`: the class that" in card


def test_rendering_streams_in_chunks_compiled_once(
    run, tmp_path, monkeypatch, make_generator, records
):
    shapes = []

    def traced(params: Any, latents: Any) -> Any:
        shapes.append(latents.shape)
        return generator.render(params, latents)

    generator, params = make_generator()
    fake = Generator("flat", 2, 4, generator.sample, traced, "a" * 64)
    monkeypatch.setattr(generators, "load", lambda model, **_: (fake, params))
    sizes = []
    write = image_folder.write

    def counted(out, header, table, pixels, **options):
        def recorded(start: int) -> np.ndarray:
            images = pixels(start)
            sizes.append((start, len(images)))
            return images

        return write(out, header, table, recorded, **options)

    monkeypatch.setattr(image_folder, "write", counted)
    dataset.export(run(), tmp_path / "out", count=21)
    assert shapes == [(8, 2)]
    assert sizes == [(0, 8), (8, 8), (16, 8)]
    assert len(records(tmp_path / "out")) == 21


def test_baseline_labels_random_samples_by_their_bin(tmp_path, make_config, records):
    low = BinConfig(name="low", label="less", where={"x": (-math.inf, 0.7)})
    config = make_config(low, NOWHERE)
    balance = dataset.baseline(config, tmp_path / "out", count=50)
    found = records(tmp_path / "out")
    assert len(found) == balance.got == balance.written == 50
    assert {record["label_name"] for record in found} == {"less", "unlabelled"}
    folders = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert folders == ["less", "missing", "unlabelled"]
    for record in found:
        assert record["label_name"] == ("less" if record["measure_x"] < 0.7 else "unlabelled")
        assert record["bin"] == ("low" if record["measure_x"] < 0.7 else None)
        assert record["label"] == folders.index(record["label_name"])
        assert 0 <= record["cell"] < CELLS**2
    assert balance.bins[0].asked is None
    assert balance.empty_bins == ("nowhere",)
    assert balance.outside_bins == 50 - balance.bins[0].got > 0
    assert len({record["objective"] for record in found}) > 40


def test_baseline_labels_by_the_nearest_bin_on_demand(tmp_path, make_config, records):
    low = BinConfig(name="low", label="less", where={"x": (-math.inf, 0.3)})
    high = BinConfig(name="high", label="more", where={"x": (0.9, math.inf)})
    balance = dataset.baseline(make_config(low, high), tmp_path, count=50, nearest_bin=True)
    assert balance.outside_bins == 0
    for record in records(tmp_path):
        assert record["label_name"] == ("less" if record["measure_x"] < 0.6 else "more")
    assert "labelled by the nearest bin" in (tmp_path / "README.md").read_text()


def test_baseline_scores_what_it_renders(
    tmp_path, make_encoder, make_config, make_generator, monkeypatch, records
):
    config, (generator, weights) = make_config(), make_generator()
    conditional = dataclasses.replace(generator, classes=("p", "q"))
    monkeypatch.setattr(generators, "load", lambda model, **_: (conditional, weights))
    dataset.baseline(config, tmp_path / "out", count=20, seed=2)
    encoder, params = make_encoder()
    for record in records(tmp_path / "out"):
        pixels = np.asarray(Image.open(tmp_path / "out" / record["file_name"]), np.float32) / 255
        image = encoder.embed_images(params, pixels[None])[0]
        texts = encoder.embed_tokens(params, encoder.tokenize(["much red", "no red"]))
        angles = jnp.arccos(texts @ image)
        assert record["objective"] == pytest.approx(100 - 50 * (angles[0] - angles[1]), abs=1.0)
        assert record["generator_class"] == ("p" if pixels[0, 0, 0] > pixels[0, 0, 1] else "q")


def test_baseline_does_not_depend_on_the_chunks(tmp_path, make_config, records):
    found = []
    for size in (8, 5, 50):
        config = make_config(LEFT)
        search = dataclasses.replace(config.search, chunk_size=size)
        config = dataclasses.replace(config, search=search)
        dataset.baseline(config, tmp_path / f"{size}", count=21)
        found.append(records(tmp_path / f"{size}"))
    assert found[0] == found[1] == found[2]


def test_baseline_is_deterministic_resumable_and_apart_from_exports(
    run, tmp_path, make_config, contents
):
    config = make_config(LEFT)
    for name in ("one", "two"):
        dataset.baseline(config, tmp_path / name, count=20)
    whole = contents(tmp_path / "one")
    assert contents(tmp_path / "two") == whole
    assert dataset.baseline(config, tmp_path / "one", count=20).written == 0
    next((tmp_path / "one").rglob("*.png")).unlink()
    assert dataset.baseline(config, tmp_path / "one", count=20).written == 1
    assert contents(tmp_path / "one") == whole
    with pytest.raises(QDGSError, match="another dataset"):
        dataset.export(run(LEFT), tmp_path / "one", count=20)
