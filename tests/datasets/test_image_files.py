"""Image files: the right pixels of each kind, and nothing executed or filled by a stranger's."""

import contextlib
import io
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from qdgs_jax.datasets import image_files
from qdgs_jax.datasets.image_files import read_image
from qdgs_jax.errors import QDGSError

WHITE = (255, 255, 255)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_of_16_bits_keeps_its_shades(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"0.{suffix}"
    grey = np.array([[0, 128, 129, 257], [32896, 65406, 65407, 65535]], np.uint16)
    Image.fromarray(grey).save(path)
    expected = [[0, 0, 1, 1], [128, 254, 255, 255]]  # value / 257, rounded
    np.testing.assert_array_equal(read_image(path), np.dstack([expected] * 3))


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
def test_images_are_upright(tmp_path: Path, suffix: str) -> None:
    """Orientation 6: the camera's top is the picture's right."""
    path = tmp_path / f"0.{suffix}"
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(path, exif=exif)
    image = read_image(path)
    assert image.shape == (32, 16, 3)
    assert image[:, 9:].min() > 200
    assert image[:, :7].max() < 50


def test_16_bits_are_turned_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    grey = np.array([[0, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "0.png", exif=exif)
    assert read_image(tmp_path / "0.png")[0, :, 0].tolist() == [255, 0]


def rgba() -> Image.Image:
    return Image.fromarray(np.array([[[200, 0, 0, 0], [0, 0, 0, 128]]], np.uint8))


def palette() -> Image.Image:
    image = Image.fromarray(np.array([[1, 0]], np.uint8))
    image.putpalette([127, 127, 127, 200, 0, 0])  # also makes its mode P
    return image


@pytest.mark.parametrize(
    ("image", "suffix", "options"),
    [
        (rgba(), "png", {}),
        (rgba(), "tif", {}),
        (rgba(), "webp", {"lossless": True, "exact": True}),
        (Image.fromarray(np.array([[[200, 0], [0, 128]]], np.uint8)), "png", {}),
        (palette(), "png", {"transparency": 1}),
        (palette(), "gif", {"transparency": 1}),
        (palette().convert("RGB"), "png", {"transparency": (200, 0, 0)}),
        (Image.fromarray(np.array([[9, 127]], np.uint8)), "png", {"transparency": 9}),
        (Image.fromarray(np.array([[9, 32639]], np.uint16)), "png", {"transparency": 9}),
    ],
)
def test_hidden_colours_do_not_show(
    tmp_path: Path, image: Image.Image, suffix: str, options: dict[str, Any]
) -> None:
    path = tmp_path / f"0.{suffix}"
    image.save(path, **options)
    pixels = read_image(path)
    assert tuple(pixels[0, 0]) == WHITE
    assert tuple(pixels[0, 1]) == (127, 127, 127)  # half of black on white, where there is alpha


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_without_a_white_point_are_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (2, 2), 3).save(tmp_path / "0.tif")
    with pytest.raises(QDGSError, match="32-bit numbers without a white point"):
        read_image(tmp_path / "0.tif")


def test_nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def executed(*_: Any, **__: Any) -> None:
        pytest.fail("a program was started")

    content = io.BytesIO()
    Image.new("RGB", (4, 4)).save(content, "eps")
    (tmp_path / "0.png").write_bytes(content.getvalue())
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", executed)
    monkeypatch.setattr(subprocess, "Popen", executed)
    with pytest.raises(QDGSError, match="it is none of PNG, JPEG"):
        read_image(tmp_path / "0.png")


def chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize("side", [8_193, 13_300, 60_000])
def test_pixels_are_counted_before_they_are_decoded(tmp_path: Path, side: int) -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    (tmp_path / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b""))
    with pytest.raises(QDGSError, match="more than 67,108,864"):
        read_image(tmp_path / "0.png")


def test_the_limit_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (4, 3)).save(tmp_path / "0.png")
    monkeypatch.setattr(image_files, "MAX_PIXELS", 12)
    assert read_image(tmp_path / "0.png").shape == (3, 4, 3)
    monkeypatch.setattr(image_files, "MAX_PIXELS", 11)
    with pytest.raises(QDGSError, match=r"has 4 x 3 pixels, more than 11: make it smaller"):
        read_image(tmp_path / "0.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "gif"])
def test_damaged_files_are_a_sentence(tmp_path: Path, suffix: str) -> None:
    """Bits flipped and ends cut, seeded: pixels or one sentence, no other exception."""
    path, random = tmp_path / f"0.{suffix}", np.random.default_rng(0)
    noise = random.integers(0, 256, (9, 8, 3), np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    for _ in range(40):
        damaged = bytearray(whole[: random.integers(1, len(whole) + 1)])
        for place in random.integers(0, len(damaged), 3):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(QDGSError):
            assert read_image(path).dtype == np.uint8
