"""Reading of any ImageFolder, and the errors for folders that do not fit."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qdgs_jax.datasets.class_folders import read_folder, require_fit
from qdgs_jax.errors import ConfigError, QDGSError


def write_folder(folder: Path, names: dict[str, Any], *, size: tuple[int, int] = (6, 4)) -> Path:
    """Images by path, each with the value of the metadata column "colour"."""
    lines = []
    for shade, (name, colour) in enumerate(names.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size, shade).save(folder / name)
        lines.append(json.dumps({"file_name": name, "colour": colour}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_read(tmp_path: Path) -> None:
    names = {"b/1.png": "red", "unlabelled/2.png": True, "a/0/3.png": "blue", "a/4.png": 5}
    folder = write_folder(tmp_path, names)
    images = read_folder(folder, group="colour")
    assert images.labels == ("b", "unlabelled", "a", "a")
    assert images.groups == ("red", "True", "blue", "5")
    assert images.pixels.shape == (4, 4, 6, 3)
    assert images.pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    some = images.take(np.array([3, 0, 3]))
    assert some.groups == ("5", "red", "5")
    assert some.pixels[:, 0, 0, 0].tolist() == [3, 0, 3]

    assert images.repeated(6).labels == ("b", "b", "unlabelled", "a", "a", "a")
    assert images.repeated(6).pixels[:, 0, 0, 0].tolist() == [0, 0, 1, 2, 2, 3]
    assert images.repeated(4).labels == images.labels

    (folder / "metadata.jsonl").unlink()
    assert read_folder(folder).labels == ("a", "a", "b", "unlabelled")
    with pytest.raises(ConfigError, match=r"is missing, whose column 'colour'.*: add it"):
        read_folder(folder, group="colour")
    (folder / "metadata.csv").touch()
    with pytest.raises(ConfigError, match=r"metadata.csv, which is not read, as lines of JSON\.$"):
        read_folder(folder, group="colour")


def test_what_lies_in_no_bin_is_left_out_with_a_warning(tmp_path: Path) -> None:
    """Of a baseline's class `unlabelled`; a class of that name elsewhere is one like others."""
    folder = write_folder(tmp_path, {"unlabelled/1.png": 1, "unlabelled/2.png": 2, "a/3.png": 3})
    lines = [
        {"file_name": "unlabelled/1.png", "bin": None},
        {"file_name": "unlabelled/2.png", "bin": "all"},
        {"file_name": "a/3.png", "bin": None, "colour": 3},
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.warns(UserWarning, match="1 images of .*unlabelled lie in no bin and are left out"):
        assert read_folder(folder).labels == ("unlabelled", "a")


def test_reading_needs_nothing_heavy() -> None:
    code = (
        "import sys, qdgs_jax.datasets.labelled_images; "
        "sys.exit(' '.join({'jax', 'evosax', 'orbax', 'flax'} & sys.modules.keys()))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stderr.strip() == ""


def test_mistakes_in_a_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", {"a/1.png": 1, "b/1.png": 2})
    with pytest.raises(ConfigError, match=r"no column 'color' \(did you mean 'colour'\?\)"):
        read_folder(folder, group="color")
    Image.new("RGB", (5, 5)).save(folder / "b/1.png")
    with pytest.raises(ConfigError, match=r"1.png is 6 x 4 and .*1.png 5 x 5: resize them alike"):
        read_folder(folder)
    (folder / "b/1.png").write_bytes(b"no image")
    with pytest.raises(QDGSError, match="cannot be read"):
        read_folder(folder)
    (folder / "b/1.png").unlink()
    with pytest.raises(QDGSError, match=r"cannot be read \(No such file"):
        read_folder(folder)
    (folder / "metadata.jsonl").write_text('{"file": 1}\n')
    with pytest.raises(ConfigError, match="is not a line of JSON with a `file_name`"):
        read_folder(folder)
    with pytest.raises(ConfigError, match="holds no labelled images"):
        read_folder(tmp_path / "absent")
    flat = write_folder(tmp_path / "flat", {"1.png": 1})
    with pytest.raises(ConfigError, match="has no class"):
        read_folder(flat)


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    folders = {
        "train": write_folder(tmp_path / "train", {"cat/1.png": 1, "dog/1.png": 2}),
        "test": write_folder(tmp_path / "test", {"dog/1.png": 1}),
    }
    read = {name: read_folder(path) for name, path in folders.items()}
    assert require_fit(read, folders, halvings=2) == ("cat", "dog")
    with pytest.raises(ConfigError, match="6 x 4 cannot be halved 3 times"):
        require_fit(read, folders, halvings=3)
    with pytest.raises(ConfigError, match="the one class dog"):
        require_fit({"train": read["test"]}, {"train": folders["test"]}, halvings=1)
    folders["repair"] = write_folder(tmp_path / "repair", {"dogs/1.png": 1})
    read["repair"] = read_folder(folders["repair"])
    with pytest.raises(ConfigError, match=r"lacks \(did you mean 'dog'\?\)"):
        require_fit(read, folders, halvings=2)
    folders["repair"] = write_folder(tmp_path / "large", {"dog/1.png": 1}, size=(8, 4))
    read["repair"] = read_folder(folders["repair"])
    with pytest.raises(ConfigError, match=r"are 8 x 4, those of .* 6 x 4: resize them alike"):
        require_fit(read, folders, halvings=2)
