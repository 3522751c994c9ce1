"""Searches over eight devices; the checks run in a process that has them."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from qdgs_jax import search as searches
from qdgs_jax import sharding
from qdgs_jax.archives import CVTArchive, GridArchive
from qdgs_jax.emitters.qdax import Repertoire
from qdgs_jax.errors import ConfigError
from qdgs_jax.jacobian import Memory, Scores
from qdgs_jax.scoring import REMEMBERED, ImageScore, SeenImages, uniqueness
from qdgs_jax.search import Search
from qdgs_jax.search_config import SearchConfig
from qdgs_jax.typing import Array, Key, Latents, Params

DEVICES = 8
CHEAP = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
"""Compiles several times faster."""
GRID = GridArchive(cells=(10, 11), lower=(-1.0, -1.0), upper=(1.0, 1.0))
DIVIDING, ODD = (8, 8, 20), (6, 3, 15)  # D, E, B: by 2 and 8, or not
OPTIONS: dict[str, dict[str, str]] = {
    # Of equal eigenvalues, rounding chooses the eigenvectors, so that results differ by more. Half
    # the batch as parents gives covariances of full rank; Cholesky factors are always unique.
    "cma_me, eigenvectors": {"algorithm": "cma_me", "strategy": "cma_es", "selection": "mu"},
}

CHECKS: dict[str, Callable[..., None]] = {}


def check(function: Callable[..., None]) -> Callable[..., None]:
    """Registers what `on_devices` can run."""
    CHECKS[function.__name__] = function
    return function


def on_devices(function: Callable[..., None], *arguments: str) -> None:
    """Runs a check in a process with eight devices."""
    done = subprocess.run(
        [sys.executable, __file__, function.__name__, *arguments],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
        env={**os.environ, "XLA_FLAGS": CHEAP},
    )
    assert done.returncode == 0, done.stderr


def mesh(*shape: int) -> Mesh:
    names = tuple("abc"[: len(shape)])
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, names, (AxisType.Auto,) * len(shape), devices=devices)


def make_search(algorithm: str, size: int, emitters: int, batch: int, *, memory: bool) -> Search:
    """A search whose scores draw numbers for each row, as crops do."""

    def score_rows(
        params: Params, keys: Key, latents: Latents, memory: Memory
    ) -> tuple[Scores, Array]:
        noise = jax.vmap(lambda key: jax.random.normal(key, (size,), latents.dtype))(keys)
        embeddings = jnp.tanh((latents + 0.01 * noise) @ params)
        embeddings /= jnp.linalg.norm(embeddings, axis=-1, keepdims=True)
        objective = 60 - (latents**2).mean(axis=-1)
        if isinstance(memory, SeenImages):
            objective -= 5 * (1 - uniqueness(memory, embeddings))
        return Scores(objective, embeddings[:, :2]), embeddings

    def empty(params: Params) -> Memory:
        return SeenImages(jnp.zeros((REMEMBERED, 8)), jnp.zeros((), jnp.int32)) if memory else ()

    score = ImageScore(score_rows, 2, 5, empty)
    options: dict[str, Any] = {"emitters": emitters, "batch_size": batch, "threshold_min": 0.0}
    options |= OPTIONS.get(algorithm, {"algorithm": algorithm})
    return searches.make_search(
        SearchConfig(**options), GRID, score, score.with_jacobian(), init_memory=empty
    )


def leaves(search: Search, over: Mesh | None, generations: int = 20) -> dict[str, np.ndarray]:
    """All arrays of a search after some generations."""
    size = 8 if search.emitter.emitters == DIVIDING[1] else 6
    params = jax.random.normal(jax.random.key(5), (size, 8))
    start = jax.random.normal(jax.random.key(2), (21, size))
    init = jax.jit(searches.init, static_argnums=0)
    run = jax.jit(searches.run, static_argnums=(0, 3), donate_argnums=2)
    with jax.set_mesh(over) if over else nullcontext():
        state = init(search, params, jax.random.key(1), start)
        state, metrics = run(search, params, state, generations)
    assert metrics.coverage > 0
    if over and over.size > 1 and size % over.size == 0:
        assert state.elites.latents.sharding.spec == PartitionSpec(None, over.axis_names)
    state = state.replace(key=jax.random.key_data(state.key))
    found = jax.tree_util.tree_leaves_with_path((state, metrics))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}


def assert_close(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    for name, values in one.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(other[name], values, rtol=1e-9, atol=1e-9, err_msg=name)
        else:
            np.testing.assert_array_equal(other[name], values, err_msg=name)


@check
def any_mesh_gives_the_same_results(algorithm: str) -> None:
    cases: list[tuple[tuple[int, int, int], bool, list[tuple[int, ...]]]] = [
        (DIVIDING, True, [(8,)])
    ]
    if algorithm in ("cma_me", "omg_mega", "cma_maega"):
        cases = [(DIVIDING, True, [(2,), (2, 2, 2)]), (ODD, False, [(8,)])]
    for sizes, memory, shapes in cases:
        search = make_search(algorithm, *sizes, memory=memory)
        alone = leaves(search, None)
        for shape in shapes:
            assert_close(alone, leaves(search, mesh(*shape)))


@check
def a_mesh_of_one_device_gives_the_same_bits(algorithm: str) -> None:
    jax.config.update("jax_enable_x64", False)
    search = make_search(algorithm, *DIVIDING, memory=True)
    alone, one = leaves(search, None), leaves(search, mesh(1))
    for name, values in alone.items():
        np.testing.assert_array_equal(one[name], values, err_msg=name)


@check
def rows_are_mapped_for_any_number_and_chunk() -> None:
    def rows(shared: Array, tree: dict[str, Array], keys: Key) -> dict[str, Array]:
        drawn = jax.vmap(jax.random.normal)(keys)
        return {"sum": tree["a"].sum(axis=-1) * shared, "drawn": drawn}

    for count, chunk in ((1, None), (8, None), (13, 2), (40, 3), (16, 100)):
        tree = {"a": jnp.arange(3.0 * count).reshape(count, 3)}
        keys = jax.random.split(jax.random.key(0), count)
        wanted = rows(jnp.asarray(2.0), tree, keys)
        with jax.set_mesh(mesh(4, 2)):
            found = jax.jit(sharding.rowwise(rows, chunk))(jnp.asarray(2.0), tree, keys)
        for name, values in wanted.items():
            np.testing.assert_array_equal(found[name], values)


@check
def a_device_renders_at_most_a_chunk_of_its_rows() -> None:
    sizes = []

    def rows(shared: None, latents: Array) -> Array:
        sizes.append(len(latents))
        return latents

    with jax.set_mesh(mesh(8)):
        jax.jit(sharding.rowwise(rows, 3)).trace(None, jnp.zeros((40, 2)))  # 5 rows a device
    assert set(sizes) == {3}


@check
def axes_of_a_caller_are_left_to_the_caller() -> None:
    """A caller's own map over one axis: there is one search for each of its places."""
    search = make_search("cma_maega", *DIVIDING, memory=False)
    params = jax.random.normal(jax.random.key(5), (8, 8))
    start = jax.random.normal(jax.random.key(2), (21, 8))

    def qd_score(seed: Array) -> Array:
        state = searches.init(search, params, jax.random.key(seed[0]), start)
        assert sharding.axes() == ("b",)
        return searches.run(search, params, state, 3)[1].qd_score[None]

    with jax.set_mesh(mesh(2, 4)):
        both = jax.jit(
            jax.shard_map(
                qd_score,
                in_specs=PartitionSpec("a"),
                out_specs=PartitionSpec("a"),
                axis_names={"a"},
                check_vma=False,
            )
        )(jnp.arange(2))
    alone = [jax.jit(qd_score_alone, static_argnums=0)(search, seed) for seed in range(2)]
    np.testing.assert_allclose(both, alone, rtol=1e-9)


