"""How do the speed, scores and memory of a search compare with QDax's?

Question: evaluations/s, compilation, memory and QD score of MAP-Elites (iso-line) and CMA-ME in
    QDax 0.5 and here, with the same batch and number of cells.
Method: QDax's arm task in float32, all programs in one process, in turns. Options are from QDax's
    examples: for MAP-Elites its README (100 joints, batch 1,024, iso_sigma 0.05, line_sigma 0.1),
    for CMA-ME its notebook (15 emitters x 36, min_count 1), with sigma0 0.05. QDax's loop is
    `MAPElites.scan_update` in one jitted `lax.scan`, donated, without metrics. Both libraries call
    the same task, and start from archives of the same 100 genotypes: random ones, for CMA-ME zeros.
    QDax's cells are a CVT; cells here are the same CVT, or a square grid of as many.
    Evaluations/s: of the loop, by its median time; not in it are compilation, the first archive and
    a first run, which allocates memory. Each round has one seed for all programs. Compilation:
    tracing, lowering and compiling the loop, with cleared caches. Memory: XLA's `memory_analysis`
    of the loop, arguments + results + temporary memory - donated. QD score: sum over elites of
    fitness + 0.5, because no fitness is below -0.5; compare it on the same cells, those of the CVT.
    BLAS has one thread, as CMA-ES here requires; XLA has all cores.
Differences: (1) QDax clips offspring to [0, 1]; here only the task clips, and elites may lie
    outside. (2) QDax's CMA-ES always starts at 0, a corner of the box, from which neither library
    fills more than a few cells. For CMA-ME the task adds 0.5, in both: 0 is the straight arm.
    (3) QDax's pool runs one emitter a generation, here all run at once: at equal evaluations, QDax
    has 15 times the generations. (4) QDax's parents are the whole batch, ranked relative to the
    archive after the same emitter's last turn. Here they are those that the archive accepted, or
    the best half ("mu"), ranked relative to the archive before the batch.
Command: python benchmarks/against_qdax.py --rounds 5 --json benchmarks/results/against_qdax.json
Result: two x86-64 cores, 2026-11-30 (--rounds 3 --generations 60): 3.4 to 3.7 times QDax's
    evaluations/s in a grid of 1,024 cells, 8 to 24 times in one of 10,000, 1.0 to 1.5 times on the
    same CVT; see benchmarks/README.md.
"""

import argparse
import functools
import json
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median, pstdev
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl
from qdax.core.containers.mapelites_repertoire import compute_cvt_centroids
from qdax.core.emitters.cma_improvement_emitter import CMAImprovementEmitter
from qdax.core.emitters.cma_pool_emitter import CMAPoolEmitter
from qdax.core.emitters.emitter import Emitter
from qdax.core.emitters.mutation_operators import isoline_variation
from qdax.core.emitters.standard_emitters import MixingEmitter
from qdax.core.map_elites import MAPElites
from qdax.tasks.arm import arm_scoring_function

from qdgs_jax import search as searches
from qdgs_jax.archives import Archive, CVTArchive, GridArchive
from qdgs_jax.jacobian import Memory, Scores
from qdgs_jax.search import SearchState
from qdgs_jax.search_config import SearchConfig
from qdgs_jax.typing import Array, Key, Latents, Params

COLUMNS = (
    "algorithm", "cells", "program", "evaluations/s", "relative to QDax", "compilation, s",
    "memory, MiB", "QD score", "coverage, %",
)  # fmt: skip
OFFSET = 0.5  # fitness is minus the standard deviation of numbers in [0, 1]: at least -0.5
INITIAL = 100  # genotypes of the first archive
LINE_SIGMA = 0.1
CHOLESKY = {"strategy": "cholesky_cma_es"}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "map_elites_line": {"": {"line_sigma": LINE_SIGMA}},
    "cma_me": {
        ", eigenvectors": {"strategy": "cma_es"},
        ", Cholesky": CHOLESKY,
        ", Cholesky, mu": {**CHOLESKY, "selection": "mu"},
    },
}
"""Of this package: algorithm -> name -> options."""


