"""A run writes all its files, and is read back."""

import csv
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from qdgs_jax.config import Config
from qdgs_jax.errors import QDGSError
from qdgs_jax.problem import load_problem
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
    assert summary["evaluations"] == 8 * 2 * (1 + 3)
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


def test_unfinished_and_damaged_runs_are_not_read(tmp_path: Path, config: Config) -> None:
    with pytest.raises(QDGSError, match="holds no finished run"):
        load_run(tmp_path)
    runs.sample(config, tmp_path / "run")
    (tmp_path / "run/archive.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(QDGSError, match="is damaged"):
        load_run(tmp_path / "run")
