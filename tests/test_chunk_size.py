"""`search.chunk_size = "auto"` fits the memory of a device."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from qdgs_jax import automatic
from qdgs_jax.config import Config, save_config
from qdgs_jax.problem import load_problem
from qdgs_jax.runs import sampling
from qdgs_jax.runs.results import load_run
from qdgs_jax.scoring import ImageScore

pytestmark = pytest.mark.usefixtures("toy_models")


def with_auto(config: Config, **search: Any) -> Config:
    options = dataclasses.replace(config.search, chunk_size="auto", **search)
    return dataclasses.replace(config, search=options)


@pytest.mark.parametrize("fixed", [0, 100, 5000])
@pytest.mark.parametrize("memory", [1, 200, 220, 900, 4_000, 10_400, 10**6])
def test_the_largest_power_of_two_below_half_of_the_memory(
    monkeypatch: pytest.MonkeyPatch, toy_config: Config, fixed: int, memory: int
) -> None:
    def scored(config: Config) -> ImageScore:
        return ImageScore(lambda *_: None, 2, config.search.chunk, lambda _: ())  # type: ignore

    monkeypatch.setattr(automatic, "_temporaries", lambda score, *_: fixed + 10 * score.chunk_size)
    monkeypatch.setattr(automatic, "device_memory", lambda: memory)
    found = automatic.with_chunk_size(with_auto(toy_config), scored, {}, 5).search.chunk_size
    fitting = [2**n for n in range(9) if fixed + 10 * 2**n < memory / 2]
    assert found == max(fitting, default=1)


def test_compiled_programs_tell_what_they_take(toy_config: Config) -> None:
    measure = dataclasses.replace(toy_config.measures[1], range=(0, 1))
    made = load_problem(dataclasses.replace(toy_config, measures=(measure,)))
    taken = automatic._temporaries(made.score, made.params, 5)
    assert taken > 64 * 4 * 4 * 3 * 4 / 2  # of 64 images; some of it may be shared


@pytest.mark.parametrize("recorded", [32, None])
def test_a_run_resumes_with_its_number_whatever_the_device(
    toy_config: Config, tmp_path: Path, recorded: int | None
) -> None:
    if recorded:
        search = dataclasses.replace(toy_config.search, chunk_size=recorded)
        save_config(tmp_path / "config.toml", dataclasses.replace(toy_config, search=search))
    found = sampling._with_recorded_chunk_size(with_auto(toy_config), tmp_path)
    assert found.search.chunk_size == (recorded or "auto")
    given = sampling._with_recorded_chunk_size(toy_config, tmp_path)
    assert given == toy_config


@pytest.mark.slow
def test_a_run_records_its_number(
    monkeypatch: pytest.MonkeyPatch, toy_config: Config, tmp_path: Path
) -> None:
    sampling.sample(with_auto(toy_config), tmp_path)
    assert load_run(tmp_path).config.search.chunk_size == 256
    monkeypatch.setattr(automatic, "_temporaries", lambda *_: 10**20)  # another device
    sampling.sample(with_auto(toy_config, generations=10), tmp_path, resume=True)
    assert load_run(tmp_path).config.search.chunk_size == 256
