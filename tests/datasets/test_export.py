"""Datasets on disk: balance, layout, provenance, resuming and failing."""

import dataclasses
import errno
import functools
import hashlib
import itertools
import json
import math
import resource
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from qdgs_jax import encoders, files, generators
from qdgs_jax.config import (
    NOTICES,
    BinConfig,
    Config,
    ExportConfig,
    MeasureConfig,
    ObjectiveConfig,
    RunConfig,
    SearchConfig,
    save_config,
)
from qdgs_jax.datasets import export as dataset
from qdgs_jax.datasets import image_folder
from qdgs_jax.encoders import Encoder
from qdgs_jax.errors import ConfigError, QDGSError
from qdgs_jax.generators import Generator
from qdgs_jax.runs import sampling as runs

CELLS = 10
LEFT = BinConfig(name="left", label="low", where={"x": (-math.inf, -0.5)})
RIGHT = BinConfig(name="right", label="high", where={"x": (0.5, math.inf)})
NOWHERE = BinConfig(name="nowhere", label="missing", where={"x": (7.0, 8.0)})


def render(params: Any, latents: Any) -> Any:
    """An image of one colour: (x, y, 0) moved to [0, 1], and a bright pixel that params place."""
    colour = jnp.concatenate([(latents + 1) / 2, jnp.zeros((len(latents), 1))], axis=-1)
    images = jnp.broadcast_to(colour[:, None, None], (len(latents), 4, 4, 3))
    return images.at[:, params, params].set(1.0)


def make_generator(sha256: str = "a" * 64) -> tuple[Generator, Any]:
    def sample(key: Any, n: int) -> Any:
        return jax.random.uniform(key, (n, 2), minval=-1, maxval=1)

    return Generator("flat", 2, 4, sample, render, sha256), jnp.int32(1)


def make_encoder() -> tuple[Encoder, Any]:
    def unit(x: Any) -> Any:
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    encoder = Encoder(
        name="eye",
        sha256="b" * 64,
        image_size=4,
        embed_images=lambda params, images: unit(images[:, 0, 0] * params + 0.1),
        embed_tokens=lambda params, ids: unit(jax.nn.one_hot(ids[:, 0] % 3, 3) * params),
        tokenize=lambda texts: jnp.array([[len(text)] for text in texts]),
        unknown_words=lambda text: [],
    )
    return encoder, jnp.float32(1)


def make_config(*bins: BinConfig, **export: Any) -> Config:
    return Config(
        objective=ObjectiveConfig(positive="much red", negative="no red"),
        measures=tuple(
            MeasureConfig(
                name=name, low=f"low {name}", high=f"high {name}", range=(-1, 1), cells=CELLS
            )
            for name in ("x", "y")
        ),
        search=SearchConfig(chunk_size=8),
        export=ExportConfig(bins=bins, **export),
    )


def write_run(path: Path, config: Config) -> Path:
    """A finished run with an elite in the middle of each cell of the grid; latent = measures."""
    centres = (np.arange(CELLS) + 0.5) / CELLS * 2 - 1
    measures = np.array(list(itertools.product(centres, centres)), np.float32)
    index = np.arange(CELLS**2, dtype=np.int32)
    path.mkdir(parents=True)
    save_config(path / "config.toml", config)
    tensors = {
        "solution": measures,
        "objective": index.astype(np.float32),
        "measures": measures,
        "index": index,
    }
    save_file(tensors, path / "archive.safetensors")
    summary = {
        "generator": {"name": "flat", "sha256": "a" * 64},
        "encoder": {"name": "eye", "sha256": "b" * 64},
        "precision": "highest",
        "device": "test",
        "versions": {"jax": "0"},
    }
    (path / "summary.json").write_text(json.dumps(summary))
    return path


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generators, "load", lambda model, **_: make_generator())
    monkeypatch.setattr(encoders, "load", lambda model, **_: make_encoder())


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    number = itertools.count()
    return lambda *bins, **export: write_run(
        tmp_path / f"run{next(number)}", make_config(*bins, **export)
    )


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]