def qd_score_alone(search: Search, seed: int) -> Array:
    params = jax.random.normal(jax.random.key(5), (8, 8))
    start = jax.random.normal(jax.random.key(2), (21, 8))
    state = searches.init(search, params, jax.random.key(seed), start)
    return searches.run(search, params, state, 3)[1].qd_score


@check
def an_explicit_mesh_is_refused() -> None:
    explicit = jax.make_mesh((8,), ("x",), (AxisType.Explicit,))
    with jax.set_mesh(explicit), pytest.raises(ValueError, match=r"'x'.*Explicit.*make it with"):
        leaves(make_search("cma_maega", *DIVIDING, memory=False), explicit)


@check
def archives_of_all_kinds_are_divided_and_work_with_qdax() -> None:
    points = tuple((x, y) for x in (-0.5, 0.0, 0.5) for y in (-0.5, 0.0, 0.5))
    latents = jax.random.normal(jax.random.key(0), (30, 16))
    measures = jnp.tanh(latents[:, :2])
    for archive in (GRID, CVTArchive(points, (-1.0, -1.0), (1.0, 1.0))):
        make = jax.jit(Repertoire.init, static_argnums=0)
        alone = make(archive, latents, latents[:, 0], measures)
        with jax.set_mesh(mesh(8)):
            divided = make(archive, latents, latents[:, 0], measures)
        assert divided.state.latents.sharding.spec == PartitionSpec(None, ("a",))
        for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(divided), strict=True):
            np.testing.assert_array_equal(one, other)


