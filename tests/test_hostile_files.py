"""Mutations of strangers' files: a result or one sentence, in bounded time and memory.

Checkpoints have mutations of their own (`tests/models`); here are all other files that are read.
"""

import io
import json
import os
import pickle
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qdgs_jax import encoders, generators
from qdgs_jax.config import Config, load_config, save_config
from qdgs_jax.datasets import export as dataset
from qdgs_jax.datasets.class_folders import read_folder
from qdgs_jax.errors import QDGSError
from qdgs_jax.evaluation.pairs import read_bin
from qdgs_jax.runs import sampling as runs
from qdgs_jax.runs.results import load_run

ASSETS = Path(generators.__file__).parent / "assets"
SECONDS, BYTES = 20, 2 * 2**30
COUNT = 25  # mutations of each file
SEARCHES = 6  # where each mutation takes a search
TOKENS = [
    b"1e9", b"1e999", b"9" * 5000, b"-1", b"0", b"NaN", b"null", b"true", b"[]", b"{}", b'""',
    b"[" * 10_000, b'{"a":' * 10_000, b'"\\ud800"', b'"\\u0000"', b"\0", b"\xff\xfe",
    b"\xe2\x80\xa8", b"../" * 9, b"/etc/passwd", b"x" * 2**20, b"1_0", b"0x1p9", b"\r\n",
    b"a." * 1000,
]  # fmt: skip
EVENTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "ctypes.dlopen", "socket")
CHANGES = ("os.remove", "os.rename", "os.rmdir", "shutil.rmtree", "os.link", "os.symlink")


