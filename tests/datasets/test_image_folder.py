"""Datasets on disk: layout, provenance, resuming and failing."""

import dataclasses
import errno
import hashlib
import itertools
import json
import math
import os
import resource
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from qdgs_jax import files, folders
from qdgs_jax.config import BinConfig
from qdgs_jax.datasets import export as dataset
from qdgs_jax.datasets import image_folder
from qdgs_jax.errors import QDGSError

LEFT = BinConfig(name="left", label="low", where={"x": (-math.inf, -0.5)})
RIGHT = BinConfig(name="right", label="high", where={"x": (0.5, math.inf)})
NOWHERE = BinConfig(name="nowhere", label="missing", where={"x": (7.0, 8.0)})


def test_records_are_complete(run, tmp_path, records):
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


def test_a_cell_or_number_that_is_unknown_is_null():
    table = image_folder.ImageTable(
        labels=("a",), label=np.zeros(1, int), bins=(), bin=np.array([-1]),
        latent_row=np.zeros(1, int), cell=np.array([-1]), objective=np.array([np.nan]),
        measure_names=("x",), measures=np.array([[np.inf]]), constants={},
    )  # fmt: skip
    record = table.record(0)
    assert [record[name] for name in ("bin", "cell", "objective", "measure_x")] == [None] * 4
    shortest = dataclasses.replace(table, objective=np.array([0.1], np.float32)).record(0)
    assert shortest["objective"] == 0.1


def test_what_an_ended_call_left_of_its_manifest_goes(run, tmp_path):
    dataset.export(run(LEFT), tmp_path / "out", count=4)
    shutil.copy(tmp_path / "out/manifest.json", tmp_path / "out/manifest.json.part")
    assert dataset.export(run(LEFT), tmp_path / "out", count=4).written == 0
    assert not (tmp_path / "out/manifest.json.part").exists()


def test_an_edited_card_stays(run, tmp_path):
    dataset.export(run(LEFT), tmp_path / "out", count=4)
    (tmp_path / "out/README.md").write_text("mine")
    next((tmp_path / "out").rglob("*.png")).unlink()
    assert dataset.export(run(LEFT), tmp_path / "out", count=4).written == 1
    assert (tmp_path / "out/README.md").read_text() == "mine"


def test_a_manifest_that_lists_another_image_is_not_believed(run, tmp_path, contents):
    out = tmp_path / "out"
    dataset.export(run(LEFT), out, count=4)
    whole = contents(out)
    lines = (out / "manifest.json").read_text().splitlines(keepends=True)
    images = [row for row, line in enumerate(lines) if ".png" in line]
    lines[images[0]] = lines[images[1]]
    (out / "manifest.json").write_text("".join(lines))
    min(out.rglob("*.png")).unlink()
    (out / "metadata.jsonl").unlink()  # or the dataset would be complete, as its manifest has it
    dataset.export(run(LEFT), out, count=4)
    assert contents(out) == whole


def test_a_folder_that_another_process_claims_is_not_claimed(run, tmp_path):
    path = run(LEFT)
    with folders.locked(tmp_path / "out"):
        with pytest.raises(QDGSError, match="Another process is writing"):
            image_folder.claim(tmp_path / "out", {"seed": 1})
        assert [item.name for item in (tmp_path / "out").iterdir()] == [folders.LOCK]
    assert dataset.export(path, tmp_path / "out", count=2).written == 2


def test_manifest_has_the_checksum_of_every_file(run, tmp_path, contents):
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


def test_big_classes_are_divided(run, tmp_path, monkeypatch, records):
    monkeypatch.setattr(image_folder, "FLAT", 20)
    monkeypatch.setattr(image_folder, "SHARD", 8)
    out = tmp_path / "out"
    dataset.export(run(LEFT, RIGHT), out, count=20)
    assert {path.parent.relative_to(out).as_posix() for path in out.rglob("*.png")} == {
        "low/0000", "low/0001", "high/0001", "high/0002",
    }  # fmt: skip
    assert all((out / record["file_name"]).is_file() for record in records(out))


def test_a_finished_export_is_left_alone(run, tmp_path, times):
    path, out = run(LEFT, NOWHERE), tmp_path / "out"
    first = dataset.export(path, out, count=20)
    (out / "README.md").write_text("My own words.")
    before = times(out)
    again = dataset.export(path, out, count=20)
    assert times(out) == before
    assert again.written == 0
    assert "nothing changed" in str(again)
    assert again == dataclasses.replace(first, written=0)


def test_a_killed_export_continues(run, tmp_path, monkeypatch, contents, times):
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


