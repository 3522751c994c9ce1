"""Does each algorithm of the family reach its published scores?

Question: normalised QD score and coverage on the field's standard tasks, as in table 1 of the
    CMA-MAE paper (arXiv 2205.10752) and in the CMA-MEGA paper (arXiv 2106.03894).
Method: the papers' settings. Linear projection of n dimensions to two measures (sphere, Rastrigin,
    plateau), and the n-link planar arm; a 100 x 100 grid; all emitters start at the origin. The
    QD score is the sum of the elites' objectives over the number of cells, in percent of the best
    objective. Compilation is timed separately. `--as-published` runs in float64 and inserts one
    solution after the other, as the papers' code did; CMA-ME's scores depend on it.
Command: python benchmarks/linear_projection.py --task sphere --algorithm cma_mae --seeds 5
    python benchmarks/linear_projection.py --bars --json benchmarks/results/linear_projection.json
    (all of README.md's table, or a part of it with `--only`. The file keeps its figures of other
    settings.)
Result: see benchmarks/README.md.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from qdgs_jax import archives
from qdgs_jax import search as searches
from qdgs_jax.archives import GridArchive
from qdgs_jax.jacobian import Memory, Scores, with_jacobian
from qdgs_jax.search import Search
from qdgs_jax.search_config import SERVES, SearchConfig
from qdgs_jax.typing import Array, Key, Latents, Measures, Objective, Params

LIMIT = 5.12  # of the linear projection's box
SHIFT = 0.4 * LIMIT  # of the optimum of sphere and Rastrigin


@dataclass(frozen=True)
class Setting:
    """One cell of the results' table."""

    task: str = "sphere"
    algorithm: str = "cma_mae"
    dims: int = 100
    emitters: int = 15
    batch: int = 36
    steps: int = 10_000
    sigma0: float = 0.5
    alpha: float = 0.01
    step_size: float = 1.0
    optimizer: str = "ascent"
    selection: str = "auto"
    restart: str = "auto"
    strategy: str = "cma_es"
    as_published: bool = False
    """Whether to use float64 and insert one solution after the other, as the papers' code does."""
    published: tuple[float, float] | None = None
    """Normalised QD score and coverage, in percent."""

    @property
    def archive(self) -> GridArchive:
        """100 x 100 cells over the task's measures."""
        reach = float(self.dims) if self.task == "arm" else self.dims / 2 * LIMIT
        return GridArchive(cells=(100, 100), lower=(-reach, -reach), upper=(reach, reach))

    @property
    def search(self) -> Search:
        """The search over this task."""
        options = {
            "learning_rate": self.alpha, "step_size": self.step_size, "optimizer": self.optimizer,
            "selection": self.selection, "restart": self.restart, "strategy": self.strategy,
        }  # fmt: skip
        if self.algorithm in ("cma_me", "cma_mae") and self.strategy != "openai_es":
            del options["step_size"]
        config = SearchConfig(
            algorithm=self.algorithm,
            emitters=self.emitters,
            batch_size=self.batch,
            sigma0=self.sigma0,
            threshold_min=0.0,
            seek_rare=False,
            **{name: value for name, value in options.items() if self.algorithm in SERVES[name]},
        )
        task = TASKS[self.task]

        def score(
            params: Params, key: Key, latents: Latents, memory: Memory
        ) -> tuple[Scores, Memory]:
            return Scores(*task(latents)), memory

        return searches.make_search(config, self.archive, score, with_jacobian(score))


def linear_projection(latents: Latents) -> Measures:
    """Sums of both halves of x [N, n], folded back beyond the box: 5.12 / x; [N, 2]."""
    inside = jnp.abs(latents) <= LIMIT
    folded = jnp.where(inside, latents, LIMIT / jnp.where(inside, 1.0, latents))
    return folded.reshape(len(latents), 2, -1).sum(axis=-1)


def _percent(raw: Array, worst: float) -> Objective:
    """Maps a cost of 0 to 100 and `worst` to 0."""
    return 100 * (1 - raw / worst)


