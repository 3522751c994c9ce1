"""Labelled images of all formats from small files, damaged ones, and imbalance by class shares."""

import gzip
import io
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from PIL import Image

from qdgs_jax.datasets import array_files, image_tables, labelled_images
from qdgs_jax.datasets.class_folders import LabelledImages
from qdgs_jax.datasets.labelled_images import imbalanced, read_labelled
from qdgs_jax.errors import ConfigError, QDGSError

GREY = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
LABELS = np.array([2, 0, 9], np.uint8)


def idx(values: np.ndarray) -> bytes:
    return (
        struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape) + values.tobytes()
    )


def write_idx(
    folder: Path, *, images: bytes = idx(GREY), labels: bytes = idx(LABELS), end: str = ""
) -> Path:
    """Both files of the test split."""
    folder.mkdir(exist_ok=True)
    (folder / f"t10k-images-idx3-ubyte{end}").write_bytes(images)
    (folder / f"t10k-labels-idx1-ubyte{end}").write_bytes(labels)
    return folder


def write_cifar(folder: Path, labels: list[int], *, classes: int = 10, before: bytes = b"") -> Path:
    """The test split: in image n, the pixel of row 1 and column 2 is red n, green 50, blue 7."""
    folder.mkdir(exist_ok=True)
    content = b""
    for number, label in enumerate(labels):
        pixels = np.zeros((3, 32, 32), np.uint8)
        pixels[:, 1, 2] = number, 50, 7
        content += before + bytes([label]) + pixels.tobytes()
    (folder / ("test.bin" if before else "test_batch.bin")).write_bytes(content)
    names = "fine_label_names.txt" if before else "batches.meta.txt"
    (folder / names).write_text("".join(f"class {i}\n" for i in range(classes)) + "\n")
    return folder


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_idx(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    end = ".gz" if compress is gzip.compress else ""
    files = {"images": compress(idx(GREY)), "labels": compress(idx(LABELS))}
    images = read_labelled(write_idx(tmp_path, **files, end=end), split="test")
    np.testing.assert_array_equal(images.pixels, GREY[..., None])
    assert images.labels == ("2", "0", "9")
    assert images.counts() == {"0": 1, "2": 1, "9": 1}
    with pytest.raises(ConfigError, match="train-images-idx3-ubyte is missing: put it there"):
        read_labelled(tmp_path, split="train")


def test_fashion_mnist_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelled_images, "FASHION_MNIST_FOLDERS", (tmp_path / "no", tmp_path))
    with pytest.raises(ConfigError, match="fashion-mnist is not there: run `make assets`"):
        read_labelled("fashion-mnist", split="test")
    write_idx(tmp_path)
    read = read_labelled("fashion-mnist", split="test")
    assert read.labels == ("Pullover", "T-shirt/top", "Ankle boot")
    write_idx(tmp_path, labels=idx(np.array([2, 10, 9], np.uint8)))
    with pytest.raises(ConfigError, match="label 10, which is none of its 10 classes: remove"):
        read_labelled("fashion-mnist", split="test")


def test_fashion_mnist_itself() -> None:
    if not any(map(array_files.has_idx, labelled_images.FASHION_MNIST_FOLDERS)):
        pytest.skip("Fashion-MNIST is absent: needs `make assets`")
    images = read_labelled("fashion-mnist", split="train")
    assert images.pixels.shape == (60_000, 28, 28, 1)
    assert images.counts() == dict.fromkeys(sorted(labelled_images.FASHION_MNIST_CLASSES), 6000)
    dark = {
        name: images.pixels[np.array(images.labels) == name][:500].mean()
        for name in ("Sandal", "Coat")
    }
    assert 2 * dark["Sandal"] < dark["Coat"]