@check
def a_mesh_is_limited_to_some_devices() -> None:
    assert sharding.limited_mesh(3).size == 3
    with pytest.raises(ConfigError, match="8 devices here, not 9"):
        sharding.limited_mesh(9)
    with sharding.all_devices():
        assert sharding.devices() == 8
    with jax.set_mesh(sharding.limited_mesh(2)):
        with sharding.all_devices():
            assert sharding.devices() == 2
        placed = sharding.on_all_devices({"a": jnp.ones(3), "key": jax.random.key(0)})
        assert all(len(leaf.sharding.device_set) == 2 for leaf in jax.tree.leaves(placed))


ALGORITHMS = [
    "map_elites", "map_elites_line", "cma_me", "cma_me, eigenvectors", "cma_mae", "omg_mega",
    "cma_mega", "cma_maega",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_any_mesh_gives_the_same_results(algorithm: str) -> None:
    on_devices(any_mesh_gives_the_same_results, algorithm)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["map_elites_line", "cma_me", "cma_maega"])
def test_a_mesh_of_one_device_gives_the_same_bits(algorithm: str) -> None:
    on_devices(a_mesh_of_one_device_gives_the_same_bits, algorithm)


@pytest.mark.parametrize(
    "function",
    [
        rows_are_mapped_for_any_number_and_chunk,
        a_device_renders_at_most_a_chunk_of_its_rows,
        an_explicit_mesh_is_refused,
        a_mesh_is_limited_to_some_devices,
        pytest.param(axes_of_a_caller_are_left_to_the_caller, marks=pytest.mark.slow),
        archives_of_all_kinds_are_divided_and_work_with_qdax,
    ],
    ids=lambda function: function.__name__,
)
def test_on_eight_devices(function: Callable[..., None]) -> None:
    on_devices(function)


def test_without_a_mesh_nothing_changes() -> None:
    latents = jnp.ones((4, 3))
    assert sharding.devices() == 1
    assert sharding.by_rows(latents) is latents
    assert sharding.by_columns(latents) is latents
    assert sharding.replicated(latents) is latents
    assert sharding.on_all_devices(latents) is latents


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.config.update("jax_enable_x64", True)
    CHECKS[sys.argv[1]](*sys.argv[2:])
