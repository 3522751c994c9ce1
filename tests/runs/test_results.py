"""A run writes all its files, and is read back."""

import csv
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from qdgs_jax import files
from qdgs_jax.config import Config, save_config
from qdgs_jax.errors import QDGSError
from qdgs_jax.problem import load_problem
from qdgs_jax.runs import figures, results
from qdgs_jax.runs import sampling as runs
from qdgs_jax.runs.metrics import Row
from qdgs_jax.runs.results import load_run


def test_a_run_leaves_what_it_promises(tmp_path: Path, config: Config) -> None:
    rows: list[Row] = []
    summary = runs.sample(config, tmp_path / "run", report=rows.append)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "config.toml", "provenance.json", "metrics.csv", "checkpoints", "archive.safetensors",
        "archive.csv", "heatmap.png", "curves.png", "elites.png", "summary.json",
    }  # fmt: skip
    assert [row["generation"] for row in rows] == [2, 4, 6, 8]
    assert summary == json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["evaluations"] == 16 + 8 * 2 * (1 + 3)
    assert summary["generator"] == {"name": "toy", "sha256": "0" * 64}
    assert summary["qd_score_normalised"] == pytest.approx(summary["qd_score"] / 30)
    assert summary["seconds_compile"] > 0
    for picture in ("heatmap.png", "curves.png", "elites.png"):
        with Image.open(tmp_path / "run" / picture) as image:
            image.verify()


def test_archive_and_table_agree_and_hold_true_scores(tmp_path: Path, config: Config) -> None:
    runs.sample(config, tmp_path / "run")
    run = load_run(tmp_path / "run")
    elites = run.elites
    assert len(elites.index) == run.summary["elites"] > 0
    assert (np.diff(elites.index) > 0).all()
    with open(tmp_path / "run/archive.csv", newline="") as file:
        table = list(csv.reader(file))
    assert table[0] == [
        "index", *(f"solution_{i}" for i in range(5)), "objective", "measures_0", "measures_1",
    ]  # fmt: skip
    values = np.array(table[1:], np.float32)
    np.testing.assert_array_equal(values[:, 0], elites.index)
    np.testing.assert_array_equal(values[:, 1:6], elites.latents)
    np.testing.assert_array_equal(values[:, 6], elites.objective)

    problem = load_problem(run.config)
    latents = jnp.asarray(elites.latents)
    scores, _ = problem.score(problem.params, jax.random.key(0), latents, ())
    np.testing.assert_allclose(scores.objective, elites.objective, rtol=1e-5)
    np.testing.assert_allclose(scores.measures, elites.measures, atol=1e-5)
    np.testing.assert_array_equal(
        problem.search.archive.index_of(jnp.asarray(elites.measures)), elites.index
    )


def test_a_folder_without_a_finished_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(QDGSError, match="holds no finished run"):
        load_run(tmp_path)


@pytest.fixture
def made(tmp_path: Path, config: Config) -> Path:
    """A run of made-up elites, which readers cannot tell from a real one."""
    measures = tuple(dataclasses.replace(each, range=(-1, 1)) for each in config.measures)
    save_config(tmp_path / "config.toml", dataclasses.replace(config, measures=measures))
    write_archive(tmp_path, TENSORS)
    assert load_run(tmp_path).elites.index.tolist() == [0, 7, 29]
    return tmp_path


TENSORS = {
    "solution": np.ones((3, 5), np.float32),
    "objective": np.array([1, 2, 3], np.float32),
    "measures": np.zeros((3, 2), np.float32),
    "index": np.array([0, 7, 29], np.int32),
}
MODEL = {"name": "toy", "sha256": "0" * 64}
SUMMARY = {
    "elites": 3, "generator": MODEL, "encoder": None, "precision": "highest", "seed": 0,
    "device": "cpu", "versions": {"jax": "1"}, "best_objective": float("-inf"),
}  # fmt: skip


