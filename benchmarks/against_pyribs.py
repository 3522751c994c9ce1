"""How much faster than pyribs is a whole search?

Question: wall time of the same search in pyribs and here, on the same machine.
Method: sphere, n = 100, 100 x 100 cells, 15 emitters x 36 (the setting of pyribs' own example
    `sphere.py`), scores included, in one process, in turns. pyribs computes in float64; this
    package has turns in float32, its default, and in float64. pyribs scores with numpy. BLAS has
    one thread, as pyribs requires inside CMA-ES; XLA has all cores. This package is timed without
    compilation, which is reported separately. Medians over rounds; only ratios are meaningful. The
    CMA-ES of pyribs, and here that of `cma_me` and `cma_mae`, decomposes C into eigenvectors; a
    second run here uses Cholesky factors. `--insertion` times only the archive: a batch of 540 into
    2,500 and into 156,250 cells.
Command: python benchmarks/against_pyribs.py --steps 2000 --rounds 3 --insertion \
        --json benchmarks/results/against_pyribs.json
    (needs the extra `bench`)
Result: see benchmarks/README.md.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl
from linear_projection import LIMIT, SHIFT, Setting
from ribs.archives import GridArchive
from ribs.emitters import (
    EvolutionStrategyEmitter,
    GaussianEmitter,
    GradientArborescenceEmitter,
    IsoLineEmitter,
)
from ribs.schedulers import Scheduler

from qdgs_jax import archives
from qdgs_jax import search as searches

DIMS, EMITTERS, BATCH = 100, 15, 36
STRATEGIES = ("cma_es", "cholesky_cma_es")
PRECISIONS = ("float32", "float64")
MEGA = {"lr": 1.0, "grad_opt": "gradient_ascent", "batch_size": BATCH}
EMITTER: dict[str, Callable[[Any, Any], Any]] = {
    "map_elites": lambda archive, x0: GaussianEmitter(
        archive, sigma=0.5, x0=x0, batch_size=BATCH
    ),
    "map_elites_line": lambda archive, x0: IsoLineEmitter(
        archive, iso_sigma=0.5, line_sigma=0.2, x0=x0, batch_size=BATCH
    ),
    "cma_me": lambda archive, x0: EvolutionStrategyEmitter(
        archive, x0=x0, sigma0=0.5, ranker="2imp", batch_size=BATCH
    ),
    "cma_mae": lambda archive, x0: EvolutionStrategyEmitter(
        archive, x0=x0, sigma0=0.5, ranker="imp", selection_rule="mu", restart_rule="basic",
        batch_size=BATCH,
    ),
    "cma_mega": lambda archive, x0: GradientArborescenceEmitter(
        archive, x0=x0, sigma0=10.0, ranker="2imp", selection_rule="mu",
        restart_rule="no_improvement", **MEGA,
    ),
    "cma_maega": lambda archive, x0: GradientArborescenceEmitter(
        archive, x0=x0, sigma0=10.0, ranker="imp", restart_rule="basic", **MEGA
    ),
}  # fmt: skip


def score(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Objective [N] and measures [N, 2] of the sphere, in numpy."""
    worst = DIMS * (LIMIT + SHIFT) ** 2
    objective = 100 * (1 - ((x - SHIFT) ** 2).sum(axis=1) / worst)
    folded = np.where(np.abs(x) <= LIMIT, x, LIMIT / np.where(x == 0, 1, x))
    return objective, folded.reshape(len(x), 2, -1).sum(axis=2)


