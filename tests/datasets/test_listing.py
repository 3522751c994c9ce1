"""Which images a folder holds: what people, systems and strangers leave in folders."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qdgs_jax.datasets import listing
from qdgs_jax.datasets.class_folders import read_folder
from qdgs_jax.errors import ConfigError, QDGSError


def write_images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (3, 2)).save(folder / name, "png")
    return folder


def write_lines(folder: Path, *records: Any) -> None:
    lines = [line if isinstance(line, str) else json.dumps(line) for line in records]
    (folder / "metadata.jsonl").write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", "a/0.png", "b/1.png")


@pytest.mark.parametrize(
    "name",
    [
        ".ipynb_checkpoints/0-checkpoint.png", "a/.ipynb_checkpoints/0.png", "a/._0.png", ".0.png",
        "__MACOSX/a/0.png", "a/@eaDir/0.png/thumb.png", "a/Thumbs.db", "a/desktop.ini", "notes.txt",
    ],
)  # fmt: skip
def test_what_systems_leave_is_ignored(folder: Path, name: str) -> None:
    write_images(folder, name)
    (folder / name).write_bytes(b"no image")
    assert read_folder(folder).labels == ("a", "b")


def test_a_class_of_any_suffix_is_read_or_named(folder: Path) -> None:
    for suffix in ("tif", "TIFF", "gif", "JPG", "bmp", "webp"):
        write_images(folder, f"{suffix}/0.{suffix}")
    labels = read_folder(folder).labels
    assert labels == ("JPG", "TIFF", "a", "b", "bmp", "gif", "tif", "webp")
    write_images(folder, "a/2.heic")
    with pytest.warns(UserWarning, match=r"1 files of .* left out, such as a/2.heic; images end"):
        assert read_folder(folder).labels == labels
    write_images(folder, "c/3.heic")
    with pytest.raises(ConfigError, match=r"No file of the class .*/c is named like an image"):
        read_folder(folder)


def test_parts_with_a_metadata_each_are_no_classes(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_lines(write_images(tmp_path / part, "a/0.png"), {"file_name": "a/0.png"})
    for group in (None, "g"):
        with pytest.raises(ConfigError, match=r"is divided.*such as .*/train\.$"):
            read_folder(tmp_path, group=group)
    assert read_folder(tmp_path / "test").labels == ("a",)


def test_metadata_of_every_system(folder: Path) -> None:
    records = [
        {"file_name": "b\\1.png", "g": "one\u2028two"},
        {"file_name": str(folder / "a" / ".." / "a" / "0.png"), "g": 0.5},
    ]
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    text = "\ufeff" + "\r\n\r\n".join(lines)
    (folder / "metadata.jsonl").write_bytes(text.encode())
    images = read_folder(folder, group="g")
    assert images.labels == ("b", "a")
    assert images.groups == ("one\u2028two", "0.5")


def test_images_that_metadata_does_not_list_are_counted(folder: Path) -> None:
    write_images(folder, "a/2.png", "a/.hidden.png")
    write_lines(folder, {"file_name": "b/1.png"})
    with pytest.warns(UserWarning, match="lists 1 images; 2 others .* left out, such as a/0.png"):
        assert read_folder(folder).labels == ("b",)


@pytest.mark.parametrize("value", [None, float("nan"), "", "  "])
def test_an_empty_group_is_none(folder: Path, value: Any) -> None:
    write_lines(folder, {"file_name": "a/0.png", "g": value}, {"file_name": "b/1.png", "g": "x"})
    with pytest.raises(ConfigError, match=r"names no `g` for 1 of 2 images, such as a/0.png"):
        read_folder(folder, group="g")
    assert read_folder(folder).labels == ("a", "b")


@pytest.mark.parametrize(
    "name",
    [
        "../a/0.png",
        "/etc/passwd",
        "C:\\a\\0.png",
        "a/../../x.png",
        "..",
        "a/0.png\0",
        "\\\\a\\b\\c",
    ],
)
def test_names_that_lead_out_of_the_folder(folder: Path, name: str) -> None:
    write_lines(folder, {"file_name": name})
    with pytest.raises(ConfigError, match=r"Line 1 of .* is not in the folder: use names relative"):
        read_folder(folder)


def test_links_that_lead_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    outside = write_images(tmp_path / "outside", "0.png")
    (folder / "a/2.png").symlink_to("0.png")
    assert read_folder(folder).labels == ("a", "a", "b")
    (folder / "a/3.png").symlink_to(outside / "0.png")
    with pytest.raises(ConfigError, match=r"a/3.png leads out of its folder: put a copy there"):
        read_folder(folder)
    (folder / "a/3.png").unlink()
    (folder / "c").symlink_to(outside)
    with pytest.raises(ConfigError, match="/c is a link to a folder"):
        read_folder(folder)
    write_lines(folder, {"file_name": "c/0.png"})
    with pytest.raises(ConfigError, match=r"c/0.png leads out of its folder"):
        read_folder(folder)
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.jsonl").symlink_to(outside / "metadata.jsonl")
    with pytest.raises(ConfigError, match=r"metadata.jsonl leads out of its folder"):
        read_folder(folder)


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000, '{"file_name": ' + "1" * 5_000 + "}", '{"file_name": "\\ud800"}', "\ud800",
        '{"file_name": null}', "[]", "null", '"a"', '{"file_name": ["a/0.png"]}', "{", "\0",
        '{"file_name": "a/0.png", "g": "' + "x" * 2**20 + '"}',
    ],
)  # fmt: skip
def test_metadata_that_is_none(folder: Path, line: str) -> None:
    write_lines(folder, {"file_name": "a/0.png"}, line)
    with pytest.raises(ConfigError, match=r"is not a line of JSON .* \(line 2: .{,200}\): correct"):
        read_folder(folder)


def test_what_is_no_text(folder: Path) -> None:
    write_lines(folder, {"file_name": "a/0.png", "g": {"x": 1}})
    with pytest.raises(ConfigError, match=r"`g` in line 1 of .* is neither a text nor a number"):
        read_folder(folder, group="g")
    write_lines(folder, {"file_name": "a/0.png", "g": "\x1b[2J"}, {"file_name": "b/1.png", "g": 1})
    with pytest.raises(ConfigError, match=r"group '\\x1b\[2J', which cannot be printed: rename it"):
        read_folder(folder, group="g")
    (folder / "metadata.jsonl").unlink()
    os.rename(folder / "a", os.fsencode(folder) + b"/caf\xe9")
    with pytest.raises(ConfigError, match=r"class or group 'caf\\udce9', which cannot be printed"):
        read_folder(folder)


def test_what_is_no_file(folder: Path) -> None:
    os.mkfifo(folder / "a/pipe.png")
    with pytest.raises(QDGSError, match=r"a/pipe.png is not a regular file"):
        read_folder(folder)
    os.mkfifo(folder / "metadata.jsonl")
    with pytest.raises(ConfigError, match=r"metadata.jsonl is not a regular file"):
        read_folder(folder)


def test_more_than_memory_holds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_IMAGES", 1)
    with pytest.raises(ConfigError, match="more than 1 files: divide it"):
        read_folder(folder)
    write_lines(folder, {"file_name": "a/0.png"}, {"file_name": "b/1.png"})
    with pytest.raises(ConfigError, match="more than 1 files: divide it"):
        read_folder(folder)
