"""Checkpoints: what was saved is restored bit for bit, or its damage is noticed."""

import dataclasses
import functools
import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax import search
from qdgs_jax.config import Config
from qdgs_jax.errors import CheckpointError
from qdgs_jax.problem import load_problem
from qdgs_jax.runs import checkpoints, orbax_files
from qdgs_jax.search import SearchState


@pytest.fixture
def state(config: Config) -> SearchState:
    """A state as a search has it at first, of generation 4, with a memory as large as a file."""
    measures = tuple(dataclasses.replace(each, range=(-1, 1)) for each in config.measures)
    problem = load_problem(dataclasses.replace(config, measures=measures))
    like = jax.eval_shape(
        functools.partial(search.init, problem.search), problem.params, *problem.initial_latents()
    )
    memory = jax.random.normal(jax.random.key(0), (40, 500))
    return at(4, jax.tree.map(_filled, like)).replace(memory=memory)


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


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_is_restored_and_two_are_kept(tmp_path: Path, state: SearchState) -> None:
    folder = tmp_path / "checkpoints"
    assert checkpoints.restore(folder, state) is None
    with checkpoints.saving(folder) as save:
        for generation in (2, 10, 9, 100):
            save(at(generation, state))
    assert names(folder) == ["10", "100"]
    assert_equal(checkpoints.restore(folder, state), at(100, state))
    checkpoints.save(folder, at(101, state))
    assert names(folder) == ["100", "101"]


def test_a_description_of_the_state_suffices(tmp_path: Path, state: SearchState) -> None:
    checkpoints.save(tmp_path, state)
    assert_equal(checkpoints.restore(tmp_path, jax.eval_shape(lambda: state)), state)


def test_arrays_of_all_types_and_shapes(tmp_path: Path, state: SearchState) -> None:
    memory = {
        "bool": jnp.array([True, False]), "half": jnp.ones((2, 3), jnp.bfloat16),
        "small": jnp.arange(5, dtype=jnp.int8), "none": jnp.zeros((0, 4)), "nan": jnp.array(np.nan),
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), 3),
    }  # fmt: skip
    state = state.replace(memory=memory)
    checkpoints.save(tmp_path, state)
    restored = checkpoints.restore(tmp_path, state)
    assert restored is not None
    for name, leaf in memory.items():
        read = restored.memory[name]
        assert read.dtype == leaf.dtype
        assert read.shape == leaf.shape
        if name == "keys":
            read, leaf = jax.random.key_data(read), jax.random.key_data(leaf)
        assert np.asarray(read).tobytes() == np.asarray(leaf).tobytes()


def test_a_state_may_be_donated_while_it_is_written(tmp_path: Path, state: SearchState) -> None:
    change = jax.jit(lambda state: jax.tree.map(_changed, state), donate_argnums=0)
    wide = state.replace(memory=jnp.arange(4_000_000.0))
    kept = jax.tree.map(np.asarray, wide.replace(key=jax.random.key_data(wide.key)))
    with checkpoints.saving(tmp_path) as save:
        save(wide)
        jax.block_until_ready(change(wide))
    restored = checkpoints.restore(tmp_path, state.replace(memory=jnp.zeros(4_000_000)))
    assert restored is not None
    assert_equal(restored.replace(key=jax.random.key_data(restored.key)), kept)


def _changed(leaf: jax.Array) -> jax.Array:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    return ~leaf if leaf.dtype == bool else leaf + 1