def write_archive(out: Path, tensors: dict[str, np.ndarray], **summary: object) -> None:
    safetensors.numpy.save_file(tensors, out / "archive.safetensors")
    sha256 = files.sha256(out / "archive.safetensors")
    values = {**SUMMARY, "archive_sha256": sha256, **summary}
    (out / "summary.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    "change",
    [
        {"solution": np.ones((2, 5), np.float32)},
        {"solution": np.ones((3, 5, 1), np.float32)},
        {"solution": np.full((3, 5), np.nan, np.float32)},
        {"objective": np.array([1, 2, -np.inf], np.float32)},
        {"objective": np.array([1, 2, 3], np.float64)},
        {"measures": np.zeros((3, 1), np.float32)},
        {"measures": np.full((3, 2), np.inf, np.float32)},
        {"index": np.array([-1, 7, 29], np.int32)},
        {"index": np.array([0, 7, 30], np.int32)},
        {"index": np.array([7, 0, 29], np.int32)},
        {"index": np.array([7, 7, 29], np.int32)},
        {"index": np.array([0, 7, 29], np.int64)},
    ],
)
def test_an_archive_that_does_not_fit_is_refused(made: Path, change: dict[str, np.ndarray]) -> None:
    write_archive(made, TENSORS | change)
    with pytest.raises(QDGSError, match=r"is damaged \(.*archive.safetensors.*\): run `"):
        load_run(made)


def test_a_missing_tensor_is_told(made: Path) -> None:
    for name in TENSORS:
        write_archive(made, {key: value for key, value in TENSORS.items() if key != name})
        with pytest.raises(QDGSError, match=rf"is damaged \(`{name}` of archive.safetensors"):
            load_run(made)


def test_every_flipped_bit_of_the_archive_is_noticed(made: Path) -> None:
    path = made / "archive.safetensors"
    content = path.read_bytes()
    for place in (0, 9, len(content) // 2, len(content) - 1):
        flipped = bytearray(content)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(QDGSError, match=r"is damaged \(archive.safetensors is not the file"):
            load_run(made)


@pytest.mark.parametrize("value", [None, 2, [], {}, "x"])
@pytest.mark.parametrize("key", ["elites", "generator", "encoder", "versions", "archive_sha256"])
def test_a_summary_of_other_values_is_refused(made: Path, key: str, value: object) -> None:
    if key == "encoder" and value is None:
        return
    if key == "versions" and value == {}:
        return
    values = json.loads((made / "summary.json").read_text())
    (made / "summary.json").write_text(json.dumps(values | {key: value}))
    with pytest.raises(QDGSError, match="is damaged"):
        load_run(made)
    del values[key]
    (made / "summary.json").write_text(json.dumps(values))
    with pytest.raises(QDGSError, match=rf"summary.json has no such `{key}` as a run's"):
        load_run(made)


@pytest.mark.parametrize("name", ["summary.json", "config.toml", "archive.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\xff\0", b"[" * 100_000, b"null", None])
def test_files_of_something_else_are_told(made: Path, name: str, content: bytes | None) -> None:
    (made / name).unlink()
    if content is None:
        (made / name).mkdir()
    else:
        (made / name).write_bytes(content)
    with pytest.raises(QDGSError, match=r"is damaged|holds no finished run"):
        load_run(made)


def test_a_config_without_numbers_is_told(made: Path, config: Config) -> None:
    save_config(made / "config.toml", config)
    with pytest.raises(QDGSError, match=r"config.toml has a range that is not in numbers"):
        load_run(made)


def test_a_picture_that_fails_costs_a_warning(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("RESOURCE_EXHAUSTED: 8.7 GiB\nat length")

    monkeypatch.setattr(figures, "draw_heatmap", fail)
    sentence = r"run is finished, but .* pictures .* \(RuntimeError: RESOURCE_EXHAUSTED: 8.7 GiB\)"
    with pytest.warns(UserWarning, match=sentence):
        summary = runs.sample(config, tmp_path / "run")
    assert load_run(tmp_path / "run").summary == summary


@pytest.mark.parametrize("sides", [(400, 400), (200, 800)])
def test_tiles_are_rendered_in_chunks_and_made_small(
    config: Config, sides: tuple[int, int]
) -> None:
    seen = []

    def render(params: jax.Array, latents: jax.Array) -> jax.Array:
        seen.append(len(latents))
        return jnp.broadcast_to(latents[:, :1, None, None] * params, (len(latents), *sides, 3))

    search = SimpleNamespace(chunk=4)
    problem = SimpleNamespace(
        generator=SimpleNamespace(render=render),
        params={"generator": jnp.float32(0.5)},
        config=SimpleNamespace(search=search),
    )
    latents = np.arange(10, dtype=np.float32)[:, None]
    images = results._render_tiles(problem, latents)  # type: ignore[arg-type]
    assert images.shape == (10, *((256, 256) if sides[0] == sides[1] else (64, 256)), 3)
    np.testing.assert_allclose(images[:, 0, 0, 0], latents[:, 0] / 2, rtol=1e-5)
    assert max(seen) <= 4