def test_cifar(tmp_path: Path) -> None:
    ten = read_labelled(write_cifar(tmp_path / "10", [3, 1]), split="test")
    hundred_folder = write_cifar(tmp_path / "100", [40, 1], classes=100, before=b"\5")
    hundred = read_labelled(hundred_folder, split="test")
    assert ten.labels == ("class 3", "class 1")
    assert hundred.labels == ("class 40", "class 1")
    for images in (ten, hundred):
        assert images.pixels.shape == (2, 32, 32, 3)
        assert images.pixels[:, 1, 2].tolist() == [[0, 50, 7], [1, 50, 7]]
        assert images.pixels.sum() == 2 * 57 + 1
    for number in range(1, 6):
        content = (tmp_path / "10/test_batch.bin").read_bytes()
        (tmp_path / f"10/data_batch_{number}.bin").write_bytes(content)
    assert len(read_labelled(tmp_path / "10", split="train")) == 10
    (tmp_path / "10/data_batch_4.bin").unlink()
    with pytest.raises(ConfigError, match=r"data_batch_4\.bin is missing"):
        read_labelled(tmp_path / "10", split="train")


def test_class_folders(tmp_path: Path) -> None:
    for name, colour in {
        "train/a/1.png": "red",
        "train/b/1.png": "blue",
        "test/b/1.png": 9,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB" if isinstance(colour, str) else "L", (5, 4), colour).save(tmp_path / name)
    assert read_labelled(tmp_path, split="train").pixels.shape == (2, 4, 5, 3)
    test = read_labelled(tmp_path, split="test")
    assert (test.labels, test.pixels.shape) == (("b",), (1, 4, 5, 1))  # grey
    assert read_labelled(tmp_path / "train", split="train").labels == ("a", "b")
    with pytest.raises(ConfigError, match="no split 'test': divide it"):
        read_labelled(tmp_path / "train", split="test")
    with pytest.raises(ConfigError, match="no folder of labelled images"):
        read_labelled(tmp_path / "absent", split="test")


def header(*shape: int) -> bytes:
    return struct.pack(f">{1 + len(shape)}I", 0x800 + len(shape), *shape)


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (b"", "no IDX file"),
        (idx(LABELS), "no IDX file"),
        (header(3, 4, 6) + GREY.tobytes(), "too small for the 88 bytes"),
        (idx(GREY) + b"x", "holds more than the 60 bytes"),
        (header(0, 4, 5), "announces 0 entries in 0 bytes"),
        (header(2**31, 1, 1), "announces 2,147,483,648 entries"),
        (header(3, 2**16, 2**16), "holds more than the 8,589,934,592 bytes allowed: divide it"),
        (idx(GREY[:2]), r"2 images and 3 labels of 'test'"),
    ],
)
@pytest.mark.parametrize("end", ["", ".gz"])
def test_damaged_idx(tmp_path: Path, images: bytes, reason: str, end: str) -> None:
    compress = gzip.compress if end else bytes
    if end:
        reason = reason.replace("too small for the 88 bytes", "less than the 72 bytes")
    write_idx(tmp_path, images=compress(images), labels=compress(idx(LABELS)), end=end)
    with pytest.raises(ConfigError, match=reason) as error:
        read_labelled(tmp_path, split="test")
    assert str(error.value).endswith(".")


def test_nothing_is_decompressed_that_a_file_cannot_hold(tmp_path: Path) -> None:
    write_idx(tmp_path, images=gzip.compress(header(2000, 1000, 1000)), end=".gz")
    with pytest.raises(ConfigError, match="too small for the 2,000,000,016 bytes"):
        read_labelled(tmp_path, split="test")


def test_damaged_cifar(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="label 10, which is none of its 10 classes"):
        read_labelled(write_cifar(tmp_path, [10]), split="test")
    batch, names = tmp_path / "test_batch.bin", tmp_path / "batches.meta.txt"
    batch.write_bytes(batch.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"its 3,072 bytes are no records of 3,073\): replace"):
        read_labelled(tmp_path, split="test")
    write_cifar(tmp_path, [1])
    for content, reason in {
        b"\n": "names no classes",
        b"\xff": "names no classes",
        b"x" * 2**17: "more than 65,536 bytes",
        b"a\na": "have one name",
        b"a\x1b\nb": "cannot be printed",
    }.items():
        names.write_bytes(content)
        with pytest.raises(ConfigError, match=reason):
            read_labelled(tmp_path, split="test")