class Watch:
    """What must not happen while it is on: programs, sockets, files changed outside of a folder."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event.startswith(EVENTS):
            self.seen.append(f"{event} {arguments}")
        if event == "open" and isinstance(arguments[0], str) and isinstance(arguments[2], int):
            written = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            path = os.path.abspath(arguments[0])
            if written and path != os.devnull and not path.startswith(self.folder):
                self.seen.append(f"open {arguments}")
        if event in (
            "os.remove",
            "os.rename",
            "os.rmdir",
            "shutil.rmtree",
            "os.link",
            "os.symlink",
        ):
            paths = [each for each in arguments if isinstance(each, str | os.PathLike)]
            if not all(os.path.abspath(path).startswith(self.folder) for path in paths):
                self.seen.append(f"{event} {arguments}")


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()  # a hook is for ever; without a folder it does nothing


def mutate(random: np.random.Generator, content: bytes) -> bytes:
    data = bytearray(content)
    for _ in range(random.integers(1, 4)):
        place, length = int(random.integers(len(data) + 1)), int(random.integers(1, 40))
        match random.integers(7):
            case 0:
                del data[place:]
            case 1:
                data[place : place + length] = random.bytes(length)
            case 2:
                data[place:place] = TOKENS[random.integers(len(TOKENS))]
            case 3:  # a value, as texts have them
                ends = [i for i, byte in enumerate(data[:100_000]) if byte in b':=,[{"\n '] or [0]
                place = ends[random.integers(len(ends))] + 1
                data[place : place + length] = TOKENS[random.integers(len(TOKENS))]
            case 4:
                data[place:place] = data[place : place + 40 * length] * 3
            case 5:
                del data[place : place + length]
            case 6 if data:
                data[min(place, len(data) - 1)] ^= 1 << int(random.integers(8))
    return bytes(data)


@pytest.fixture
def attack(tmp_path: Path, watch: Watch) -> Iterator[Callable]:
    """Reads mutations of a file in a folder, each from a fresh copy of the folder."""

    def attack(
        base: Path, name: str, read: Callable[[Path], Any], *, least: int = 1, count: int = COUNT
    ) -> None:
        content, refused = (base / name).read_bytes(), 0
        random = np.random.default_rng(len(name))
        read(shutil.copytree(base, tmp_path / "whole"))  # and late imports
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(count):
            folder = shutil.copytree(base, tmp_path / f"mutation-{number}")
            (folder / name).write_bytes(mutate(random, content))
            start, watch.folder = time.process_time(), str(tmp_path)
            sentence = ""
            try:
                read(folder)
            except (QDGSError, UserWarning) as error:
                sentence = str(error)
            finally:
                watch.folder = None
            assert time.process_time() - start < SECONDS
            assert "\n" not in sentence
            assert len(sentence) < 1500
            refused += bool(sentence)
            shutil.rmtree(folder)
        assert not watch.seen
        assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) < BYTES
        assert refused >= least

    yield attack
    watch.seen.clear()


def test_the_watch_sees(watch: Watch, tmp_path: Path) -> None:
    watch.folder = str(tmp_path / "a")
    os.system("true")
    (tmp_path / "b").touch()
    (tmp_path / "b").unlink()
    watch.folder = None
    assert len(watch.seen) == 3
    watch.seen.clear()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_generators(attack: Callable, name: str) -> None:
    attack(ASSETS / "shapes_vae", name, lambda folder: generators.load(str(folder)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"],
)
def test_encoders(attack: Callable, name: str) -> None:
    def read(folder: Path) -> None:
        encoder, params = encoders.load(str(folder))
        encoder.embed_tokens(params, encoder.tokenize(["A red shape."]))

    attack(ASSETS / "shapes_clip", name, read, least=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "spiece.model"])
def test_siglips(attack: Callable, name: str) -> None:
    def read(folder: Path) -> None:
        encoder, params = encoders.load(str(folder))
        encoder.embed_tokens(params, encoder.tokenize(["A red shape."]))

    attack(Path(__file__).parent / "models/siglip/tiny", name, read, least=0)


def test_configs(attack: Callable, tmp_path: Path, toy_config: Config) -> None:
    (tmp_path / "base").mkdir()
    save_config(tmp_path / "base/config.toml", toy_config)
    attack(tmp_path / "base", "config.toml", lambda folder: load_config(folder / "config.toml"))


@pytest.fixture
def run(tmp_path: Path, toy_models: None, toy_config: Config) -> Path:
    runs.sample(toy_config, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.toml", "summary.json", "archive.safetensors"])
def test_runs_that_are_exported(attack: Callable, run: Path, name: str) -> None:
    def read(folder: Path) -> None:
        load_run(folder)
        dataset.export(folder, folder / "dataset", count=4)

    attack(run, name, read)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.toml", "provenance.json", "metrics.csv", "summary.json"])
def test_runs_that_are_resumed(attack: Callable, run: Path, name: str) -> None:
    config = load_run(run).config
    (run / "archive.safetensors").unlink()

    def read(folder: Path) -> None:
        runs.sample(config, folder, resume=True)

    attack(run, name, read, least=0, count=SEARCHES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["manifest.ocdbt", "d/*"])
def test_checkpoints_that_are_resumed(attack: Callable, run: Path, name: str) -> None:
    config = load_run(run).config
    (run / "archive.safetensors").unlink()
    newest = run / "checkpoints/8"
    largest = max(newest.glob(name), key=lambda path: path.stat().st_size)
    attack(
        run,
        str(largest.relative_to(run)),
        lambda folder: runs.sample(config, folder, resume=True),
        least=2,
        count=SEARCHES,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["manifest.json", "balance.json", "metadata.jsonl", "README.md"])
def test_datasets_that_are_continued(attack: Callable, run: Path, name: str) -> None:
    dataset.export(run, run / "dataset", count=4)
    attack(run / "dataset", name, lambda folder: dataset.export(run, folder, count=4), least=0)


def write_images(folder: Path, suffix: str) -> Path:
    random, lines = np.random.default_rng(0), []
    for number in range(4):
        path = folder / "ab"[number % 2] / f"{number}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (9, 8, 3), np.uint8)).save(path)
        name = path.relative_to(folder).as_posix()
        lines.append(json.dumps({"file_name": name, "group": "xy"[number // 2]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tif", ".gif"])
def test_images(attack: Callable, tmp_path: Path, suffix: str) -> None:
    attack(write_images(tmp_path / "images", suffix), f"a/0{suffix}", read_folder)


def test_pairs_of_faces(attack: Callable, tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "JPEG")
    (tmp_path / "base").mkdir()
    content = pickle.dumps(([stream.getvalue()] * 4, [True, False]), 4)
    (tmp_path / "base/lfw.bin").write_bytes(content)
    attack(tmp_path / "base", "lfw.bin", lambda folder: read_bin(folder / "lfw.bin"))


def test_lists_of_images(attack: Callable, tmp_path: Path) -> None:
    base = write_images(tmp_path / "images", ".png")
    attack(base, "metadata.jsonl", lambda folder: read_folder(folder, group="group"))
