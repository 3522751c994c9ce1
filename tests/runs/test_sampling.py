"""Runs with a toy generator and encoder: interruptions do not change the result."""

import csv
import dataclasses
import errno
import functools
import gc
import json
import os
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from qdgs_jax import files, folders, generators, search
from qdgs_jax.config import Config, ExportConfig, GeneratorConfig, RunConfig, parse_config
from qdgs_jax.errors import ConfigError, QDGSError
from qdgs_jax.generators import Generator
from qdgs_jax.models import stylegan2
from qdgs_jax.problem import load_problem, make_archive
from qdgs_jax.runs import checkpoints, metrics
from qdgs_jax.runs import sampling as runs
from qdgs_jax.runs.metrics import Row
from qdgs_jax.runs.results import load_run

load_generator = generators.load  # the real one


def archive_of(out: Path) -> bytes:
    return (out / "archive.safetensors").read_bytes()


def test_a_run_leaves_no_programs_behind(tmp_path: Path, config: Config) -> None:
    def live() -> int:
        gc.collect()
        return len(jax.devices()[0].client.live_executables())

    runs.sample(config, tmp_path / "first")
    before = live()
    runs.sample(config, tmp_path / "second")
    assert live() == before


@pytest.mark.slow
def test_a_cvt_archive_from_a_config(tmp_path: Path, config: Config) -> None:
    values = {name: value for name, value in dataclasses.asdict(config).items()}
    values["archive"] = {"kind": "cvt", "cells": 7}
    values["measures"] = [{**measure, "cells": 50} for measure in values["measures"]]
    third = {"name": "c", "function": "warmth"}
    cvt = parse_config({**values, "measures": [*values["measures"], third]}, source="test")
    summary = runs.sample(cvt, tmp_path / "run")
    loaded = load_run(tmp_path / "run")
    assert loaded.config.archive == cvt.archive
    assert summary["coverage"] == pytest.approx(len(loaded.elites.index) / 7)
    centroids = make_archive(loaded.config).centres()
    nearest = ((loaded.elites.measures[:, None] - centroids) ** 2).sum(-1).argmin(1)
    np.testing.assert_array_equal(nearest, loaded.elites.index)
    for picture in ("heatmap.png", "elites.png"):
        with Image.open(tmp_path / "run" / picture) as image:
            image.verify()


def test_a_generator_of_ones_own_is_searched_and_exported(tmp_path: Path, config: Config) -> None:
    from qdgs_jax.datasets.export import export

    def render(params: jax.Array, latents: jax.Array) -> jax.Array:
        return jnp.broadcast_to(params + latents[:, None, None, :1] * 0, (len(latents), 8, 8, 3))

    def normal(key: jax.Array, n: int) -> jax.Array:
        return jax.random.normal(key, (n, 5))

    mine = Generator("mine", 5, 8, normal, render), jnp.float32(0.25)
    measures = tuple(dataclasses.replace(each, range=(-3, 3)) for each in config.measures)
    own = dataclasses.replace(config, measures=measures)
    summary = runs.sample(own, str(tmp_path / "run"), generator=mine)
    assert summary["generator"]["name"] == "mine"
    assert len(summary["generator"]["sha256"]) == 64
    export(tmp_path / "run", str(tmp_path / "out"), count=2, generator=mine)
    for path in (tmp_path / "out").glob("*/*.png"):
        with Image.open(path) as image:
            assert (np.asarray(image) == 64).all()
    with pytest.raises(QDGSError, match="other weights"):
        export(tmp_path / "run", tmp_path / "out", count=2)
    retrained = mine[0], jnp.float32(0.5)
    with pytest.raises(QDGSError, match="other weights"):
        export(tmp_path / "run", tmp_path / "out", count=2, generator=retrained)
    with pytest.raises(ConfigError, match="other weights of the generator mine"):
        runs.sample(own, tmp_path / "run", generator=retrained, resume=True)


def test_auto_ranges_are_recorded(tmp_path: Path, config: Config) -> None:
    runs.sample(config, tmp_path / "run")
    assert load_run(tmp_path / "run").config == load_problem(config).config