def test_any_damage_is_told_or_harmless(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = gzip.compress(idx(GREY), mtime=0)
    for _ in range(100):
        content = np.frombuffer(whole, np.uint8).copy()
        content[rng.integers(len(content))] = rng.integers(256)
        images = content[: rng.integers(len(content)) if rng.random() < 0.3 else None].tobytes()
        write_idx(tmp_path, images=images, labels=gzip.compress(idx(LABELS)), end=".gz")
        try:
            read = read_labelled(tmp_path, split="test")
        except ConfigError:
            continue
        np.testing.assert_array_equal(read.pixels, GREY[..., None])


def write_table(path: Path, contents: list[Any], labels: list[Any], *, names: Any = None) -> Path:
    """A Parquet file as Hugging Face's `datasets` writes it."""
    pa = pytest.importorskip("pyarrow", reason="needs the extra `parquet`")
    from pyarrow import parquet

    images = [{"bytes": each, "path": None} for each in contents]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"image": pa.array(images, kind), "label": pa.array(labels)})
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        metadata = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": metadata})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path)
    return path


def png(colour: Any, size: tuple[int, int] = (5, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB" if isinstance(colour, str) else "L", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_parquet(tmp_path: Path) -> None:
    for part, colours in enumerate([["red", 7], ["blue"]]):
        path = tmp_path / f"data/train-0000{part}-of-00002.parquet"
        write_table(path, list(map(png, colours)), [1, 0][: len(colours)], names=["cat", "dog"])
    write_table(tmp_path / "data/test-00000-of-00001.parquet", [png(3), png(4)], [5, 11])
    images = read_labelled(tmp_path, split="train")
    assert images.labels == ("dog", "cat", "dog")
    assert images.pixels.shape == (3, 4, 5, 3)
    assert images.pixels[:, 0, 0].tolist() == [[255, 0, 0], [7, 7, 7], [0, 0, 255]]
    test = read_labelled(tmp_path, split="test")
    assert test.labels == ("5", "11")
    np.testing.assert_array_equal(test.pixels[:, 3, 4], [[3], [4]])
    write_table(tmp_path / "data/train-00001-of-00002.parquet", [png(1)], [0], names=["dog", "cat"])
    with pytest.raises(ConfigError, match="name other classes: name them alike"):
        read_labelled(tmp_path, split="train")


def test_damaged_parquet(tmp_path: Path) -> None:
    path = tmp_path / "test.parquet"
    for contents, labels, names, reason in [
        ([png(1), png(2, (6, 4))], [0, 0], None, "0 of .* is 5 x 4 and 1 of .* 6 x 4: resize"),
        ([png(1), b"no image"], [0, 0], None, "image 1 of .*cannot be read"),
        ([png(1), None], [0, 0], None, "Row 1 of .* lacks its image or its label"),
        ([png(1)], [-1], None, "label -1"),
        ([png(1)], [2], ["cat", "dog"], "label 2, which is none of its 2 classes"),
        ([png(1)], [0], {"0": "cat"}, "make that a list"),
        ([png(1)], ["cat"], None, "no column `image` of structs"),
        ([], np.array([], int), None, "announces 0 images"),
    ]:
        write_table(path, contents, labels, names=names)
        with pytest.raises(QDGSError, match=reason):
            read_labelled(tmp_path, split="test")
    write_table(path, [png(1)], [0])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ConfigError, match=r"cannot be read .*: replace its files\.$"):
        read_labelled(tmp_path, split="test")


def test_parquet_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "train.parquet").touch()
    with pytest.raises(
        ConfigError, match=r"not installed: run `pip install 'qdgs-jax\[parquet\]'`"
    ):
        read_labelled(tmp_path, split="train")
    with pytest.raises(ConfigError, match="no Parquet file of the split 'test'"):
        read_labelled(tmp_path, split="test")