@dataclass(frozen=True)
class Setting:
    """A search, the same for both libraries."""

    algorithm: str
    emitters: int
    batch: int
    """Of each emitter."""
    sigma: float
    """iso_sigma, or CMA-ME's initial step size."""
    generations: int
    joints: int

    @property
    def evaluations(self) -> int:
        """Of the loop."""
        return self.generations * self.emitters * self.batch

    def initial(self, key: Key) -> Latents:
        """Genotypes of the first archive."""
        shape = max(INITIAL, self.emitters), self.joints
        return jnp.zeros(shape) if self.algorithm == "cma_me" else jax.random.uniform(key, shape)

    def task(self, genotypes: Latents, key: Key) -> tuple[Array, Array, dict[str, Any]]:
        """QDax's arm, as a scoring function of QDax. It clips its argument to [0, 1]."""
        centre = 0.5 if self.algorithm == "cma_me" else 0.0
        return arm_scoring_function(genotypes + centre, key)

    def score(
        self, params: Params, key: Key, latents: Latents, memory: Memory
    ) -> tuple[Scores, Memory]:
        """The same task, as a score of this package."""
        fitnesses, descriptors, _ = self.task(latents, key)
        return Scores(fitnesses, descriptors), memory


class Program:
    """A search in one program; `compile` it before `run`.

    Attributes:
        start: key -> the state before the loop.
        loop: state -> the state after all generations.
        fitnesses: state -> fitnesses [K], -inf in empty cells.
    """

    def __init__(
        self,
        start: Callable[[Key], Any],
        loop: Callable[[Any], Any],
        fitnesses: Callable[[Any], Array],
    ) -> None:
        self.start, self.loop, self.fitnesses = start, loop, fitnesses

    def compile(self) -> dict[str, float]:
        """Seconds of compilation, and the memory of the compiled loop."""
        self.compiled_start = jax.jit(self.start).lower(jax.random.key(0)).compile()
        state = self.compiled_start(jax.random.key(0))
        jax.clear_caches()  # later programs must not find what earlier ones traced
        began = time.perf_counter()
        self.compiled_loop = jax.jit(self.loop, donate_argnums=0).lower(state).compile()
        seconds = time.perf_counter() - began
        memory = self.compiled_loop.memory_analysis()
        taken = memory.argument_size_in_bytes + memory.output_size_in_bytes
        taken += memory.temp_size_in_bytes - memory.alias_size_in_bytes
        return {"seconds_compile": seconds, "mebibytes": taken / 2**20}

    def run(self, seed: int) -> dict[str, float]:
        """Seconds of the loop, and the scores after it."""
        state = jax.block_until_ready(self.compiled_start(jax.random.key(seed)))
        began = time.perf_counter()
        state = jax.block_until_ready(self.compiled_loop(state))
        seconds = time.perf_counter() - began
        return {"seconds": seconds, **scores_of(self.fitnesses(state))}


def scores_of(fitnesses: Array) -> dict[str, float]:
    """QD score and coverage in percent, from fitnesses [K] with -inf in empty cells."""
    values = np.asarray(fitnesses, np.float64)
    filled = values > -np.inf
    return {
        "qd_score": float((values[filled] + OFFSET).sum()),
        "coverage": 100 * float(filled.mean()),
    }


def ours(setting: Setting, archive: Archive, options: dict[str, Any]) -> Program:
    """The search by this package."""
    config = SearchConfig(
        algorithm=setting.algorithm,
        emitters=setting.emitters,
        batch_size=setting.batch,
        sigma0=setting.sigma,
        seek_rare=False,
        **options,
    )
    search = searches.make_search(config, archive, setting.score)

    def start(key: Key) -> SearchState:
        genotypes_key, key = jax.random.split(key)
        genotypes = setting.initial(genotypes_key)
        state = searches.init(search, None, key, genotypes)
        return searches.add(search, state, genotypes, setting.score(None, key, genotypes, ())[0])[0]

    def loop(state: SearchState) -> SearchState:
        return searches.run(search, None, state, setting.generations)[0]

    return Program(start, loop, lambda state: state.elites.objective)


def qdax_emitter(setting: Setting, centroids: Array) -> Emitter:
    """QDax's emitter, or its pool of emitters."""
    if setting.algorithm == "map_elites_line":
        sigmas = {"iso_sigma": setting.sigma, "line_sigma": LINE_SIGMA}
        variation = functools.partial(isoline_variation, **sigmas, minval=0.0, maxval=1.0)
        return MixingEmitter(lambda x, key: x, variation, 1.0, setting.batch)
    emitter = CMAImprovementEmitter(
        setting.batch, setting.joints, centroids, sigma_g=setting.sigma, min_count=1
    )
    return CMAPoolEmitter(setting.emitters, emitter) if setting.emitters > 1 else emitter