def sphere(latents: Latents) -> tuple[Objective, Measures]:
    """Squared distance to the shifted optimum."""
    raw = ((latents - SHIFT) ** 2).sum(axis=-1)
    worst = latents.shape[-1] * (LIMIT + SHIFT) ** 2
    return _percent(raw, worst), linear_projection(latents)


def rastrigin(latents: Latents) -> tuple[Objective, Measures]:
    """The sphere with a lattice of local optima."""

    def cost(x: Array) -> Array:
        return (x**2 + 10 - 10 * jnp.cos(2 * jnp.pi * x)).sum(axis=-1)

    worst = cost(jnp.full(latents.shape[-1], -LIMIT - SHIFT))
    return _percent(cost(latents - SHIFT), worst), linear_projection(latents)


def plateau(latents: Latents) -> tuple[Objective, Measures]:
    """100 within the box; beyond it, minus the mean squared excess."""
    excess = jnp.maximum(jnp.abs(latents) - LIMIT, 0)
    return 100 - (excess**2).mean(axis=-1), linear_projection(latents)


def arm(latents: Latents) -> tuple[Objective, Measures]:
    """The objective is better for more equal joint angles [N, n]; measures are the end's place."""
    angles = jnp.cumsum(latents, axis=-1)
    hand = jnp.stack([jnp.cos(angles).sum(axis=-1), jnp.sin(angles).sum(axis=-1)], axis=-1)
    return 100 * (1 - latents.var(axis=-1)), hand


add_batch = archives.add  # the original, while `add_one_by_one` replaces it
TASKS = {"sphere": sphere, "rastrigin": rastrigin, "plateau": plateau, "arm": arm}


def add_one_by_one(archive: GridArchive, state: Any, *solutions: Array) -> tuple[Any, Any]:
    """`archives.add` of one solution after the other."""

    def add_one(state: Any, solution: tuple[Array, ...]) -> tuple[Any, Any]:
        state, insertion = add_batch(archive, state, *(leaf[None] for leaf in solution))
        return state, jax.tree.map(lambda leaf: leaf[0], insertion)

    return jax.lax.scan(add_one, state, solutions)


def measure(setting: Setting, seeds: int) -> dict[str, Any]:
    """Runs a setting with `seeds` seeds, one program for all of them."""
    if not setting.as_published:
        return _measure(setting, seeds)
    with jax.enable_x64(True), mock.patch.object(archives, "add", add_one_by_one):
        return _measure(setting, seeds)


def _measure(setting: Setting, seeds: int) -> dict[str, Any]:
    search = setting.search
    origin = jnp.zeros((setting.emitters, setting.dims))
    began = time.perf_counter()
    init = jax.jit(searches.init, static_argnums=0)
    state = init(search, None, jax.random.key(0), origin)
    run = jax.jit(searches.run, static_argnums=(0, 3), donate_argnums=2)
    program = run.lower(search, None, state, setting.steps).compile()
    seconds_compile = time.perf_counter() - began

    rows = []
    for seed in range(seeds):
        state = init(search, None, jax.random.key(seed), origin)
        began = time.perf_counter()
        _, metrics = jax.block_until_ready(program(None, state))
        rows.append(
            {
                "qd_score": float(metrics.qd_score),
                "qd_score_normalised": float(metrics.qd_score) / search.archive.size,
                "coverage": 100 * float(metrics.coverage),
                "restarts": int(metrics.restarts),
                "non_finite": int(metrics.non_finite),
                "seconds": time.perf_counter() - began,
            }
        )
    means = {name: statistics.mean(row[name] for row in rows) for name in rows[0]}
    return {
        "setting": asdict(setting), "seconds_compile": seconds_compile, "mean": means,
        "seeds": rows,
    }  # fmt: skip