def contents(out: Path) -> dict[str, bytes]:
    files = (path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def times(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.rglob("*")}


# --- balance ---


def test_bins_share_the_count_and_the_first_take_the_remainder(run, tmp_path):
    middle = BinConfig(name="middle", label="low", where={"x": (-0.2, 0.2), "y": (0.0, 1.0)})
    balance = dataset.export(run(LEFT, RIGHT, middle), tmp_path / "out", count=11)
    assert [(bin.asked, bin.got) for bin in balance.bins] == [(4, 4), (4, 4), (3, 3)]
    counts = Counter(record["label_name"] for record in records(tmp_path / "out"))
    assert counts == {"low": 7, "high": 4}
    assert balance.written == balance.got == balance.asked == 11
    assert balance.outside_bins == 100 - sum(bin.available for bin in balance.bins)


def test_a_bin_repeats_its_elites_evenly(run, tmp_path):
    corner = BinConfig(name="corner", label="c", where={"x": (0.79, 1.0), "y": (0.4, 1.0)})
    balance = dataset.export(run(corner), tmp_path / "out", count=7)
    uses = Counter(record["latent_row"] for record in records(tmp_path / "out"))
    assert sorted(uses.values()) == [2, 2, 3]
    assert (balance.bins[0].available, balance.bins[0].distinct, balance.bins[0].got) == (3, 3, 7)


def test_no_elite_twice_while_there_are_others(run, tmp_path):
    balance = dataset.export(run(), tmp_path / "out", count=60)
    assert balance.bins[0].distinct == 60
    assert balance.bins[0].label == "all"
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {"all"}


def test_even_over_the_grid_without_bins():
    rows = dataset.draw_evenly(np.zeros(100, int), 1, 1030, seed=0)
    uses = np.bincount(rows, minlength=100)
    assert set(uses) == {10, 11}
    assert not np.array_equal(rows[:100], rows[100:200])
    assert not np.array_equal(rows, dataset.draw_evenly(np.zeros(100, int), 1, 1030, seed=1))


def test_empty_bins_are_listed_and_shift_nothing(run, tmp_path):
    full = dataset.export(run(LEFT, RIGHT), tmp_path / "full", count=20)
    with_gap = dataset.export(run(LEFT, NOWHERE, RIGHT), tmp_path / "gap", count=30)
    assert full.empty_bins == ()
    assert with_gap.empty_bins == ("nowhere",)
    assert [(bin.asked, bin.got) for bin in with_gap.bins] == [(10, 10), (10, 0), (10, 10)]
    assert with_gap.got == 20 < with_gap.asked == 30
    # The empty class keeps its folder, hence its number.
    folders = sorted(path.name for path in (tmp_path / "gap").iterdir() if path.is_dir())
    assert folders == ["high", "low", "missing"]
    for record in records(tmp_path / "gap"):
        assert record["label"] == folders.index(record["label_name"])
    saved = json.loads((tmp_path / "gap/balance.json").read_text())
    assert saved["empty_bins"] == ["nowhere"]
    assert "nowhere" in (tmp_path / "gap/README.md").read_text()
    assert "nowhere" in str(with_gap)
    assert "nowhere" not in str(full)


def test_all_bins_empty_is_refused(run, tmp_path):
    with pytest.raises(QDGSError, match=r"no bin holds them.*search longer"):
        dataset.export(run(NOWHERE), tmp_path / "out", count=5)
    assert not (tmp_path / "out").exists()  # so that the same folder serves the next attempt


@pytest.mark.parametrize("numbers", [{"count": 0}, {"count": 1, "seed": -1}])
def test_impossible_numbers(run, tmp_path, numbers):
    with pytest.raises(ConfigError, match="or more"):
        dataset.export(run(), tmp_path / "out", **numbers)
    with pytest.raises(ConfigError, match="or more"):
        dataset.baseline(make_config(), tmp_path / "out", **numbers)


def test_overlapping_bins_give_an_elite_to_the_first(run, tmp_path):
    everything = BinConfig(name="everything", label="rest", where={})
    dataset.export(run(RIGHT, everything), tmp_path / "out", count=100)
    for record in records(tmp_path / "out"):
        assert record["bin"] == ("right" if record["measure_x"] >= 0.5 else "everything")


def test_bins_are_half_open():
    bins = (BinConfig(name="a", label="a", where={"x": (0.0, 0.5), "y": (0.0, 1.0)}),)
    measures = np.array([[0.0, 0.0], [0.5, 0.0], [0.49, 1.0], [np.nan, 0.0], [0.49, 0.99]])
    found = dataset.assign_bins(make_config(), bins, measures)
    assert found.tolist() == [0, -1, -1, -1, 0]


def test_nearest_bins_count_in_spans_of_the_ranges():
    config = make_config()  # both measures from -1 to 1
    wide = dataclasses.replace(config.measures[0], range=(-10, 10))
    bins = (
        BinConfig(name="a", label="a", where={"x": (-math.inf, 0.0)}),
        BinConfig(name="b", label="b", where={"x": (0.5, math.inf), "y": (0.0, 1.0)}),
    )
    measures = np.array([[-9.0, 5], [0.1, 0], [0.4, 0.5], [0.4, -0.2], [9, 1], [np.nan, 0]])
    nearest = functools.partial(dataset.assign_bins, nearest=True)
    assert nearest(config, bins, measures).tolist() == [0, 0, 1, 1, 1, -1]
    config = dataclasses.replace(config, measures=(wide, config.measures[1]))
    assert nearest(config, bins, measures).tolist() == [0, 0, 1, 0, 1, -1]


def test_an_edge_belongs_to_the_bin_that_holds_it_not_to_its_neighbour():
    bins = (
        BinConfig(name="low", label="low", where={"x": (-math.inf, 0.0)}),
        BinConfig(name="high", label="high", where={"x": (0.0, math.inf)}),
    )
    measures = np.array([[-0.1, 0.0], [0.0, 0.0], [math.inf, 0.0]])
    found = dataset.assign_bins(make_config(), bins, measures, nearest=True)
    assert found.tolist() == [0, 1, -1]


def test_min_objective_filters_elites(run, tmp_path):
    path = run(LEFT, RIGHT, count=12, min_objective=90.0)
    balance = dataset.export(path, tmp_path / "out")
    assert (balance.asked, balance.got, balance.below_min_objective) == (12, 6, 90)
    assert balance.empty_bins == ("left",)
    assert all(record["objective"] >= 90 for record in records(tmp_path / "out"))
    lower = dataset.export(path, tmp_path / "lower", min_objective=0.0, count=2)
    assert lower.empty_bins == ()
    assert lower.below_min_objective == 0
    with pytest.raises(QDGSError, match="100 for an objective below 1000"):
        dataset.export(path, tmp_path / "none", min_objective=1000.0)


@pytest.mark.parametrize(
    "label", ["a/b", "..", "", "a\\b", ".hidden", "manifest.json", "a ", "x\n"]
)
def test_labels_must_be_names_of_folders(run, tmp_path, label):
    bin = BinConfig(name="odd", label=label, where={})
    with pytest.raises(ConfigError, match="bin 'odd'"):
        dataset.export(run(bin), tmp_path / "out", count=1)
    assert not (tmp_path / "out").exists()


# --- layout and provenance ---


def test_images_show_their_latents_through_the_weights(run, tmp_path):
    dataset.export(run(LEFT, RIGHT), tmp_path / "out", count=20)
    for record in records(tmp_path / "out"):
        pixels = np.asarray(Image.open(tmp_path / "out" / record["file_name"]))
        assert pixels.shape == (4, 4, 3)
        expected = np.round(255 * (np.array([record["measure_x"], record["measure_y"]]) + 1) / 2)
        assert abs(pixels[0, 0, :2] - expected).max() <= 1
        assert (pixels[1, 1] == 255).all()


def test_records_are_complete(run, tmp_path):
    dataset.export(run(LEFT, RIGHT), tmp_path / "out", count=4, seed=3)
    assert records(tmp_path / "out")[3] == {
        "file_name": "high/000003.png",
        "id": 3,
        "label": 0,
        "label_name": "high",
        "bin": "right",
        "cell": (row := records(tmp_path / "out")[3]["latent_row"]),
        "measure_x": pytest.approx((row // 10 + 0.5) / 5 - 1),
        "measure_y": pytest.approx((row % 10 + 0.5) / 5 - 1),
        "objective": row,
        "latent_row": row,
        "generator": "flat@aaaaaaaaaaaa",
        "encoder": "eye@bbbbbbbbbbbb",
        "seed": 3,
        "synthetic": True,
    }


def test_manifest_has_the_checksum_of_every_file(run, tmp_path):
    path = run(LEFT, RIGHT)
    out = tmp_path / "out"
    dataset.export(path, out, count=10)
    manifest = json.loads((out / "manifest.json").read_text())
    listed = {entry["file_name"]: entry for entry in manifest["files"]}
    assert listed.keys() | {"manifest.json", "README.md"} == contents(out).keys()
    for name, entry in listed.items():
        content = (out / name).read_bytes()
        assert entry["bytes"] == len(content)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    archive = (path / "archive.safetensors").read_bytes()
    assert manifest["archive_sha256"] == hashlib.sha256(archive).hexdigest()
    assert manifest["generator"] == {"name": "flat", "sha256": "a" * 64}
    assert manifest["encoder"]["sha256"] == "b" * 64
    assert manifest["precision"] == "highest"
    assert manifest["config"]["measures"][0]["low"] == "low x"
    assert manifest["config"]["export"]["bins"][0]["where"] == {"x": [None, -0.5]}
    assert manifest["count"] == 10
    assert manifest["synthetic"] is True
    assert "jax" in manifest["rendered_with"]["versions"]


def test_images_say_that_they_are_synthetic(run, tmp_path):
    dataset.export(run(), tmp_path / "out", count=1)
    with Image.open(tmp_path / "out/all/000000.png") as image:
        image.load()
        text = image.text
    assert text["DigitalSourceType"].endswith("/trainedAlgorithmicMedia")
    assert text["Generator"] == "flat@aaaaaaaaaaaa"
    assert text["Software"].startswith("qdgs-jax")
    (description,) = ElementTree.fromstring(text["XML:com.adobe.xmp"]).iter(
        "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"
    )
    iptc = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
    assert description.get(iptc) == text["DigitalSourceType"]


def test_the_card_is_filled(run, tmp_path):
    dataset.export(run(LEFT, RIGHT), tmp_path / "out", count=11)
    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith("---\nlicense: cc0-1.0\n")  # make_config names the built-in generator
    assert "- synthetic" in card
    assert "- n<1K" in card
    assert "| left | low | 6 | 6 | 6 |" in card
    assert 'd(image, "low x") - d(image, "high x")' in card
    assert "{" not in card


def test_no_encoder_is_loaded_or_named_without_prompts(tmp_path, monkeypatch):
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
    assert "100 - 50 (0.5 x how much less typical of the generator" in card
    assert "d is the angle" not in card


def test_the_card_repeats_the_notice_and_the_whole_objective(tmp_path):
    config = make_config(LEFT, RIGHT)
    objective = dataclasses.replace(config.objective, regularisation=0.5, uniqueness=0.2)
    config = dataclasses.replace(config, notice="faces", objective=objective)
    dataset.export(write_run(tmp_path / "run", config), tmp_path / "out", count=2)
    card = (tmp_path / "out/README.md").read_text()
    assert f"\n\n{NOTICES['faces']}\n\n" in card
    assert '"no red") + 0.5 x the squared distance' in card
    assert "+ 0.2 x how little the image differs" in card


def test_big_classes_are_divided(run, tmp_path, monkeypatch):
    monkeypatch.setattr(image_folder, "FLAT", 20)
    monkeypatch.setattr(image_folder, "SHARD", 8)
    out = tmp_path / "out"
    dataset.export(run(LEFT, RIGHT), out, count=20)
    assert {path.parent.relative_to(out).as_posix() for path in out.rglob("*.png")} == {
        "low/0000", "low/0001", "high/0001", "high/0002",
    }  # fmt: skip
    assert all((out / record["file_name"]).is_file() for record in records(out))


# --- the same call again ---


def test_same_arguments_same_bytes(run, tmp_path):
    path = run(LEFT, RIGHT)
    for name in ("one", "two"):
        dataset.export(path, tmp_path / name, count=21, seed=5)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    dataset.export(path, tmp_path / "three", count=21, seed=6)
    assert contents(tmp_path / "one") != contents(tmp_path / "three")


def test_a_finished_export_is_left_alone(run, tmp_path):
    path, out = run(LEFT, NOWHERE), tmp_path / "out"
    first = dataset.export(path, out, count=20)
    (out / "README.md").write_text("My own words.")
    before = times(out)
    again = dataset.export(path, out, count=20)
    assert times(out) == before
    assert again.written == 0
    assert "nothing changed" in str(again)
    assert again == dataclasses.replace(first, written=0)


def test_a_killed_export_continues(run, tmp_path, monkeypatch):
    path, out = run(LEFT, RIGHT), tmp_path / "out"
    dataset.export(path, tmp_path / "whole", count=30)
    save, calls = image_folder._save_png, itertools.count()

    def killed(*arguments: Any) -> None:
        if next(calls) == 13:
            raise KeyboardInterrupt
        save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "_save_png", killed)
        with pytest.raises(KeyboardInterrupt):
            dataset.export(path, out, count=30)
    images = list(out.rglob("*.png"))
    assert len(images) == 13
    assert not (out / "manifest.json").exists()
    images[0].write_bytes(images[0].read_bytes()[:-20])  # as a crash of the machine leaves it
    before = times(out)
    balance = dataset.export(path, out, count=30)
    assert balance.written == 30 - 12
    assert all(times(out)[image] == before[image] for image in images[1:])
    assert contents(out) == contents(tmp_path / "whole")


def test_a_damaged_image_of_a_finished_export_is_mended(run, tmp_path):
    path, out = run(LEFT, RIGHT), tmp_path / "out"
    dataset.export(path, out, count=20)
    whole = contents(out)
    images = sorted(out.rglob("*.png"))
    images[3].unlink()
    images[7].write_bytes(images[8].read_bytes())
    assert dataset.export(path, out, count=20).written == 2
    assert contents(out) == whole


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"count": 11}, "count"),
        ({"seed": 1}, "seed"),
        ({"min_objective": 3.0}, "min_objective"),
        ({"run": "bins"}, "config"),
    ],
)
def test_another_export_in_the_folder_is_refused(run, tmp_path, finished, other, named):
    out, runs = tmp_path / "out", {"same": run(LEFT, RIGHT), "bins": run(LEFT)}
    dataset.export(runs["same"], out, count=10)
    if not finished:
        (out / "manifest.json").rename(out / "manifest.json.part")
    before = contents(out)
    arguments = {"count": 10, **other}
    with pytest.raises(QDGSError, match=rf"another dataset \(other {named}\): choose"):
        dataset.export(runs[arguments.pop("run", "same")], out, **arguments)
    assert contents(out) == before