def test_same_seed_same_archive_other_seed_another(tmp_path: Path, config: Config) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        runs.sample(dataclasses.replace(config, seed=seed), tmp_path / name)
    assert archive_of(tmp_path / "a") == archive_of(tmp_path / "b")
    assert archive_of(tmp_path / "a") != archive_of(tmp_path / "c")


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_a_signal_stops_at_a_checkpoint_and_resuming_changes_nothing(
    tmp_path: Path, config: Config, number: signal.Signals
) -> None:
    runs.sample(config, tmp_path / "whole")

    def interrupt(row: Row) -> None:
        if row["generation"] == 6:  # a generation without a checkpoint of its own
            os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    with pytest.raises(QDGSError, match="Stopped at generation 6 of 8: run the same command with"):
        runs.sample(config, tmp_path / "parts", report=interrupt)
    assert signal.getsignal(number) is handler
    assert not (tmp_path / "parts/summary.json").exists()
    rows: list[Row] = []
    runs.sample(config, tmp_path / "parts", resume=True, report=rows.append)
    assert [row["generation"] for row in rows] == [8]
    assert archive_of(tmp_path / "whole") == archive_of(tmp_path / "parts")
    assert generations_of(tmp_path / "parts") == ["2", "4", "6", "8"]


@pytest.mark.slow
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
    assert load_run(tmp_path / "whole").elites.latents.shape[1] == 6 * 2

    def stop(row: Row) -> None:
        if row["generation"] == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(QDGSError, match="Stopped at generation 4 of 8"):
        runs.sample(config, tmp_path / "parts", report=stop)
    runs.sample(config, tmp_path / "parts", resume=True)
    assert archive_of(tmp_path / "whole") == archive_of(tmp_path / "parts")
    problem = load_problem(load_run(tmp_path / "whole").config)
    like = jax.eval_shape(
        functools.partial(search.init, problem.search), problem.params, *problem.initial_latents()
    )
    whole, parts = (
        checkpoints.restore(tmp_path / name / "checkpoints", like) for name in ("whole", "parts")
    )
    assert whole
    assert parts
    assert whole.memory.count > 2
    np.testing.assert_array_equal(whole.memory.embeddings, parts.memory.embeddings)


def test_a_crash_between_checkpoints_loses_only_what_came_after(
    tmp_path: Path, config: Config
) -> None:
    runs.sample(config, tmp_path / "whole")

    class Crash(BaseException):
        pass

    def crash(row: Row) -> None:
        if row["generation"] == 6:
            raise Crash

    with pytest.raises(Crash):
        runs.sample(config, tmp_path / "parts", report=crash)
    runs.sample(config, tmp_path / "parts", resume=True)
    assert archive_of(tmp_path / "whole") == archive_of(tmp_path / "parts")


@pytest.mark.slow
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


@pytest.fixture
def finished(tmp_path: Path, config: Config) -> Path:
    """A finished run whose results are to be written again."""
    runs.sample(config, tmp_path / "run")
    (tmp_path / "run/summary.json").unlink()
    return tmp_path / "run"


def test_a_damaged_checkpoint_costs_the_way_from_the_one_before(
    finished: Path, config: Config
) -> None:
    before, table = archive_of(finished), (finished / "metrics.csv").read_text()
    for path in (finished / "checkpoints/8").rglob("manifest.ocdbt"):
        path.write_bytes(b"")
    rows: list[Row] = []
    with pytest.warns(UserWarning, match=r"8 is damaged .* continues from generation 4"):
        runs.sample(config, finished, resume=True, report=rows.append)
    assert [row["generation"] for row in rows] == [6, 8]
    assert archive_of(finished) == before
    assert generations_of(finished) == ["2", "4", "6", "8"]
    assert len(table.splitlines()) == 5


def generations_of(out: Path) -> list[str]:
    with open(out / "metrics.csv", newline="") as file:
        return [row["generation"] for row in csv.DictReader(file)]