def bars() -> Iterator[tuple[str, Setting]]:
    """The settings behind README.md's table, by part."""
    published = {
        "map_elites": [(41.64, 50.80), (31.43, 47.88), (47.07, 47.07), (71.40, 74.09)],
        "map_elites_line": [(49.07, 60.42), (38.29, 56.51), (52.20, 52.20), (74.55, 75.61)],
        "cma_me": [(36.50, 42.82), (38.02, 53.09), (34.54, 34.54), (75.82, 75.89)],
        "cma_mae": [(64.86, 83.31), (52.65, 80.46), (79.27, 79.29), (79.03, 79.24)],
    }
    for algorithm, scores in published.items():
        for task, score in zip(TASKS, scores, strict=True):
            sigma0 = 0.1 if task == "arm" else 0.5
            # The paper's CMA-ME has the restarts and selection of its CMA-MAE.
            rules = {"selection": "mu", "restart": "basic"} if algorithm == "cma_me" else {}
            setting = Setting(task, algorithm, sigma0=sigma0, published=score, **rules)
            yield algorithm, setting
            if algorithm == "cma_me":
                yield "cma_me_as_published", replace(setting, as_published=True)
    mega = Setting(algorithm="cma_mega", dims=1000, emitters=1, sigma0=10.0)
    for task, score in zip(TASKS, [(75.29, 100), (62.54, 100), None, (74.18, 74.18)], strict=True):
        if score:
            sigma0 = 0.05 if task == "arm" else 10.0
            yield "cma_mega", replace(mega, task=task, sigma0=sigma0, published=score)
    maega = Setting(algorithm="cma_maega", sigma0=10.0, steps=2000, alpha=0.02)
    yield "cma_maega", replace(maega, published=(75.29, 99.9))
    sweep = {
        0.0: (4.54, 4.71), 0.001: (57.13, 69.64), 0.01: (61.23, 78.98), 0.1: (59.89, 75.52),
        1.0: (39.52, 46.51),
    }  # fmt: skip
    for alpha, score in sweep.items():
        yield "alpha", Setting(alpha=alpha, steps=5000, published=score)


def main() -> None:
    """Runs one setting, or all of the table, and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=TASKS, default="sphere")
    parser.add_argument("--algorithm", default="cma_mae")
    for name, default in [
        ("dims", 100), ("emitters", 15), ("batch", 36), ("steps", 10_000), ("seeds", 5),
    ]:  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, value in [("sigma0", 0.5), ("alpha", 0.01), ("step-size", 1.0)]:
        parser.add_argument(f"--{name}", type=float, default=value)
    parser.add_argument("--optimizer", choices=["adam", "ascent"], default="ascent")
    parser.add_argument("--selection", default="auto")
    parser.add_argument("--restart", default="auto")
    parser.add_argument("--strategy", default="cma_es")
    parser.add_argument("--as-published", action="store_true", help="float64, one by one")
    parser.add_argument("--bars", action="store_true", help="all settings of README.md's table")
    parser.add_argument("--only", nargs="*", help="with --bars: parts, e.g. cma_mae alpha")
    parser.add_argument("--json", type=Path, help="where to put all figures")
    options = parser.parse_args()
    settings = [setting for part, setting in bars() if part in (options.only or [part])]
    if not options.bars:
        fields = {name: getattr(options, name) for name in Setting.__dataclass_fields__
                  if hasattr(options, name)}  # fmt: skip
        settings = [Setting(**fields)]
    for setting in settings:
        result = measure(setting, options.seeds)
        mean = result["mean"]
        name = setting.algorithm + " as published" * setting.as_published
        print(
            f"{name:19} {setting.task:9} alpha {setting.alpha:<5} "
            f"QD score {mean['qd_score_normalised']:6.2f}, coverage {mean['coverage']:6.2f} %; "
            f"published {setting.published}; run {mean['seconds']:.1f} s, "
            f"compilation {result['seconds_compile']:.1f} s",
            flush=True,
        )
        if options.json:
            put(options.json, result)


def put(path: Path, result: dict[str, Any]) -> None:
    """Adds a result to a file of results, and replaces that of the same setting."""
    kept = json.loads(path.read_text())["results"] if path.exists() else []
    result = json.loads(json.dumps(result))
    environment = {
        "jax": jax.__version__,
        "device": str(jax.devices()[0]),
        "python": platform.python_version(),
        "date": time.strftime("%F"),
    }
    results = [old for old in kept if old["setting"] != result["setting"]] + [result]
    path.write_text(json.dumps({"environment": environment, "results": results}, indent=1))


if __name__ == "__main__":
    main()