def test_other_files_in_the_folder_are_refused(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("...")
    with pytest.raises(QDGSError, match="holds other files"):
        dataset.export(run(), tmp_path / "out", count=1)
    path = run()
    with pytest.raises(QDGSError, match="holds other files"):
        dataset.export(path, path, count=1)


# --- what fails ---


def test_disk_full_leaves_an_export_that_continues(run, tmp_path, monkeypatch):
    path, out = run(LEFT, RIGHT), tmp_path / "out"
    replacing, calls = files.replacing, itertools.count()

    def full(target: Path) -> Any:
        if next(calls) == 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replacing(target)

    with monkeypatch.context() as patch:
        patch.setattr(files, "replacing", full)
        with pytest.raises(
            QDGSError, match=r"No space is left.*free some, then run the same command"
        ):
            dataset.export(path, out, count=20)
    assert 0 < len(list(out.rglob("*.png"))) < 20
    dataset.export(path, out, count=20)
    dataset.export(path, tmp_path / "whole", count=20)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_file_that_cannot_grow_leaves_no_partial_file(run, tmp_path):
    """The system itself refuses: metadata.jsonl is larger than any image of this dataset."""
    out = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(QDGSError, match="No space is left"):
            dataset.export(run(LEFT, RIGHT), out, count=40)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(list(out.rglob("*.png"))) == 40
    left = {path.name for path in out.iterdir() if path.is_file()}
    assert left == {"balance.json", "README.md", "manifest.json.part"}


def test_out_that_is_a_file(run, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(QDGSError, match="choose another folder"):
        dataset.export(run(), tmp_path / "out", count=1)


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(QDGSError, match="no finished run"):
        dataset.export(tmp_path, tmp_path / "out", count=1)


def test_other_weights_than_the_run_had(run, tmp_path, monkeypatch):
    monkeypatch.setattr(generators, "load", lambda model, **_: make_generator(sha256="c" * 64))
    with pytest.raises(QDGSError, match="other weights"):
        dataset.export(run(), tmp_path / "out", count=1)


def test_a_manifest_that_is_no_json(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/manifest.json").write_text("oops")
    with pytest.raises(QDGSError, match="delete the folder"):
        dataset.export(run(), tmp_path / "out", count=1)


# --- streaming ---


def test_rendering_streams_in_chunks_compiled_once(run, tmp_path, monkeypatch):
    shapes = []

    def traced(params: Any, latents: Any) -> Any:
        shapes.append(latents.shape)
        return render(params, latents)

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


# --- baseline ---


def test_baseline_labels_random_samples_by_their_bin(tmp_path):
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


def test_baseline_labels_by_the_nearest_bin_on_demand(tmp_path):
    low = BinConfig(name="low", label="less", where={"x": (-math.inf, 0.3)})
    high = BinConfig(name="high", label="more", where={"x": (0.9, math.inf)})
    balance = dataset.baseline(make_config(low, high), tmp_path, count=50, nearest_bin=True)
    assert balance.outside_bins == 0
    for record in records(tmp_path):
        assert record["label_name"] == ("less" if record["measure_x"] < 0.6 else "more")
    assert "labelled by the nearest bin" in (tmp_path / "README.md").read_text()


def ranged(*ranges: tuple[float, float], bins: tuple[BinConfig, ...]) -> Config:
    """A config with a measure for each range, named x, y, ..."""
    measures = tuple(
        MeasureConfig(name=name, low="low", high="high", range=range)
        for name, range in zip("xyz", ranges, strict=False)
    )
    return dataclasses.replace(make_config(*bins), measures=measures)


def test_the_nearest_bin_is_so_in_spans_of_each_measure() -> None:
    """From (2, 0), bin "a" is 1 of 10 away, "b" 30 of 1000, and "c" both of 2 of 10 and 10."""
    bins = (
        BinConfig(name="a", label="a", where={"x": (-5.0, 1.0)}),
        BinConfig(name="b", label="b", where={"y": (30.0, 90.0)}),
        BinConfig(name="c", label="c", where={"x": (4.0, 5.0), "y": (10.0, 11.0)}),
    )
    config = ranged((-5, 5), (-500, 500), bins=bins)
    points = [(2, 0), (1.2, 0), (3.9, 9), (3.9, -30), (2, 120), (0, 50), (4, 10), (1, 11.0)]
    measures = np.array(points, np.float32)
    nearest = dataset.assign_bins(config, bins, measures, nearest=True)
    np.testing.assert_array_equal(nearest, [1, 0, 2, 2, 1, 0, 2, 0])
    inside = dataset.assign_bins(config, bins, measures)
    np.testing.assert_array_equal(inside, [-1, -1, -1, -1, -1, 0, 2, -1])


def test_distances_to_a_bin_are_euclidean() -> None:
    """Of (0, 0), "corner" is 0.3 away in both measures and "edge" 0.4 in one: 0.42 and 0.4."""
    corner = BinConfig(name="corner", label="a", where={"x": (0.3, 1.0), "y": (0.3, 1.0)})
    edge = BinConfig(name="edge", label="b", where={"x": (-1.0, -0.4)})
    config = ranged((0, 1), (0, 1), bins=(corner, edge))
    measures = np.array([[0, 0], [0.02, 0.02], [np.nan, 0.5], [np.inf, 0.5]])
    nearest = dataset.assign_bins(config, (corner, edge), measures, nearest=True)
    np.testing.assert_array_equal(nearest, [1, 0, -1, -1])


def test_bins_hold_their_lower_ends_alone_and_the_first_wins() -> None:
    bins = (
        BinConfig(name="a", label="a", where={"x": (0.0, 1.0)}),
        BinConfig(name="b", label="b", where={"x": (0.5, 2.0), "y": (0.0, 1.0)}),
    )
    config = ranged((-1, 1), (-1, 1), bins=bins)
    measures = np.array([[0, 0], [0.5, 0], [1, 0], [1, 1], [2, 0.5], [1, -0.1], [-0.1, 0]])
    assigned = dataset.assign_bins(config, bins, measures)
    np.testing.assert_array_equal(assigned, [0, 0, 1, -1, -1, -1, -1])


def test_baseline_scores_what_it_renders(tmp_path):
    config = make_config()
    dataset.baseline(config, tmp_path / "out", count=20, seed=2)
    encoder, params = make_encoder()
    for record in records(tmp_path / "out"):
        pixels = np.asarray(Image.open(tmp_path / "out" / record["file_name"]), np.float32) / 255
        image = encoder.embed_images(params, pixels[None])[0]
        texts = encoder.embed_tokens(params, encoder.tokenize(["much red", "no red"]))
        angles = jnp.arccos(texts @ image)
        assert record["objective"] == pytest.approx(100 - 50 * (angles[0] - angles[1]), abs=1.0)


def test_baseline_is_deterministic_resumable_and_apart_from_exports(run, tmp_path):
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
