"""A generator of one colour, an encoder that reads the colour, and finished runs of both."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from qdgs_jax import encoders, files, generators
from qdgs_jax.config import (
    BinConfig,
    Config,
    ExportConfig,
    MeasureConfig,
    ObjectiveConfig,
    SearchConfig,
    save_config,
)
from qdgs_jax.encoders import Encoder
from qdgs_jax.generators import Generator

CELLS = 10


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
        search=SearchConfig(chunk_size=8, constraint="none", threshold_min=0.0),
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
    summary |= {"elites": len(index), "archive_sha256": files.sha256(path / "archive.safetensors")}
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]


def contents(out: Path) -> dict[str, bytes]:
    files = (path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def times(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.rglob("*")}


@pytest.fixture(name="make_generator")
def make_generator_() -> Callable[..., Any]:
    return make_generator


@pytest.fixture(name="make_encoder")
def make_encoder_() -> Callable[..., Any]:
    return make_encoder


@pytest.fixture(name="make_config")
def make_config_() -> Callable[..., Any]:
    return make_config


@pytest.fixture(name="write_run")
def write_run_() -> Callable[..., Any]:
    return write_run


@pytest.fixture(name="records")
def records_() -> Callable[..., Any]:
    return records


@pytest.fixture(name="contents")
def contents_() -> Callable[..., Any]:
    return contents


@pytest.fixture(name="times")
def times_() -> Callable[..., Any]:
    return times


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