@pytest.mark.parametrize("content", [None, pytest.param(b"\0\xff", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["metrics.csv", "provenance.json"])
def test_lost_records_cost_a_warning(
    finished: Path, config: Config, name: str, content: bytes | None
) -> None:
    before = archive_of(finished)
    last = metrics.read(finished)[-1]
    (finished / name).unlink() if content is None else (finished / name).write_bytes(content)
    with pytest.warns(UserWarning, match=f"{name} is missing or damaged"):
        summary = runs.sample(config, finished, resume=True)
    assert archive_of(finished) == before
    assert summary["qd_score"] == pytest.approx(last["qd_score"])
    assert json.loads((finished / "provenance.json").read_text())["seed"] == 0
    assert generations_of(finished)[-1] == "8"


@pytest.mark.slow
def test_a_torn_last_line_of_metrics_is_written_again(finished: Path, config: Config) -> None:
    shutil.rmtree(finished / "checkpoints/8")
    with open(finished / "metrics.csv", "r+") as file:
        file.truncate(len(file.read()) - 30)
    runs.sample(config, finished, resume=True)
    assert generations_of(finished) == ["2", "4", "6", "8"]


@pytest.mark.slow
@pytest.mark.parametrize("log_every", [3, 12])
def test_a_finished_run_continues_to_more_generations(
    tmp_path: Path, config: Config, log_every: int
) -> None:
    def of(generations: int, log_every: int) -> Config:
        return dataclasses.replace(
            config,
            search=dataclasses.replace(config.search, generations=generations),
            run=RunConfig(log_every=log_every, checkpoint_every=4 * log_every),
            export=ExportConfig(count=log_every),
        )

    runs.sample(of(12, 4), tmp_path / "whole")
    runs.sample(of(8, 2), tmp_path / "parts")
    summary = runs.sample(of(12, log_every), tmp_path / "parts", resume=True)
    assert summary["generations"] == 12
    assert archive_of(tmp_path / "whole") == archive_of(tmp_path / "parts")
    assert load_run(tmp_path / "parts").config.export.count == log_every
    between = range(8 - 8 % log_every + log_every, 13, log_every)
    assert generations_of(tmp_path / "parts") == ["2", "4", "6", "8", *map(str, between)]

    with pytest.raises(ConfigError, match=r"searched 12 generations already: .* instead of 8"):
        runs.sample(of(8, 2), tmp_path / "parts", resume=True)
    assert load_run(tmp_path / "parts").config == load_problem(of(12, log_every)).config


@pytest.mark.parametrize("change", [{"sigma0": 0.4}, {"chunk_size": 8}, {"batch_size": 4}])
def test_what_changes_the_search_is_refused(
    tmp_path: Path, config: Config, change: dict[str, Any]
) -> None:
    runs.sample(config, tmp_path / "run")
    other = dataclasses.replace(config.search, generations=12, **change)
    with pytest.raises(ConfigError, match=rf"another config \(search.{next(iter(change))} was"):
        runs.sample(dataclasses.replace(config, search=other), tmp_path / "run", resume=True)
    assert (tmp_path / "run/summary.json").exists()


@pytest.mark.slow
def test_a_run_that_is_continued_is_not_finished_meanwhile(tmp_path: Path, config: Config) -> None:
    runs.sample(config, tmp_path / "run")
    longer = dataclasses.replace(config.search, generations=12)
    with pytest.raises(KeyError, match="stop"):
        runs.sample(
            dataclasses.replace(config, search=longer),
            tmp_path / "run",
            resume=True,
            report=lambda row: {}["stop"],
        )
    with pytest.raises(QDGSError, match="holds no finished run: finish it"):
        load_run(tmp_path / "run")


def test_a_folder_that_vanishes_is_told(tmp_path: Path, config: Config) -> None:
    with pytest.raises(QDGSError, match="run was removed while it was written: run the same"):
        runs.sample(config, tmp_path / "run", report=lambda row: shutil.rmtree(tmp_path / "run"))


def test_a_folder_in_use_is_left_alone(tmp_path: Path, config: Config) -> None:
    (tmp_path / "run").mkdir()
    with (
        folders.locked(tmp_path / "run"),
        pytest.raises(QDGSError, match="Another process is writing in"),
    ):
        runs.sample(config, tmp_path / "run")


def test_a_disk_that_fills_up_during_a_checkpoint_is_told(tmp_path: Path, config: Config) -> None:
    runs.sample(config, tmp_path / "whole")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(row: Row) -> None:  # as little room as a full disk has
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))

    try:
        with pytest.raises(QDGSError, match=r"No space is left for .*: free some, then run the"):
            runs.sample(config, tmp_path / "parts", report=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    runs.sample(config, tmp_path / "parts", resume=True)
    assert archive_of(tmp_path / "whole") == archive_of(tmp_path / "parts")


@pytest.mark.parametrize(
    ("code", "sentence"),
    [(errno.ENOSPC, "No space is left for .*: free some"), (errno.EACCES, "is not writable")],
)
def test_refusals_of_the_file_system_are_told(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch, code: int, sentence: str
) -> None:
    def refuse(path: Path, content: bytes, **_: bool) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "write", refuse)
    with pytest.raises(QDGSError, match=sentence):
        runs.sample(config, tmp_path / "run")


def test_a_run_compiles_its_search_once(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = []
    step = search.step
    monkeypatch.setattr(search, "step", lambda *a: traces.append(1) or step(*a))
    runs.sample(config, tmp_path / "run")
    assert len(traces) == 1


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["map_elites", "cma_mae"])
def test_other_algorithms_run_as_well(tmp_path: Path, config: Config, algorithm: str) -> None:
    annealed = {"threshold_min": -100} if algorithm == "cma_mae" else {"threshold_min": 0.0}
    other = dataclasses.replace(config.search, algorithm=algorithm, **annealed)
    summary = runs.sample(dataclasses.replace(config, search=other), tmp_path / "run")
    assert summary["evaluations"] == 16 + 8 * 2 * 3
    assert summary["elites"] > 0