def qdax(setting: Setting, centroids: Array) -> Program:
    """The search by QDax, over the cells of `centroids`."""
    emitter = qdax_emitter(setting, centroids)
    map_elites = MAPElites(setting.task, emitter, lambda repertoire: {})
    length = setting.evaluations // emitter.batch_size

    def start(key: Key) -> tuple[Any, ...]:
        genotypes_key, key = jax.random.split(key)
        genotypes = setting.initial(genotypes_key)
        repertoire, state, _ = map_elites.init(genotypes, centroids, key)
        return repertoire, state, key

    def loop(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        return jax.lax.scan(map_elites.scan_update, carry, length=length)[0]

    return Program(start, loop, lambda carry: carry[0].fitnesses[:, 0])


def archives_of(centroids: Array) -> dict[str, Archive]:
    """A square grid of as many cells, and the same CVT."""
    side, ends = math.isqrt(len(centroids)), ((0.0, 0.0), (1.0, 1.0))
    points = tuple(map(tuple, np.asarray(centroids).tolist()))
    return {"grid": GridArchive((side, side), *ends), "CVT": CVTArchive(points, *ends)}


def programs_of(setting: Setting, centroids: Array) -> dict[str, Program]:
    """QDax's program, then those of this package."""
    programs = {"QDax, CVT": qdax(setting, centroids)}
    for variant, options in VARIANTS[setting.algorithm].items():
        for cells, archive in archives_of(centroids).items():
            programs[f"here, {cells}{variant}"] = ours(setting, archive, options)
    return programs


def compare(setting: Setting, centroids: Array, rounds: int) -> dict[str, Any]:
    """Runs all programs in turns, `rounds` times."""
    programs = programs_of(setting, centroids)
    results: dict[str, dict[str, Any]] = {}
    for name, program in programs.items():
        results[name] = {**program.compile(), "rounds": []}
        program.run(0)  # the first run allocates memory
    for seed in range(rounds):
        for name, program in programs.items():
            results[name]["rounds"].append(program.run(seed))
    for result in results.values():
        columns = {key: [run[key] for run in result["rounds"]] for key in result["rounds"][0]}
        result["evaluations_per_second"] = setting.evaluations / median(columns["seconds"])
        for name in ("qd_score", "coverage"):
            result[name], result[f"{name}_deviation"] = mean(columns[name]), pstdev(columns[name])
    return {"setting": asdict(setting), "cells": len(centroids), "programs": results}


def print_rows(comparison: dict[str, Any]) -> None:
    """A row of the table for each program."""
    peer = comparison["programs"]["QDax, CVT"]["evaluations_per_second"]
    for name, row in comparison["programs"].items():
        speed = row["evaluations_per_second"]
        print(
            f"| {comparison['setting']['algorithm']} | {comparison['cells']:,} | {name} "
            f"| {speed:,.0f} | {speed / peer:.2f} | {row['seconds_compile']:.1f} "
            f"| {row['mebibytes']:.1f} "
            f"| {row['qd_score']:,.1f} ± {row['qd_score_deviation']:.1f} | {row['coverage']:.1f} |",
            flush=True,
        )


def main() -> None:
    """Prints a table: algorithms, numbers of cells, programs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algorithms", nargs="*", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--cells", type=int, nargs="*", default=[1024, 10_000], help="squares")
    for name, default, text in [
        ("rounds", 5, "of all programs in turns"),
        ("generations", 500, "of this package; QDax has as many evaluations"),
        ("batch", 1024, "of MAP-Elites"),
        ("emitters", 15, "of CMA-ME"),
        ("emitter-batch", 36, "of each emitter of CMA-ME"),
        ("joints", 100, "of the arm"),
        ("cvt-samples", 50_000, "points from which QDax computes centroids"),
    ]:
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    parser.add_argument("--sigma0", type=float, default=0.05, help="of CMA-ME")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    options = parser.parse_args()
    if any(math.isqrt(cells) ** 2 != cells for cells in options.cells):
        parser.error("--cells: only squares, for the grid")
    threadpoolctl.threadpool_limits(1, user_api="blas")
    sizes = {
        "map_elites_line": (1, options.batch, 0.05),
        "cma_me": (options.emitters, options.emitter_batch, options.sigma0),
    }
    environment = {
        "jax": jax.__version__, "qdax": version("qdax"), "device": str(jax.devices()[0]),
        "cores": os.cpu_count(), "python": platform.python_version(), "date": time.strftime("%F"),
    }  # fmt: skip
    comparisons = []
    print(f"| {' | '.join(COLUMNS)} |\n|---|---:|---|{'---:|' * 6}")
    for cells in options.cells:
        key = jax.random.key(0)
        centroids = compute_cvt_centroids(2, options.cvt_samples, cells, 0.0, 1.0, key)
        for algorithm in options.algorithms:
            setting = Setting(algorithm, *sizes[algorithm], options.generations, options.joints)
            comparisons.append(compare(setting, centroids, options.rounds))
            print_rows(comparisons[-1])
    if options.json:
        options.json.write_text(json.dumps({**environment, "results": comparisons}, indent=1))


if __name__ == "__main__":
    main()
