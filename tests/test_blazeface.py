"""Faces are found and aligned; a toy network takes BlazeFace's place."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax import blazeface, expressions, faceres
from qdgs_jax.errors import CheckpointError, ConfigError

FINE, COARSE = 2 * (16 * 3 + 5) + 1, 6 * (8 * 2 + 7) + 4
"""Anchors of row 3, column 5 of 16 x 16 cells, and of row 2, column 7 of 8 x 8."""


def test_the_most_probable_anchor_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_network: Callable[..., Path]
) -> None:
    logits, boxes = np.zeros((3, 896)), np.zeros((3, 896, 16))
    logits[0, FINE], logits[2, 512 + COARSE] = 3, 2  # red, blue
    boxes[0, FINE, 4:12], boxes[2, 512 + COARSE, 4:12] = range(8), range(8, 16)
    outputs = {
        "Identity": (logits[:, :512], [1, 512, 1]),
        "Identity_1": (logits[:, 512:], [1, 384, 1]),
        "Identity_2": (boxes[:, :512].reshape(3, -1), [1, 512, 16]),
        "Identity_3": (boxes[:, 512:].reshape(3, -1), [1, 384, 16]),
    }
    monkeypatch.setattr(faceres, "PATH", tmp_path / "faceres/faceres.json")
    with pytest.raises(ConfigError, match="The network blazeface is not there: run `make assets`"):
        blazeface.load()
    path = tmp_path / "faceres/blazeface.json"
    write_network(path, (1, 256, 256, 3), outputs)
    graph, params = blazeface.load()
    colours = jnp.array([[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]])
    canvases = jnp.broadcast_to(colours[:, None, None], (2, 256, 256, 3))
    found, points = jax.jit(lambda *values: blazeface.find(graph, *values))(params, canvases)
    np.testing.assert_allclose(found, 1 / (1 + np.exp([-3.0, -2.0])), rtol=1e-5)
    expected = np.arange(16.0).reshape(2, 4, 2)
    expected += np.array([[5.5 * 16, 3.5 * 16], [7.5 * 32, 2.5 * 32]])[:, None]
    np.testing.assert_allclose(points, expected, rtol=1e-5)

    write_network(path, (1, 256, 256, 3), {"Identity": outputs["Identity"]})
    with pytest.raises(CheckpointError, match=r"it is not blazeface: give models/blazeface\.json"):
        blazeface.load()


def test_an_aligned_face_has_its_points_at_the_template() -> None:
    def to_canvas(points: np.ndarray) -> np.ndarray:  # 1.5 times as large, turned by 20 degrees
        z = (points @ [1, 1j]) * 1.5 * np.exp(1j * np.radians(20)) + 60 + 10j
        return np.stack([z.real, z.imag], axis=-1)

    down, right = np.mgrid[:256, :256] + 0.5
    canvas = np.stack([right, down, np.ones_like(down)], axis=-1) / 256
    points = to_canvas(blazeface.TEMPLATE)
    faces = jax.jit(blazeface.align)(jnp.float32(canvas)[None], jnp.float32(points)[None])
    down, right = np.mgrid[:112, :112] + 0.5
    expected = to_canvas(np.stack([right, down], axis=-1)) / 256
    np.testing.assert_allclose(faces[0, ..., :2], expected, atol=1e-4)
    np.testing.assert_allclose(faces[0, ..., 2], 1 / 256, rtol=1e-5)


def test_a_canvas_keeps_the_proportions_of_an_image() -> None:
    canvas = jax.jit(blazeface.canvases)(jnp.ones((1, 50, 25, 3)))[0, ..., 0]
    rows, columns = (np.flatnonzero((canvas > 0.75).any(axis=axis)) for axis in (1, 0))
    assert (rows[0], rows[-1]) == (21, 234)  # 214 of 256
    assert (columns[0], columns[-1]) in ((74, 181), (75, 180))  # 107
    np.testing.assert_allclose(canvas[0], blazeface.GREY)


def test_expressions_are_read_from_luma(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_network: Callable[..., Path]
) -> None:
    monkeypatch.setattr(faceres, "PATH", tmp_path / "faceres/faceres.json")
    matrix = np.arange(7.0)[None]
    path = tmp_path / "faceres/emotion.json"
    write_network(path, (2, 64, 64, 1), {"Identity": (matrix, [-1, 7])})
    colours = jnp.array([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    images = jnp.broadcast_to(colours[:, None, None], (2, 9, 5, 3))
    graph, params = expressions.load()
    found = jax.jit(lambda *values: expressions.probabilities(graph, *values))(params, images)
    np.testing.assert_allclose(found, np.array([[1.0], [2 * 0.299 - 1]]) * matrix, atol=1e-5)