def test_an_old_one_stays_until_the_new_one_is_complete(
    tmp_path: Path, state: SearchState, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.save(tmp_path, at(2, state))
    checkpoints.save(tmp_path, state)
    with checkpoints.saving(tmp_path) as save:
        save(at(6, state))
        assert {"2", "4"} <= set(names(tmp_path))
    assert names(tmp_path) == ["4", "6"]


def test_what_else_is_there_does_not_count(tmp_path: Path, state: SearchState) -> None:
    checkpoints.save(tmp_path, state)
    for name in ("notes", ".ipynb_checkpoints", "4 (copy)", "-1", "4.damaged", "007", "\u0663"):
        (tmp_path / name).mkdir()
    (tmp_path / ("9" * 40)).mkdir()
    (tmp_path / "998").touch()
    os.mkfifo(tmp_path / "997")
    (tmp_path / "996").symlink_to(tmp_path / "4")
    assert checkpoints.numbers(tmp_path) == [4]
    assert_equal(checkpoints.restore(tmp_path, state), state)


def test_what_a_killed_process_left_is_removed(tmp_path: Path, state: SearchState) -> None:
    checkpoints.save(tmp_path, state)
    left = tmp_path / "6.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "4", left)
    (tmp_path / "7.orbax-checkpoint-tmp").symlink_to(tmp_path / "4")
    assert_equal(checkpoints.restore(tmp_path, state), state)
    checkpoints.save(tmp_path, at(6, state))
    assert names(tmp_path) == ["4", "6", "7.orbax-checkpoint-tmp"]


def damages(content: bytes, count: int) -> list[bytes]:
    """Flipped bits all over a file, and lost ends."""
    random = np.random.default_rng(1)
    found = [content[:size] for size in (0, len(content) // 2, len(content) - 1)]
    for place in random.integers(len(content), size=count):
        flipped = bytearray(content)
        flipped[place] ^= 1 << random.integers(8)
        found.append(bytes(flipped))
    return [*found, b"\0" * len(content)]


def damage_noticed(folder: Path, state: SearchState) -> bool:
    """Restores; either nothing has changed, or generation 2 serves and 4 is set aside."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        restored = checkpoints.restore(folder, state)
    assert_equal(restored, at(2, state) if told else state)
    if told:
        assert "4 is damaged (" in str(told[0].message)
        assert "continues from generation 2" in str(told[0].message)
        assert (folder / "4.damaged").exists()
        assert not (folder / "4").exists()
    return bool(told)


@pytest.fixture
def two(tmp_path: Path, state: SearchState) -> Path:
    """Folder of the checkpoints 2 and 4, with a copy of 4 beside it."""
    folder = tmp_path / "checkpoints"
    checkpoints.save(folder, at(2, state))
    checkpoints.save(folder, state)
    shutil.copytree(folder / "4", tmp_path / "4")
    return folder


def anew(folder: Path) -> Path:
    """The checkpoint 4 as it was."""
    shutil.rmtree(folder / "4", ignore_errors=True)
    return shutil.copytree(folder.parent / "4", folder / "4")


def largest(folder: Path) -> list[Path]:
    """Paths of all files, relative to the folder, the largest first."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    found.sort(key=lambda path: (-path.stat().st_size, path))
    return [path.relative_to(folder) for path in found]


def test_any_damage_is_noticed_and_the_one_before_serves(two: Path, state: SearchState) -> None:
    noticed = 0
    for rank, name in enumerate(largest(two / "4")):
        for damaged in damages((two.parent / "4" / name).read_bytes(), 3 if rank else 60):
            (anew(two) / name).write_bytes(damaged)
            noticed += damage_noticed(two, state)
    assert noticed > 60  # the others hit what no reader needs, such as dates


@pytest.mark.parametrize("part", ["all", "manifest.ocdbt", "d", "ocdbt.process_0"])
def test_missing_parts_are_noticed(two: Path, state: SearchState, part: str) -> None:
    path = two / "4" if part == "all" else two / "4" / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if part == "all":
        path.mkdir()
    assert damage_noticed(two, state)


def test_a_number_that_changed_is_noticed(
    two: Path, state: SearchState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Orbax and its compression do not see: all is well-formed, and one number is another."""
    read = orbax_files.read

    def changed(path: Path, wanted: dict[str, Any]) -> dict[str, Any]:
        arrays = read(path, wanted)
        if path.name == "4":
            bits = jax.lax.bitcast_convert_type(arrays["elites.latents"], jnp.uint32)
            bits = bits.at[3, 1].add(1)
            arrays["elites.latents"] = jax.lax.bitcast_convert_type(bits, jnp.float32)
        return arrays

    monkeypatch.setattr(orbax_files, "read", changed)
    with pytest.warns(UserWarning, match=r"'elites.latents' has changed since it was saved"):
        assert_equal(checkpoints.restore(two, state), at(2, state))


def test_checkpoints_of_something_else_are_not_read(tmp_path: Path, state: SearchState) -> None:
    checkpoints.save(tmp_path, state)
    (tmp_path / "4").rename(tmp_path / "6")
    with pytest.raises(CheckpointError, match=r"No checkpoint .* \(it is of generation 4\)"):
        checkpoints.restore(tmp_path, state)
    (tmp_path / "6").rename(tmp_path / "4")
    wider = state.replace(memory=np.zeros((1000, 1000), np.float32))
    with pytest.raises(CheckpointError, match="memory"):
        checkpoints.restore(tmp_path, jax.device_put(wider))
    latents = jnp.zeros((9, 2)), jnp.zeros(state.elites.latents.shape, jnp.int32)
    for other in latents:
        like = state.replace(elites=state.elites.replace(latents=other))
        with pytest.raises(CheckpointError, match=r"'elites.latents' is float32\[\d+, 5\], not"):
            checkpoints.restore(tmp_path, like)


def bomb(folder: Path) -> None:
    with open(folder / "d/bomb", "wb") as file:
        file.truncate(10**8)


def link(folder: Path) -> None:
    shutil.move(folder / "d", folder.parent.parent / "elsewhere")
    (folder / "d").symlink_to(folder.parent.parent / "elsewhere")


def pipe(folder: Path) -> None:
    (folder / "manifest.ocdbt").unlink()
    os.mkfifo(folder / "manifest.ocdbt")


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (bomb, r"more than the \d+ bytes of such a state"),
        (link, "'d' is neither a file nor a folder"),
        (pipe, "'manifest.ocdbt' is neither a file nor a folder"),
    ],
)
def test_hostile_folders_are_not_read(
    two: Path, state: SearchState, attack: Any, reason: str
) -> None:
    attack(two / "4")
    with pytest.warns(UserWarning, match=reason):
        assert_equal(checkpoints.restore(two, state), at(2, state))


@pytest.mark.parametrize("room", [0, 100, 400])
def test_a_failed_save_leaves_the_one_before(
    tmp_path: Path, state: SearchState, room: int, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoints.save(tmp_path, state)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with (  # noqa: PT012
            pytest.raises(OSError, match="File too large"),
            checkpoints.saving(tmp_path) as save,
        ):
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
            save(at(6, state))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["4"]
    assert_equal(checkpoints.restore(tmp_path, state), state)
    assert capfd.readouterr() == ("", "")


def test_the_next_save_raises_what_failed(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, state: SearchState
) -> None:
    checkpoints.save(
        tmp_path_factory.mktemp("before"), state
    )  # compiles, which writes to the disk too
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(KeyError, match="after"), checkpoints.saving(tmp_path) as save:  # noqa: PT012
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
            save(state)
            with pytest.raises(OSError, match="File too large"):
                save(at(6, state))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        save(at(8, state))
        raise KeyError("after")
    assert names(tmp_path) == ["8"]


def test_what_is_in_the_way_is_kept(tmp_path: Path, state: SearchState) -> None:
    (tmp_path / "4").write_text("mine")
    with pytest.raises(FileExistsError):
        checkpoints.save(tmp_path, state)
    assert (tmp_path / "4").read_text() == "mine"


def test_a_folder_that_vanished_is_not_made_again(tmp_path: Path, state: SearchState) -> None:
    with pytest.raises(FileNotFoundError):
        checkpoints.save(tmp_path / "run/checkpoints", state)
    assert not names(tmp_path)


def test_no_handlers_are_left(tmp_path: Path, state: SearchState) -> None:
    before = [signal.getsignal(number) for number in signal.valid_signals()]
    checkpoints.save(tmp_path, state)
    checkpoints.restore(tmp_path, state)
    assert [signal.getsignal(number) for number in signal.valid_signals()] == before
    assert logging.getLogger("absl").filter(
        logging.makeLogRecord({"pathname": "/mine/app.py", "msg": "kept"})
    )


ELASTIC = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec as P

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", {devices})
if {processes} > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize("localhost:{port}", {processes}, {process})
from qdgs_jax.runs import checkpoints
from qdgs_jax.sharding import make_mesh

class State(struct.PyTreeNode):
    key: jax.Array
    generation: jax.Array
    latents: jax.Array
    rows: jax.Array

def described(mesh, columns=64):
    def of(spec):
        return None if mesh is None else NamedSharding(mesh, spec)
    return State(
        jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=of(P())),
        jax.ShapeDtypeStruct((), jnp.int32, sharding=of(P())),
        jax.ShapeDtypeStruct((30, columns), jnp.float32, sharding=of(P(None, "devices"))),
        jax.ShapeDtypeStruct((16, 3), jnp.float32, sharding=of(P("devices"))),
    )

def make(mesh, generation):
    def state():
        latents = jax.random.normal(jax.random.key(generation), (30, 64))
        rows = jax.random.normal(jax.random.key(1), (16, 3))
        return State(jax.random.key(5), jnp.int32(generation), latents, rows)
    if mesh is None:
        return jax.jit(state)()
    shardings = jax.tree.map(lambda leaf: leaf.sharding, described(mesh))
    return jax.jit(state, out_shardings=shardings)()

def check(mesh, generation):
    restored = checkpoints.restore(folder, described(mesh))
    for read, like, saved in zip(*map(jax.tree.leaves, (
        restored, described(mesh), make(mesh, generation))), strict=True):
        assert like.sharding is None or read.sharding == like.sharding, read.sharding
        for one, other in zip(read.addressable_shards, saved.addressable_shards, strict=True):
            assert (one.data == other.data).all()
    return restored

folder = Path({folder!r})
"""

TOPOLOGIES = """
meshes = [make_mesh(jax.devices()[:count]) for count in (8, 2, 1)] + [None]
for generation, saved in enumerate(meshes):
    checkpoints.save(folder, make(saved, generation))
    for mesh in meshes:
        check(mesh, generation)
"""


def run_elastic(code: str, folder: Path, *, devices: int, processes: int = 1) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    sizes = {"devices": devices, "processes": processes, "port": port, "folder": str(folder)}
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", ELASTIC.format(**sizes, process=number) + code],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(processes)
    ]
    told = [process.communicate(timeout=600)[0] for process in started]
    assert [process.returncode for process in started] == [0] * processes, told
    assert "orbax" not in "".join(told)


@pytest.mark.slow
def test_a_checkpoint_of_any_topology_is_restored_on_any_other(tmp_path: Path) -> None:
    run_elastic(TOPOLOGIES, tmp_path / "checkpoints", devices=8)


SEVERAL = """
mesh = make_mesh(jax.devices())
with checkpoints.saving(folder) as save:
    for generation in (1, 2, 3):
        save(make(mesh, generation))
if jax.process_index() == 0:
    assert checkpoints.numbers(folder) == [2, 3]
check(mesh, 3)
"""

DAMAGED = """
import warnings
mesh = make_mesh(jax.devices())
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    check(mesh, 2)
assert ["3 is damaged" in str(each.message) for each in told] == [True] * (jax.process_index() == 0)
"""


@pytest.mark.slow
def test_several_processes_share_a_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    run_elastic(SEVERAL, folder, devices=4, processes=2)
    assert names(folder) == ["2", "3"]
    for devices in (8, 2, 1):
        run_elastic("check(make_mesh(jax.devices()), 3)", folder, devices=devices)
    run_elastic("check(None, 3)", folder, devices=1)
    largest_file = folder / "3" / largest(folder / "3")[0]
    content = bytearray(largest_file.read_bytes())
    content[len(content) // 2] ^= 1
    largest_file.write_bytes(content)
    run_elastic(DAMAGED, folder, devices=4, processes=2)
    assert names(folder) == ["2", "3.damaged"]
    run_elastic("checkpoints.save(folder, make(make_mesh(jax.devices()), 4))", folder, devices=8)
    run_elastic("check(make_mesh(jax.devices()), 4)", folder, devices=4, processes=2)


KILLED = """
import itertools
with checkpoints.saving(folder) as save:
    for generation in itertools.count(1):
        save(make(None, generation))
        print(generation, flush=True)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_the_newest(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    sizes = {"devices": 1, "processes": 1, "port": 0, "folder": str(folder), "process": 0}
    for number in range(4):
        code = KILLED.replace("count(1)", f"count({100 * number + 1})")
        with subprocess.Popen(
            [sys.executable, "-c", ELASTIC.format(**sizes) + code], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout
            for _ in range(3 + number):
                process.stdout.readline()
            process.kill()
        newest = checkpoints.numbers(folder)[-1]
        assert newest > 100 * number
        run_elastic(f"check(None, {newest})", folder, devices=1)
