"""Runs: one folder, one result, whatever interrupts it. With a toy generator and encoder."""

import csv
import dataclasses
import errno
import functools
import json
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from qdgs_jax import encoders, files, generators, search
from qdgs_jax.config import Config, GeneratorConfig, parse_config
from qdgs_jax.encoders import Encoder
from qdgs_jax.errors import ConfigError, QDGSError
from qdgs_jax.generators import Generator
from qdgs_jax.models import stylegan2
from qdgs_jax.problem import load_problem
from qdgs_jax.runs import sampling as runs

SIDE = 4
load_generator = generators.load  # the real one


def toy_images(params: jax.Array, latents: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(latents @ params).reshape(-1, SIDE, SIDE, 3)


def toy_embeddings(params: jax.Array, values: jax.Array) -> jax.Array:
    embeddings = values.reshape(len(values), -1) @ params
    return embeddings / jnp.linalg.norm(embeddings, axis=-1, keepdims=True)


@pytest.fixture(autouse=True)
def toy_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """A linear generator of 4 x 4 images and an encoder that reads text by its length."""
    pixels, width = SIDE * SIDE * 3, 8
    image_weights, text_weights, render_weights = (
        jax.random.normal(key, shape)
        for key, shape in zip(
            jax.random.split(jax.random.key(1), 3),
            [(pixels, width), (3, width), (5, pixels)],
            strict=True,
        )
    )
    generator = Generator(
        name="toy",
        sha256="0" * 64,
        latent_size=5,
        image_size=SIDE,
        sample=lambda key, n: jax.random.normal(key, (n, 5)),
        render=toy_images,
    )
    encoder = Encoder(
        name="toy",
        sha256="1" * 64,
        image_size=SIDE,
        embed_images=lambda params, images: toy_embeddings(params["image"], images - 0.5),
        embed_tokens=lambda params, tokens: toy_embeddings(params["text"], tokens),
        tokenize=lambda texts: jnp.array([[len(t), ord(t[0]) % 9, 1.0] for t in texts]),
        unknown_words=lambda text: [],
    )
    weights = {"image": image_weights, "text": text_weights}
    monkeypatch.setattr(generators, "load", lambda model, **_: (generator, render_weights))
    monkeypatch.setattr(encoders, "load", lambda model, precision: (encoder, weights))


@pytest.fixture
def config() -> Config:
    return parse_config(
        {
            "objective": {"positive": "good", "negative": "bad thing"},
            "measures": [
                {"name": "a", "low": "one", "high": "twenty two", "cells": 6},
                {"name": "b", "function": "brightness", "cells": 5},
            ],
            "search": {
                "generations": 8, "emitters": 2, "batch_size": 3, "initial_samples": 16,
                "threshold_min": -100,
            },
            "run": {"log_every": 2, "checkpoint_every": 4},
        },
        source="test",
    )  # fmt: skip


def archive_of(out: Path) -> bytes:
    return (out / "archive.safetensors").read_bytes()


def test_a_run_leaves_what_it_promises(tmp_path: Path, config: Config) -> None:
    rows: list[runs.Row] = []
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
    run = runs.load_run(tmp_path / "run")
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


def test_auto_ranges_are_recorded_and_hold_the_random_samples(
    tmp_path: Path, config: Config
) -> None:
    runs.sample(config, tmp_path / "run")
    problem = load_problem(config)
    assert runs.load_run(tmp_path / "run").config == problem.config
    _, latents = problem.initial_latents()
    measures = problem.score(problem.params, jax.random.key(0), latents, ())[0].measures
    low, high = zip(*(measure.range for measure in problem.config.measures), strict=True)
    assert ((measures > jnp.array(low)) & (measures < jnp.array(high))).mean() > 0.95


def test_same_seed_same_archive_other_seed_another(tmp_path: Path, config: Config) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        runs.sample(dataclasses.replace(config, seed=seed), tmp_path / name)
    assert archive_of(tmp_path / "a") == archive_of(tmp_path / "b")
    assert archive_of(tmp_path / "a") != archive_of(tmp_path / "c")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_at_a_checkpoint_and_resuming_changes_nothing(
    tmp_path: Path, config: Config, number: signal.Signals
) -> None:
    runs.sample(config, tmp_path / "whole")

    def interrupt(row: runs.Row) -> None:
        if row["generation"] == 6:  # not a generation that saves a checkpoint of itself
            os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    with pytest.raises(QDGSError, match="Stopped at generation 6 of 8: run the same command with"):
        runs.sample(config, tmp_path / "parts", report=interrupt)
    assert signal.getsignal(number) is handler
    assert not (tmp_path / "parts/summary.json").exists()
    rows: list[runs.Row] = []
    runs.sample(config, tmp_path / "parts", resume=True, report=rows.append)
    assert [row["generation"] for row in rows] == [8]
    assert archive_of(tmp_path / "whole") == archive_of(tmp_path / "parts")
    with open(tmp_path / "parts/metrics.csv", newline="") as file:
        assert [row["generation"] for row in csv.DictReader(file)] == ["2", "4", "6", "8"]


def test_styles_are_searched_with_a_memory_that_a_checkpoint_keeps(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generators, "load", load_generator)
    network = stylegan2.StyleGAN2Config(
        latent_size=5, style_size=6, mapping_sizes=(6,), channels=(8,)
    )
    stylegan2.save(tmp_path / "model", network, stylegan2.init(network, jax.random.key(0)))
    objective = dataclasses.replace(config.objective, regularisation=0.5, uniqueness=0.2)
    config = dataclasses.replace(
        config, generator=GeneratorConfig(str(tmp_path / "model")), objective=objective
    )
    runs.sample(config, tmp_path / "whole")
    assert runs.load_run(tmp_path / "whole").elites.latents.shape[1] == 6 * 2

    def stop(row: runs.Row) -> None:
        if row["generation"] == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(QDGSError, match="Stopped at generation 4 of 8"):
        runs.sample(config, tmp_path / "parts", report=stop)
    runs.sample(config, tmp_path / "parts", resume=True)
    assert archive_of(tmp_path / "whole") == archive_of(tmp_path / "parts")
    memories = []
    for name in ("whole", "parts"):
        with ocp.CheckpointManager(tmp_path / name / "checkpoints") as checkpoints:
            memories.append(checkpoints.restore(8, args=ocp.args.StandardRestore())["memory"])
    assert memories[0]["count"] > 2
    np.testing.assert_array_equal(memories[0]["embeddings"], memories[1]["embeddings"])


def test_a_crash_between_checkpoints_loses_only_what_came_after(
    tmp_path: Path, config: Config
) -> None:
    runs.sample(config, tmp_path / "whole")

    class Crash(BaseException):
        pass

    def crash(row: runs.Row) -> None:
        if row["generation"] == 6:
            raise Crash

    with pytest.raises(Crash):
        runs.sample(config, tmp_path / "parts", report=crash)
    runs.sample(config, tmp_path / "parts", resume=True)
    assert archive_of(tmp_path / "whole") == archive_of(tmp_path / "parts")


def test_resuming_without_a_checkpoint_begins_anew(tmp_path: Path, config: Config) -> None:
    with pytest.raises(KeyError, match="stop"):
        runs.sample(config, tmp_path / "run", report=lambda row: {}["stop"])
    runs.sample(config, tmp_path / "run", resume=True)
    runs.sample(config, tmp_path / "other")
    assert archive_of(tmp_path / "run") == archive_of(tmp_path / "other")


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path, config: Config) -> None:
    runs.sample(config, tmp_path / "run")
    before = archive_of(tmp_path / "run")
    summary = runs.sample(config, tmp_path / "run", resume=True)
    assert archive_of(tmp_path / "run") == before
    assert summary["generations"] == 8


