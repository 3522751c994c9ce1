"""Checkpoints: what was saved is restored bit for bit, or its damage is noticed."""

import dataclasses
import functools
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from qdgs_jax import search
from qdgs_jax.config import Config
from qdgs_jax.errors import CheckpointError
from qdgs_jax.problem import load_problem
from qdgs_jax.runs import checkpoints
from qdgs_jax.search import SearchState


@pytest.fixture
def state(config: Config) -> SearchState:
    """A state as a search has it at first, of generation 4."""
    measures = tuple(dataclasses.replace(each, range=(-1, 1)) for each in config.measures)
    problem = load_problem(dataclasses.replace(config, measures=measures))
    like = jax.eval_shape(
        functools.partial(search.init, problem.search), problem.params, *problem.initial_latents()
    )
    return at(4, jax.tree.map(_filled, like))


def _filled(like: jax.ShapeDtypeStruct) -> jax.Array:
    if jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.key(7)
    numbers = np.random.default_rng(0).integers(0, 100, like.shape).astype(like.dtype)
    return jax.device_put(numbers / 2 if like.dtype == np.float32 else numbers)


def at(generation: int, state: SearchState) -> SearchState:
    return state.replace(generation=jax.device_put(np.int32(generation)))


def assert_equal(a: SearchState | None, b: SearchState) -> None:
    assert a is not None
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert left.dtype == right.dtype
        assert (left == right).all()


def test_the_newest_is_restored_and_two_are_kept(tmp_path: Path, state: SearchState) -> None:
    folder = tmp_path / "checkpoints"
    assert checkpoints.restore(folder, state) is None
    for generation in (2, 10, 9, 100):
        checkpoints.save(folder, at(generation, state))
    assert sorted(path.name for path in folder.iterdir()) == ["10", "100"]
    assert_equal(checkpoints.restore(folder, state), at(100, state))


def test_what_else_is_there_does_not_count(tmp_path: Path, state: SearchState) -> None:
    checkpoints.save(tmp_path, state)
    for name in ("notes", "999", ".ipynb_checkpoints", "4 (copy)", "-1", "4.damaged"):
        (tmp_path / name).mkdir()
    for name in ("007", "٣", "9" * 40):
        shutil.copytree(tmp_path / "4", tmp_path / name)
    os.mkfifo(tmp_path / "997")
    (tmp_path / "996").symlink_to(tmp_path / "4")
    assert checkpoints.generations(tmp_path) == [4]
    assert_equal(checkpoints.restore(tmp_path, state), state)


def test_any_damage_is_noticed_and_the_one_before_serves(
    tmp_path: Path, state: SearchState
) -> None:
    checkpoints.save(tmp_path, at(2, state))
    checkpoints.save(tmp_path, state)
    whole = Path(shutil.move(tmp_path / "4", tmp_path / "whole"))
    paths = [path for path in sorted(whole.rglob("*")) if path.is_file()]
    assert len(paths) > 3
    for path in paths:
        name, content = path.relative_to(whole), path.read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 4
        for damaged in (bytes(flipped), content[:-1], content + b"x"):
            shutil.copytree(whole, tmp_path / "4")
            (tmp_path / "4" / name).write_bytes(damaged)
            with pytest.warns(UserWarning, match=r"4 is damaged \(.* from generation 2\.$"):
                assert_equal(checkpoints.restore(tmp_path, state), at(2, state))
            assert (tmp_path / "4.damaged" / name).read_bytes() == damaged
            assert not (tmp_path / "4").exists()
    shutil.move(whole, tmp_path / "4")
    assert_equal(checkpoints.restore(tmp_path, state), state)


def test_a_checkpoint_that_was_not_completed_is_none(tmp_path: Path, state: SearchState) -> None:
    checkpoints.save(tmp_path, at(2, state))
    checkpoints.save(tmp_path, state)
    (tmp_path / "4/sha256").unlink()
    (tmp_path / "6.orbax-checkpoint-tmp-1").mkdir()
    assert_equal(checkpoints.restore(tmp_path, state), at(2, state))
    checkpoints.save(tmp_path, state)
    assert checkpoints.generations(tmp_path) == [2, 4]
    assert len(list(tmp_path.iterdir())) == 2


def test_checkpoints_of_something_else_are_not_read(tmp_path: Path, state: SearchState) -> None:
    checkpoints.save(tmp_path, state)
    (tmp_path / "4").rename(tmp_path / "6")
    with pytest.raises(CheckpointError, match=r"No checkpoint .* \(it is of generation 4\)"):
        checkpoints.restore(tmp_path, state)
    (tmp_path / "6").rename(tmp_path / "4")
    wider = state.replace(memory=jax.device_put(np.zeros((1000, 1000), np.float32)))
    with pytest.raises(CheckpointError, match="No checkpoint"):
        checkpoints.restore(tmp_path, wider)


def test_a_failed_save_leaves_the_one_before(
    tmp_path: Path, state: SearchState, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.save(tmp_path, state)

    def fail(*_: object, **__: object) -> None:
        raise ValueError("Error writing local file: [OS error 28: ENOSPC No space left on device]")

    monkeypatch.setattr(ocp.StandardCheckpointer, "save", fail)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(tmp_path, at(6, state))
    assert [path.name for path in tmp_path.iterdir()] == ["4"]