def test_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of the hub; nothing is fetched."""
    sizes = {"README.md": 10, "data/train-0.parquet": 5, "data/train-1.parquet": 6, "x/test": 9}
    asked: list[Any] = []

    def repo_info(_: Any, name: str, **options: Any) -> Any:
        asked.append((name, options))
        found = [SimpleNamespace(rfilename=name, size=size) for name, size in sizes.items()]
        return SimpleNamespace(siblings=found)

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda name, file, **options: tmp_path / file
    )
    source = f"hf:owner/name@{'a' * 40}"
    found = image_tables.fetch_tables(source, split="train")
    assert found == [tmp_path / "data/train-0.parquet", tmp_path / "data/train-1.parquet"]
    assert asked[0][0] == "owner/name"
    assert asked[0][1]["revision"] == "a" * 40
    assert asked[0][1]["repo_type"] == "dataset"
    sizes["data/train-1.parquet"] = 2**40
    with pytest.raises(ConfigError, match="more than the 8 GiB allowed: name a smaller"):
        image_tables.fetch_tables(source, split="train")
    sizes["other/train-1.parquet"] = 1
    with pytest.raises(ConfigError, match="several folders, such as data and other: download it"):
        image_tables.fetch_tables(source, split="train")
    with pytest.raises(ConfigError, match="write hf:OWNER/NAME@COMMIT with the 40 digits"):
        read_labelled("hf:owner/name@main", split="train")
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *_, **__: 1 / 0)
    with pytest.raises(ConfigError, match=r"cannot be fetched .*\(ZeroDivisionError\): check"):
        read_labelled(source, split="train")


def many(**counts: int) -> LabelledImages:
    labels = tuple(name for name, count in counts.items() for _ in range(count))
    return LabelledImages(np.arange(len(labels)).reshape(-1, 1, 1, 1), labels, ())


def test_imbalanced_by_hand() -> None:
    images = many(a=60, b=60, c=60, d=60)
    shares = {"a": 0.8, "b": 0.19, "c": 0.01, "d": 0.0}
    kept = imbalanced(images, shares, seed=1)  # 60 / 0.8 = 75 images; 14.25 of b and 0.75 of c
    assert kept.counts() == {"a": 60, "b": 14, "c": 1}
    rows = kept.pixels.ravel()
    assert (np.diff(rows) > 0).all()
    assert kept.labels == tuple(images.labels[row] for row in rows)
    again = imbalanced(images, dict(reversed(shares.items())), seed=1)
    np.testing.assert_array_equal(again.pixels, kept.pixels)
    assert (imbalanced(images, shares, seed=2).pixels.ravel() != rows).any()

    # c has the fewest images for its share: 10 / 0.25 = 40 images.
    assert imbalanced(many(a=60, c=10), {"a": 0.75, "c": 0.25}, seed=0).counts() == {
        "a": 30,
        "c": 10,
    }
    assert imbalanced(many(a=300, b=9), {"a": 0.9999, "b": 0.0001}, seed=0).counts()["b"] == 1


def test_published_shares_of_six_classes() -> None:
    """They sum to 100.1 %."""
    shares = dict(zip("abcdef", (0.654, 0.175, 0.121, 0.031, 0.017, 0.003), strict=True))
    kept = imbalanced(many(**dict.fromkeys("abcdefghij", 6000)), shares, seed=0)
    assert list(kept.counts().values()) == [6000, 1606, 1110, 284, 156, 28]


@pytest.mark.parametrize(
    ("shares", "reason"),
    [
        ({"a": 0.5, "dogs": 0.5}, r"no class 'dogs' \(did you mean 'dog'\?\): name one of a, dog"),
        ({"a": 0.5, "dog": 0.49}, "sum to 0.99, not to 1"),
        ({"a": 50, "dog": 50}, "share of 'a' is 50: give a number from 0 to 1"),
        ({"a": float("nan"), "dog": 1}, "share of 'a' is nan"),
        ({}, "sum to 0, not to 1"),
    ],
)
def test_shares_that_are_none(shares: dict[str, float], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        imbalanced(many(a=3, dog=3), shares, seed=0)
