"""Checkpoints: what was saved is restored bit for bit, or its damage is noticed."""

import dataclasses
import functools
import os
import warnings
import zipfile
from pathlib import Path

import jax
import numpy as np
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
    assert sorted(path.name for path in folder.iterdir()) == ["10.npz", "100.npz"]
    assert_equal(checkpoints.restore(folder, state), at(100, state))


def test_what_else_is_there_does_not_count(tmp_path: Path, state: SearchState) -> None:
    checkpoints.save(tmp_path, state)
    for name in ("notes", "999", "5", "998.npz", ".ipynb_checkpoints", "4 (copy).npz", "-1.npz"):
        (tmp_path / name).mkdir()
    for name in ("4.npz.damaged", ".6.npz.partial", "007.npz", "٣.npz", "9" * 40 + ".npz"):
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "997.npz")
    (tmp_path / "996.npz").symlink_to(tmp_path / "4.npz")
    assert checkpoints.generations(tmp_path) == [4]
    assert_equal(checkpoints.restore(tmp_path, state), state)


def damages(content: bytes) -> list[bytes]:
    """Flipped bits all over a file, and lost ends."""
    random = np.random.default_rng(1)
    found = [content[:size] for size in (0, 1, 30, len(content) // 2, len(content) - 1)]
    for place in random.integers(len(content), size=120):
        flipped = bytearray(content)
        flipped[place] ^= 1 << random.integers(8)
        found.append(bytes(flipped))
    return [*found, b"\0" * len(content)]


def test_any_damage_is_noticed_and_the_one_before_serves(
    tmp_path: Path, state: SearchState
) -> None:
    checkpoints.save(tmp_path, at(2, state))
    checkpoints.save(tmp_path, state)
    newest = tmp_path / "4.npz"
    content = newest.read_bytes()
    noticed = 0
    for damaged in damages(content):
        newest.write_bytes(damaged)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            restored = checkpoints.restore(tmp_path, state)
        assert_equal(restored, at(2, state) if told else state)
        if told:
            noticed += 1
            assert "4.npz is damaged (" in str(told[0].message)
            assert "continues from generation 2" in str(told[0].message)
            assert (tmp_path / "4.npz.damaged").read_bytes() == damaged
            assert not newest.exists()
    assert noticed > 60  # the others hit what no reader needs, such as dates


def test_checkpoints_of_something_else_are_not_read(tmp_path: Path, state: SearchState) -> None:
    checkpoints.save(tmp_path, state)
    (tmp_path / "4.npz").rename(tmp_path / "6.npz")
    with pytest.raises(CheckpointError, match=r"No checkpoint .* \(it is of generation 4\)"):
        checkpoints.restore(tmp_path, state)
    (tmp_path / "6.npz").rename(tmp_path / "4.npz")
    wider = state.replace(memory=np.zeros((1000, 1000), np.float32))
    with pytest.raises(CheckpointError, match="memory"):
        checkpoints.restore(tmp_path, wider)
    with zipfile.ZipFile(tmp_path / "4.npz", "a") as archive:
        archive.writestr("bomb.npy", bytes(10**8))
    with pytest.raises(CheckpointError, match=r"more than the \d+ bytes"):
        checkpoints.restore(tmp_path, state)


def test_a_failed_save_leaves_the_one_before(
    tmp_path: Path, state: SearchState, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.save(tmp_path, state)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(tmp_path, at(6, state))
    assert [path.name for path in tmp_path.iterdir()] == ["4.npz"]