def jacobian(x: np.ndarray) -> np.ndarray:
    """[N, 3, DIMS]."""
    worst = DIMS * (LIMIT + SHIFT) ** 2
    objective = -200 * (x - SHIFT) / worst
    slope = np.where(np.abs(x) <= LIMIT, 1.0, -LIMIT / np.where(x == 0, 1, x) ** 2)
    halves = np.repeat(np.eye(2), DIMS // 2, axis=1)
    return np.concatenate([objective[:, None], slope[:, None] * halves], axis=1)


def pyribs(algorithm: str, steps: int, alpha: float) -> dict[str, float]:
    """One run of pyribs."""
    annealed = algorithm in ("cma_mae", "cma_maega")
    reach = DIMS / 2 * LIMIT
    grid = {"solution_dim": DIMS, "dims": (100, 100), "ranges": [(-reach, reach)] * 2}
    floor = {"learning_rate": alpha, "threshold_min": 0.0} if annealed else {}
    archive, x0 = GridArchive(**grid, **floor), np.zeros(DIMS)
    result = GridArchive(**grid) if annealed else None
    emitters = [EMITTER[algorithm](archive, x0) for _ in range(EMITTERS)]
    scheduler = Scheduler(archive, emitters, result_archive=result)
    began = time.perf_counter()
    for _ in range(steps):
        if algorithm in ("cma_mega", "cma_maega"):
            theta = scheduler.ask_dqd()
            scheduler.tell_dqd(*score(theta), jacobian(theta))
        solutions = scheduler.ask()
        scheduler.tell(*score(solutions))
    stats = scheduler.result_archive.stats
    return {
        "seconds": time.perf_counter() - began,
        "qd_score": float(stats.qd_score),
        "coverage": 100 * float(stats.coverage),
    }


class Ours:
    """Runs of this package in one precision, compiled once."""

    def __init__(
        self, algorithm: str, steps: int, alpha: float, strategy: str, precision: str
    ) -> None:
        sigma0 = 10.0 if algorithm in ("cma_mega", "cma_maega") else 0.5
        setting = Setting(
            "sphere", algorithm, DIMS, EMITTERS, BATCH, steps, sigma0, alpha, strategy=strategy
        )
        self.search, self.steps, self.precision = setting.search, steps, precision
        with self.precise():
            began = time.perf_counter()
            run = jax.jit(searches.run, static_argnums=(0, 3), donate_argnums=2)
            self.program = run.lower(self.search, None, self.state(0), steps).compile()
            self.seconds_compile = time.perf_counter() - began

    def precise(self) -> Any:
        return jax.enable_x64(self.precision == "float64")

    def state(self, seed: int) -> searches.SearchState:
        init = jax.jit(searches.init, static_argnums=0)
        return init(self.search, None, jax.random.key(seed), jnp.zeros((EMITTERS, DIMS)))

    def run(self, seed: int) -> dict[str, float]:
        with self.precise():
            state = jax.block_until_ready(self.state(seed))
            assert state.elites.latents.dtype == self.precision
            began = time.perf_counter()
            _, metrics = jax.block_until_ready(self.program(None, state))
            return {
                "seconds": time.perf_counter() - began,
                "qd_score": float(metrics.qd_score),
                "coverage": 100 * float(metrics.coverage),
            }


def compare(algorithm: str, steps: int, rounds: int, alpha: float, strategy: str) -> dict[str, Any]:
    """Runs pyribs and this package in turns, `rounds` times."""
    ours = [Ours(algorithm, steps, alpha, strategy, precision) for precision in PRECISIONS]
    for each in ours:
        each.run(0)  # the first run allocates memory
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ("pyribs", *PRECISIONS)}
    for seed in range(rounds):
        found["pyribs"].append(pyribs(algorithm, steps, alpha))
        for each in ours:
            found[each.precision].append(each.run(seed))
    seconds = {name: median(run["seconds"] for run in runs) for name, runs in found.items()}
    return {
        "algorithm": algorithm, "strategy": strategy, "steps": steps, "alpha": alpha, **found,
        "seconds_compile": {each.precision: each.seconds_compile for each in ours},
        "ratio": {name: seconds["pyribs"] / seconds[name] for name in PRECISIONS},
    }  # fmt: skip


def insertion(batches: int = 2000) -> dict[str, float]:
    """Median microseconds to insert a batch of 540 into archives of two sizes, alternating."""
    programs = {}
    for cells in ((50, 50), (625, 250)):
        archive = archives.GridArchive(cells, (-1.0, -1.0), (1.0, 1.0), 0.02, 0.0)

        def fill(
            state: archives.ArchiveState, key: jax.Array, archive: archives.GridArchive = archive
        ) -> archives.ArchiveState:
            def one(state: archives.ArchiveState, key: jax.Array) -> tuple[Any, None]:
                draws = jax.random.uniform(key, (EMITTERS * BATCH, DIMS), minval=-1)
                return archives.add(archive, state, draws, draws[:, 2], draws[:, :2])[0], None

            return jax.lax.scan(one, state, jax.random.split(key, batches))[0]

        state = archives.init(archive, DIMS)
        compiled = jax.jit(fill, donate_argnums=0).lower(state, jax.random.key(0)).compile()
        programs[archive.size] = [compiled, state, []]
    for round in range(7):
        for entry in programs.values():
            began = time.perf_counter()
            entry[1] = jax.block_until_ready(entry[0](entry[1], jax.random.key(round)))
            entry[2].append((time.perf_counter() - began) / batches * 1e6)
    small, large = (median(times) for _, _, times in programs.values())
    return {"cells_2500": small, "cells_156250": large, "ratio": large / small}


def main() -> None:
    """Prints a line for each algorithm."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algorithms", nargs="*", default=["cma_maega", "cma_mae", "map_elites"],
                        choices=EMITTER)  # fmt: skip
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alpha", type=float, default=0.02)
    parser.add_argument("--insertion", action="store_true", help="time also only the archive")
    parser.add_argument("--json", type=Path, help="where to write all times")
    options = parser.parse_args()
    threadpoolctl.threadpool_limits(1, user_api="blas")
    result: dict[str, Any] = {
        "jax": jax.__version__, "device": str(jax.devices()[0]), "cores": os.cpu_count(),
        "python": platform.python_version(), "date": time.strftime("%F"), "runs": [],
    }  # fmt: skip
    settings = [
        (algorithm, strategy)
        for algorithm in options.algorithms
        for strategy in (STRATEGIES if algorithm in ("cma_me", "cma_mae") else STRATEGIES[:1])
    ]
    for algorithm, strategy in settings:
        run = compare(algorithm, options.steps, options.rounds, options.alpha, strategy)
        result["runs"].append(run)
        parts = []
        for name in ("pyribs", *PRECISIONS):
            seconds, score, coverage = (
                median(row[key] for row in run[name]) for key in ("seconds", "qd_score", "coverage")
            )
            ratio = f", ratio {run['ratio'][name]:.1f}" if name in PRECISIONS else ""
            parts.append(f"{name} {seconds:.2f} s (QD score {score:.0f}, {coverage:.1f} %{ratio})")
        print(f"{algorithm:16} {strategy:16} {'; '.join(parts)}", flush=True)
    if options.insertion:
        result["insertion"] = insertion()
        print("insertion, microseconds:", result["insertion"])
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