def test_a_damaged_image_of_a_finished_export_is_mended(run, tmp_path, contents):
    path, out = run(LEFT, RIGHT), tmp_path / "out"
    dataset.export(path, out, count=20)
    whole = contents(out)
    images = sorted(out.rglob("*.png"))
    images[3].unlink()
    images[7].write_bytes(images[8].read_bytes())
    assert dataset.export(path, out, count=20).written == 2
    assert contents(out) == whole


@pytest.mark.parametrize("first", [True, False])
def test_a_manifest_touches_nothing_but_the_datasets_own_files(run, tmp_path, contents, first):
    """Names of others with a wrong checksum, as of files that are damaged."""
    path, out, victim = run(LEFT, RIGHT), tmp_path / "out", tmp_path / "victim.txt"
    dataset.export(path, out, count=6)
    whole = contents(out)
    victim.write_text("keep")
    (out / "notes.txt").write_text("keep")
    (out / "low/999999.png").write_text("keep")
    (out / "link.txt").symlink_to(victim)
    names = [str(victim), "../victim.txt", "notes.txt", "low/999999.png", "link.txt", "\0", 7, ".."]
    entries = [json.dumps({"file_name": name, "bytes": 4, "sha256": "0"}) for name in names]
    entries += ["[" * 10_000, '{"file_name": "\\ud800"}', "[]"]
    lines = (out / "manifest.json").read_text().split("\n")
    start = lines.index(' "files": [') + 1 if first else -3
    lines[start:start] = [f"  {entry}," for entry in entries]
    (out / "manifest.json").write_text("\n".join(lines))
    dataset.export(path, out, count=6)
    assert victim.read_text() == "keep"
    kept = {"notes.txt": b"keep", "low/999999.png": b"keep", "link.txt": b"keep"}
    assert contents(out) == {**whole, **kept}


def test_links_do_not_lead_images_out_of_the_folder(run, tmp_path):
    path, out, other = run(LEFT, RIGHT), tmp_path / "out", tmp_path / "other"
    dataset.export(path, out, count=6)
    shutil.move(out / "low", other)
    (out / "low").symlink_to(other)
    (other / "000000.png").write_text("keep")
    with pytest.raises(QDGSError, match="/low leads out of its folder: remove that link"):
        dataset.export(path, out, count=6)
    assert (other / "000000.png").read_text() == "keep"


def test_what_is_no_file_is_replaced_unopened(run, tmp_path, contents):
    path, out = run(LEFT, RIGHT), tmp_path / "out"
    dataset.export(path, out, count=6)
    whole = contents(out)
    (out / "low/000000.png").unlink()
    os.mkfifo(out / "low/000000.png")
    assert dataset.export(path, out, count=6).written == 1
    (out / "manifest.json").rename(out / "manifest.json.part")
    lines = (out / "manifest.json.part").read_text().split('"files"')[0].rstrip(", \n") + "}\n"
    (out / "manifest.json.part").write_text(lines)
    (out / "low/000000.png").unlink()
    os.mkfifo(out / "low/000000.png")
    assert dataset.export(path, out, count=6).written == 1
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
def test_another_export_in_the_folder_is_refused(run, tmp_path, finished, other, named, contents):
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


def test_disk_full_leaves_an_export_that_continues(run, tmp_path, monkeypatch, contents):
    path, out = run(LEFT, RIGHT), tmp_path / "out"
    replacing, calls = files.replacing, itertools.count()

    def full(target: Path, **options: bool) -> Any:
        if next(calls) == 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replacing(target, **options)

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


@pytest.mark.parametrize(
    "text", ["oops", "[]", "", "[" * 100_000, '{"count": ' + "1" * 5_000 + "}", '{"a": "\\ud800"}']
)
def test_a_manifest_that_is_none(run, tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/manifest.json").write_text(text)
    with pytest.raises(QDGSError, match="delete the folder"):
        dataset.export(run(), tmp_path / "out", count=1)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "[" * 100_000, "\0", '{"asked": ' + "1" * 5_000 + "}", '"\\ud800"']
)
def test_a_balance_that_is_none(run, tmp_path, text):
    """As its manifest says: whole, but a stranger's."""
    path, out = run(LEFT), tmp_path / "out"
    dataset.export(path, out, count=2)
    before = (out / "balance.json").read_bytes()
    (out / "balance.json").write_text(text)
    manifest = (out / "manifest.json").read_text()
    manifest = manifest.replace(
        hashlib.sha256(before).hexdigest(), files.sha256(out / "balance.json")
    )
    manifest = manifest.replace(f'"bytes": {len(before)},', f'"bytes": {len(text)},')
    (out / "manifest.json").write_text(manifest)
    with pytest.raises(QDGSError, match=r"balance.json is damaged .*: delete"):
        dataset.export(path, out, count=2)
