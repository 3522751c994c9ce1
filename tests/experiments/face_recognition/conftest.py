"""A generator of striped pictures, and networks that read stripes as faces."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import threadpoolctl  # type: ignore[import-untyped]

from qdgs_jax import blazeface, faceres, generators
from qdgs_jax.config import Config, parse_config
from qdgs_jax.experiments.face_recognition import people, studio
from qdgs_jax.experiments.face_recognition.studio import Studio
from qdgs_jax.generators import Generator

D = 16


def render(params: Any, latents: Any) -> Any:
    """Each latent is the grey of a row of the image."""
    rows = jax.nn.sigmoid(params * latents)[:, :, None, None]
    return jnp.broadcast_to(rows, (len(latents), D, D, 3))


def sample(key: Any, n: int) -> Any:
    return jax.random.normal(key, (n, D))


def rows_of(images: Any) -> Any:
    """The latents that an image shows, roughly."""
    parts = images.mean(axis=(2, 3)).reshape(len(images), D, -1)
    return parts.mean(axis=2) - 0.5


def find(graph: Any, params: Any, canvases: Any) -> Any:
    """Faces fill their images; a white one is none."""
    border = (blazeface.SIDE - blazeface.INNER) / 2
    points = blazeface.TEMPLATE * blazeface.INNER / blazeface.ALIGNED + border
    found = canvases[:, 16, 16].min(axis=-1) < 0.99
    return found * 0.9, jnp.broadcast_to(points, (len(canvases), 4, 2))


def embed(graph: Any, params: Any, images: Any) -> Any:
    rows = rows_of(images)[:, :-1]
    return rows / jnp.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """k-means of a few latents takes longer with several."""
    with threadpoolctl.threadpool_limits(1):
        yield


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = Generator("stripes", D, D, sample, render, "a" * 64)
    monkeypatch.setattr(generators, "load", lambda model, **_: (generator, jnp.float32(1)))
    for number, module in enumerate((blazeface, faceres)):
        loaded = SimpleNamespace(sha256=f"{number}" * 64), {"one": jnp.float32(1)}
        monkeypatch.setattr(module, "load", lambda loaded=loaded: loaded)
    template = blazeface.TEMPLATE * 32 / blazeface.ALIGNED  # all is smaller, for speed
    sizes = {"SIDE": 40, "INNER": 32, "ALIGNED": 32, "TEMPLATE": template}
    for name, value in sizes.items():
        monkeypatch.setattr(blazeface, name, value)
    monkeypatch.setattr(blazeface, "find", find)
    monkeypatch.setattr(faceres, "embed", embed)
    monkeypatch.setattr(studio, "skin_tone", lambda images: 250 * rows_of(images)[:, -1])
    monkeypatch.setattr(people, "AT_ONCE", 256)


@pytest.fixture(name="studio")
def studio_(models: None) -> Studio:
    generator, params = generators.load("stripes")
    return Studio(generator, params, 16, 16)


@pytest.fixture
def search() -> Config:
    return parse_config(
        {
            "notice": "faces",
            "objective": {"regularisation": 1.0},
            "measures": [{"name": "grey", "function": "brightness", "range": [0, 1]}],
            "search": {"constraint": "none", "chunk_size": 16, "threshold_min": -1000},
            "export": {
                "bins": [
                    {"name": name, "label": name, "where": {"grey": ends}}
                    for name, ends in (("dark", [0, 0.5]), ("light", [0.5, 1]))
                ],
            },
        },
        source="test",
    )


@pytest.fixture
def elites() -> Any:
    """Elites that a search might have found: too few for eight identities."""
    latents = np.random.default_rng(0).normal(size=(12, D)).astype(np.float32)
    measures = (1 / (1 + np.exp(-latents))).mean(axis=1, keepdims=True)
    return SimpleNamespace(latents=latents, objective=np.arange(12.0), measures=measures)
