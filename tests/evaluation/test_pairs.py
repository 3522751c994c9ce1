"""Pairs are read from files of strangers, and drawn from folders."""

import io
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qdgs_jax.errors import QDGSError
from qdgs_jax.evaluation import pairs
from qdgs_jax.evaluation.pairs import read_bin, read_pairs


def encoded(value: int, size: int = 8) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (size, size), (value, value, value)).save(stream, "JPEG")
    return stream.getvalue()


def of_python_2(content: tuple[list[bytes], list[bool]]) -> bytes:
    """What Python 2 wrote: bytes are its texts, and long ones have four bytes of length."""
    images, same = content
    strings = b"".join(b"T" + struct.pack("<i", len(each)) + each for each in images)
    answers = b"".join(b"\x88" if each else b"\x89" for each in same)
    return b"\x80\x02](" + strings + b"e](" + answers + b"e\x86."


CONTENT = [encoded(value) for value in (10, 20, 30, 40)], [True, False]


@pytest.mark.parametrize(
    "data", [pickle.dumps(CONTENT, 4), pickle.dumps(CONTENT, 3), of_python_2(CONTENT)]
)
def test_bins(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "lfw.bin").write_bytes(data)
    found = read_bin(tmp_path / "lfw.bin")
    np.testing.assert_allclose(found.images[:, 0, 0, 0], [10, 20, 30, 40], atol=2)
    assert found.images.shape == (4, 8, 8, 3)
    np.testing.assert_array_equal(found.rows, [[0, 1], [2, 3]])
    np.testing.assert_array_equal(found.same, [True, False])
    assert (found.people == -1).all()
    assert found.groups == ()


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (Harmful(), "asks for 'builtins.print', which plain data do not need"),
        (CONTENT[0], "no pair of images and answers"),
        ((CONTENT[0][:3], CONTENT[1]), "3 images and 2 answers"),
        (([], []), "0 images and 0 answers"),
        ((CONTENT[0], [1, 0]), "its answers are no list of them"),
        ((["a"] * 4, CONTENT[1]), "its images are no list of them"),
        (({"a": 1}, CONTENT[1]), "its images are no list of them"),
        (([b"no image"] * 4, CONTENT[1]), "The image 1 of .* cannot be read"),
        (([*CONTENT[0][:3], encoded(1, 9)], CONTENT[1]), "have several sizes"),
    ],
)
def test_other_files_are_refused(
    content: Any, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.bin").write_bytes(pickle.dumps(content, 4))
    with pytest.raises(QDGSError, match=told) as error:
        read_bin(tmp_path / "a.bin")
    assert "\n" not in str(error.value)
    assert not capsys.readouterr().out


def test_one_image_many_times_takes_no_more_memory_than_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "MAX_BYTES", 8 * 8 * 3 * 100)
    (tmp_path / "a.bin").write_bytes(pickle.dumps(([CONTENT[0][0]] * 102, [True] * 51), 4))
    with pytest.raises(QDGSError, match="take more than"):
        read_bin(tmp_path / "a.bin")
    monkeypatch.setattr(pairs, "MAX_PAIRS", 50)
    with pytest.raises(QDGSError, match="102 images and 51 answers"):
        read_bin(tmp_path / "a.bin")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six people with three images each; the first two are dark."""
    lines = []
    for person in range(6):
        for number in range(3):
            name = f"person{person}/{number}.png"
            (tmp_path / f"person{person}").mkdir(exist_ok=True)
            value = 10 * person + number
            Image.new("RGB", (4, 4), (value, value, value)).save(tmp_path / name)
            lines.append({"file_name": name, "skin": "dark" if person < 2 else "light"})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def test_pairs_of_a_folder(folder: Path) -> None:
    found = read_pairs(folder, count=1000)
    assert found.same.sum() == 6 * 3 == (~found.same).sum()
    assert len({tuple(row) for row in found.rows.tolist()}) == 36
    values = found.images[found.rows, 0, 0, 0]
    np.testing.assert_array_equal(values // 10, found.people)
    np.testing.assert_array_equal(found.people[:, 0] == found.people[:, 1], found.same)
    again = read_pairs(folder, count=1000)
    np.testing.assert_array_equal(again.rows, found.rows)
    few = read_pairs(folder, count=10, seed=1)
    assert (len(few.same), few.same.sum()) == (10, 5)


def test_pairs_of_groups(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = read_pairs(folder, group="skin", count=24)
    assert sorted(set(found.groups)) == ["dark", "light"]
    dark = np.array(found.groups) == "dark"
    assert (found.people[dark] < 2).all()
    assert (found.people[~dark] >= 2).all()
    assert [found.same[rows].sum() for rows in (dark, ~dark)] == [6, 6]
    monkeypatch.setattr(pairs, "MAX_DRAWN", 6)
    few = read_pairs(folder, group="skin", count=1000)
    assert len({person for person in few.people.ravel() if person >= 2}) == 2


def test_a_folder_of_one_person_is_refused(folder: Path) -> None:
    for person in range(1, 6):
        for path in (folder / f"person{person}").iterdir():
            path.unlink()
    (folder / "metadata.jsonl").unlink()
    for person in range(1, 6):
        (folder / f"person{person}").rmdir()
    with pytest.raises(QDGSError, match="has no two people"):
        read_pairs(folder)
