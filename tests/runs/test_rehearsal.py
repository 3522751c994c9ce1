"""A dry run: what it tells, and that it writes nothing."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from qdgs_jax.cli import run_command
from qdgs_jax.config import Config, save_config
from qdgs_jax.errors import ConfigError
from qdgs_jax.problem import Problem
from qdgs_jax.runs import rehearsal
from qdgs_jax.runs.rehearsal import Rehearsal
from qdgs_jax.runs.sampling import Programs, compile_programs


@pytest.fixture
def config(toy_config: Config) -> Config:
    """A search that compiles quickly."""
    search = dataclasses.replace(toy_config.search, algorithm="map_elites")
    return dataclasses.replace(toy_config, search=search, measures=toy_config.measures[1:])


def made_up(problem: Problem, generations: int) -> Programs:
    """In place of what takes long to compile."""
    assert generations == rehearsal.GENERATIONS
    return Programs(lambda: 0, lambda n: lambda state: (state + n, None), 1e-3, 10**6)  # type: ignore


@pytest.mark.parametrize(
    "programs", [made_up, pytest.param(compile_programs, marks=pytest.mark.slow)]
)
def test_a_dry_run_tells_and_writes_nothing(
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    programs: Any,
) -> None:
    monkeypatch.setattr(rehearsal, "compile_programs", programs)
    save_config(tmp_path / "toy.toml", config)
    monkeypatch.chdir(tmp_path)
    assert run_command(["sample", "--dry-run", "toy.toml", "--out", "run"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert config.measures[0].range == "auto"
    low, high = found["ranges"]["b"]
    assert 0 < low < 0.5 < high < 1  # of brightness
    assert found["threshold_min"] == -100
    assert found["evaluations"] == 2 * 3
    latents = 4 * 5 * (16 + 5)  # of first ones and of 5 cells, 5 numbers each
    assert latents < found["memory_state"] < found["memory_programs"] < found["memory_device"]
    for name in ("load", "compile", "start", "generation"):
        assert 0 < found[f"seconds_{name}"] < found["seconds_run"]
    assert [path.name for path in tmp_path.iterdir()] == ["toy.toml"]


def test_a_search_that_does_not_fit_is_not_run(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "compile_programs", made_up)
    monkeypatch.setattr(rehearsal, "device_memory", lambda: 1000)
    with pytest.raises(ConfigError, match=r"programs need \d+ MiB on each device, but a"):
        rehearsal.rehearse(config)


def test_the_seconds_of_a_run() -> None:
    figures = dict.fromkeys((f.name for f in dataclasses.fields(Rehearsal)), 0)
    made = Rehearsal(**{  # type: ignore[arg-type]
        **figures, "ranges": {"a": (0, 1)}, "device": "d", "evaluations": 50, "generations": 1000,
        "seconds_load": 10, "seconds_compile": 20, "seconds_start": 5, "seconds_generation": 4,
    })  # fmt: skip
    assert made.seconds_evaluation == 0.08
    assert made.seconds_run == 4035
    assert "the whole run of 1,000 generations: about 1:07:15" in str(made)