def test_foreign_folders_are_refused(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    runs.sample(config, out)
    with pytest.raises(ConfigError, match="already holds a run: pass --resume"):
        runs.sample(config, out)
    with pytest.raises(ConfigError, match=r"another config \(seed was 0, now 7\)"):
        runs.sample(dataclasses.replace(config, seed=7), out, resume=True)

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.png").touch()
    with pytest.raises(ConfigError, match="holds files that are no run's"):
        runs.sample(config, tmp_path / "photos")
    with pytest.raises(ConfigError, match="is not a folder"):
        runs.sample(config, tmp_path / "photos/cat.png")

    generator, weights = generators.load("toy")
    other = dataclasses.replace(generator, sha256="f" * 64)
    monkeypatch.setattr(generators, "load", lambda model, **_: (other, weights))
    with pytest.raises(ConfigError, match="other weights of the generator toy"):
        runs.sample(config, out, resume=True)


def test_a_damaged_checkpoint_is_told(tmp_path: Path, config: Config) -> None:
    runs.sample(config, tmp_path / "run")
    for path in (tmp_path / "run/checkpoints/8").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(QDGSError, match=r"The checkpoint of generation 8 .* is damaged"):
        runs.sample(config, tmp_path / "run", resume=True)


def test_unfinished_and_damaged_runs_are_not_read(tmp_path: Path, config: Config) -> None:
    with pytest.raises(QDGSError, match="holds no finished run"):
        runs.load_run(tmp_path)
    runs.sample(config, tmp_path / "run")
    (tmp_path / "run/archive.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(QDGSError, match="is damaged"):
        runs.load_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("code", "sentence"),
    [(errno.ENOSPC, "No space is left for .*: free some"), (errno.EACCES, "is not writable")],
)
def test_refusals_of_the_file_system_are_told(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch, code: int, sentence: str
) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "write", refuse)
    with pytest.raises(QDGSError, match=sentence):
        runs.sample(config, tmp_path / "run")


def test_too_few_initial_samples(tmp_path: Path, config: Config) -> None:
    few = dataclasses.replace(config.search, initial_samples=1)
    with pytest.raises(ConfigError, match=r"initial_samples \(1\) must be at least"):
        runs.sample(dataclasses.replace(config, search=few), tmp_path / "run")


def test_a_run_compiles_its_search_once(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = []
    step = search.step
    monkeypatch.setattr(search, "step", lambda *a: traces.append(1) or step(*a))
    runs.sample(config, tmp_path / "run")
    assert len(traces) == 1


def test_weights_are_arguments_not_constants(config: Config) -> None:
    problem = load_problem(config)
    state = jax.eval_shape(
        functools.partial(search.init, problem.search), problem.params, *problem.initial_latents()
    )
    program = jax.make_jaxpr(lambda params, state: search.run(problem.search, params, state, 2))
    constants = program(problem.params, state).consts
    smallest_weight = min(leaf.size for leaf in jax.tree.leaves(problem.params))
    assert all(np.size(constant) < smallest_weight for constant in constants)


@pytest.mark.parametrize("algorithm", ["map_elites", "cma_mae"])
def test_other_algorithms_run_as_well(tmp_path: Path, config: Config, algorithm: str) -> None:
    other = dataclasses.replace(config.search, algorithm=algorithm)
    summary = runs.sample(dataclasses.replace(config, search=other), tmp_path / "run")
    assert summary["evaluations"] == 8 * 2 * 3
    assert summary["elites"] > 0
