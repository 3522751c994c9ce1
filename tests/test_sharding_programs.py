"""What devices hold and exchange in a search, read from the compiled program, which is not run."""

import dataclasses
import json
import subprocess
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from qdgs_jax import collectives
from qdgs_jax import search as searches
from qdgs_jax.archives import GridArchive
from qdgs_jax.jacobian import Memory, Scores, with_jacobian
from qdgs_jax.scoring import REMEMBERED, ImageScore, SeenImages
from qdgs_jax.search_config import SearchConfig
from qdgs_jax.sharding import make_mesh
from qdgs_jax.typing import Array, Key, Latents, Params

WIDTH, MEASURES = 128, 2  # of embeddings [N, WIDTH]


@dataclasses.dataclass(frozen=True)
class Case:
    """A search: its algorithm and sizes."""

    algorithm: str
    emitters: int = 2
    of_each_device: bool = True
    batch: int = 8
    size: int = 64  # D
    chunk: int = 4
    memory: bool = False
    rowwise: bool = True  # the score is ImageScore; False: a plain function


def program(case: Case, devices: int) -> dict[str, Any]:
    """Figures of the search that is compiled for a number of CPU devices."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    search = make_search(case, devices)
    key, shape = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct
    params = shape((case.size, WIDTH), jnp.float32)
    latents = shape((search.emitter.emitters, case.size), jnp.float32)
    cheap: dict[str, str | bool] = {
        "xla_backend_optimization_level": "0",
        "xla_llvm_disable_expensive_passes": True,
    }
    with jax.set_mesh(make_mesh(jax.devices())):
        init = jax.jit(searches.init, static_argnums=0).lower(search, params, key, latents)
        state = jax.tree.map(
            lambda leaf, sharding: shape(leaf.shape, leaf.dtype, sharding=sharding),
            jax.eval_shape(partial(searches.init, search), params, key, latents),
            init.compile(compiler_options=cheap).output_shardings,
        )
        run = jax.jit(searches.run, static_argnums=(0, 3), donate_argnums=2)
        compiled = run.lower(search, params, state, 3).compile(compiler_options=cheap)
    after = compiled.output_shardings[0]
    archives = [(state.elites, after.elites)]
    if search.annealed:
        archives.append((state.annealed, after.annealed))
    shards = [place.latents.shard_shape(each.latents.shape) for each, place in archives]
    read = collectives.read(compiled.as_text() or "")
    return {
        "shards": shards,
        "evaluations": search.evaluations_per_generation,
        "exchanged": [(each.kind, each.bytes, each.source) for each in read.generation()],
        "inner": [each.source for each in read.inner()],
        "chunks": [loop.trips for loop in read.chunk_loops()],
    }


def make_search(case: Case, devices: int) -> searches.Search:
    def score_rows(
        params: Params, keys: Key, latents: Latents, memory: Memory
    ) -> tuple[Scores, Array]:
        embeddings = jnp.tanh(latents @ params)
        return Scores(100 - (embeddings**2).sum(axis=-1), embeddings[:, :MEASURES]), embeddings

    def plain(params: Params, key: Key, latents: Latents, memory: Memory) -> tuple[Scores, Memory]:
        return score_rows(params, key, latents, memory)[0], memory

    def seen(params: Params) -> Memory:
        empty = SeenImages(jnp.zeros((REMEMBERED, WIDTH)), jnp.zeros((), jnp.int32))
        return empty if case.memory else ()

    score = ImageScore(score_rows, MEASURES, case.chunk, seen)
    options = SearchConfig(
        algorithm=case.algorithm,  # type: ignore[arg-type]
        emitters=case.emitters * (devices if case.of_each_device else 1),
        batch_size=case.batch,
        threshold_min=0.0,
    )
    grid = GridArchive(cells=(9, 9), lower=(-1.0, -1.0), upper=(1.0, 1.0))
    if case.rowwise:
        return searches.make_search(options, grid, score, score.with_jacobian(), init_memory=seen)
    return searches.make_search(options, grid, plain, with_jacobian(plain))


def compiled(case: Case) -> dict[int, dict[str, Any]]:
    """`program` for 2 and 8 devices, in processes of their own, side by side."""
    text = json.dumps(dataclasses.asdict(case))
    running = {
        devices: subprocess.Popen(
            [sys.executable, __file__, str(devices), text], stdout=subprocess.PIPE, text=True
        )
        for devices in (2, 8)
    }
    printed = {devices: process.communicate()[0] for devices, process in running.items()}
    assert not any(process.returncode for process in running.values())
    return {devices: json.loads(text.splitlines()[-1]) for devices, text in printed.items()}


CASES = {
    "map_elites": (Case("map_elites", memory=True), 32, [4]),
    "cma_maega": (Case("cma_maega", memory=True), 20, [2, 4]),
    "cma_maega, plain score": (Case("cma_maega", rowwise=False), 20, []),
    "cma_me": (Case("cma_me"), 18, [4]),
}
"""Name -> the search, rows of latents that a device exchanges, and its chunks of Jacobians, scores.

Rows are parents and children; theta, branches and elites to restart from; solutions and elites.
"""


@pytest.mark.parametrize(
    "name", ["map_elites", *(pytest.param(n, marks=pytest.mark.slow) for n in list(CASES)[1:])]
)
def test_what_a_device_holds_and_exchanges_does_not_grow_with_the_devices(name: str) -> None:
    case, rows, chunks = CASES[name]
    for devices, figures in compiled(case).items():
        for shard in figures["shards"]:
            assert shard == [81, case.size // devices]
        turned = [size for kind, size, _ in figures["exchanged"] if kind == "all-to-all"]
        assert sum(turned) == 4 * rows * case.size
        assert figures["inner"] == []
        assert figures["chunks"] == chunks
        latents = case.emitters * devices * case.batch
        assert max(size for _, size, _ in figures["exchanged"]) < 4 * latents * case.size
        # The rest is scores and ranks, and an embedding: no latents, embeddings or covariances.
        others = [size for kind, size, _ in figures["exchanged"] if kind != "all-to-all"]
        assert sum(others) < 48 * figures["evaluations"] + 2 * 4 * WIDTH


UNEVEN = {
    "emitters": Case("cma_maega", 3, of_each_device=False, batch=5, memory=True),
    "latents": Case("cma_me", size=6),
    "all": Case("map_elites", 3, of_each_device=False, batch=5, size=13, memory=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", UNEVEN)
def test_sizes_that_do_not_divide_are_repeated_and_nothing_is_exchanged_in_loops(name: str) -> None:
    case = UNEVEN[name]
    for devices, figures in compiled(case).items():
        columns = case.size if case.size % devices else case.size // devices
        for shard in figures["shards"]:
            assert shard == [81, columns]
        assert figures["inner"] == []
        emitters = case.emitters * (devices if case.of_each_device else 1)
        padded = -(-emitters * case.batch // devices) * devices
        assert max(size for _, size, _ in figures["exchanged"]) <= 4 * padded * case.size


if __name__ == "__main__":
    print(json.dumps(program(Case(**json.loads(sys.argv[2])), int(sys.argv[1]))))
