"""What do the algorithms of QDax and of this package find on the built-in shapes?

Question: QD score, coverage and evaluations/s of CMA-MAEGA, CMA-ME and MAP-Elites (iso-line) here,
    and of MAP-Elites (iso-line) and CMA-ME in QDax 0.5, on the same problem at equal evaluations.
Method: `configs/search/shapes.toml`, with its score, its cells and its limits of what may be an
    elite: the floor, and images and latents in distribution. CMA-MAEGA has the options of that
    config. The others have as many emitters, as many evaluations a generation, and the same
    standard deviations of latents, `--sigmas`; line_sigma is 0.2 everywhere. All start from the
    archive of the same random latents, which are the seed's. QDax's cells are the centres of the
    same grid. Its CMA-ME is a pool of `CMAImprovementEmitter`, for which refused
    latents keep their objective (`QDaxScore.keep_objective`), as they do for CMA-ME here: with -inf
    it ranks by NaN. Only allowed elites are counted. Weights are arguments of all programs, which
    run in turns in one process, one seed after the other. Evaluations/s: of the compiled loop, by
    its median time. QD score: sum of the elites' objectives. Mean and standard deviation over
    seeds.
Differences: QDax's pool runs one emitter a generation, here all run at once: at equal evaluations
    it has as many times the generations as emitters, with smaller batches. Its CMA-ES starts at 0,
    here at the best of the random latents.
Command: python benchmarks/qdax_on_shapes.py --seeds 5 --json benchmarks/results/qdax_on_shapes.json
Result: not measured yet.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median, pstdev
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl
from qdax.core.emitters.cma_improvement_emitter import CMAImprovementEmitter
from qdax.core.emitters.cma_pool_emitter import CMAPoolEmitter
from qdax.core.emitters.emitter import Emitter
from qdax.core.emitters.mutation_operators import isoline_variation
from qdax.core.emitters.standard_emitters import MixingEmitter
from qdax.core.map_elites import MAPElites

from qdgs_jax import search as searches
from qdgs_jax.config import load_config
from qdgs_jax.emitters.qdax import QDaxScore
from qdgs_jax.problem import Problem, load_problem
from qdgs_jax.search import Search, SearchState, make_search
from qdgs_jax.search_config import SearchConfig
from qdgs_jax.typing import Array, Key, Latents, Params

CONFIG = Path(__file__).parents[1] / "configs/search/shapes.toml"
LINE_SIGMA = 0.2
COLUMNS = (
    "library", "algorithm", "sigma", "QD score", "coverage, %", "best objective", "evaluations/s",
    "compilation, s",
)  # fmt: skip


@dataclass
class Program:
    """A search of one library, compiled.

    Attributes:
        weights: first argument of the next two.
        start: (weights, key, latents) -> the state before the loop.
        loop: (weights, state) -> the state after all evaluations.
        objective: state -> objective of the allowed elites [K], -inf in other cells.
    """

    weights: Any
    start: Callable[[Any, Key, Latents], Any]
    loop: Callable[[Any, Any], Any]
    objective: Callable[[Any], Array]

    def compile(self, key: Key, latents: Latents) -> float:
        """Seconds of the loop's compilation."""
        self.start = jax.jit(self.start).lower(self.weights, key, latents).compile()
        state = self.start(self.weights, key, latents)
        began = time.perf_counter()
        self.loop = jax.jit(self.loop, donate_argnums=1).lower(self.weights, state).compile()
        return time.perf_counter() - began

    def run(self, key: Key, latents: Latents) -> dict[str, float]:
        """Seconds of the loop, and the scores after it."""
        state = jax.block_until_ready(self.start(self.weights, key, latents))
        began = time.perf_counter()
        state = jax.block_until_ready(self.loop(self.weights, state))
        seconds = time.perf_counter() - began
        return {"seconds": seconds, **scores_of(self.objective(state))}


def scores_of(objective: Array) -> dict[str, float]:
    """Scores of elites [K] with -inf in empty cells."""
    values = np.asarray(objective, np.float64)
    filled = values[values > -np.inf]
    return {
        "qd_score": float(np.maximum(filled, 0).sum()),
        "coverage": 100 * len(filled) / len(values),
        "best_objective": float(filled.max(initial=-np.inf)),
    }


def ours(problem: Problem, search: Search, evaluations: int) -> Program:
    """A search by this package."""

    def loop(params: Params, state: SearchState) -> SearchState:
        length = evaluations // search.evaluations_per_generation
        return searches.run(search, params, state, length)[0]

    start = partial(searches.init, search)
    return Program(problem.params, start, loop, lambda state: state.elites.objective)


def qdax(problem: Problem, emitter: Emitter, evaluations: int, *, keep: bool = False) -> Program:
    """A search by QDax, with its own repertoire.

    Args:
        keep: whether refused latents keep their objective.
    """
    centroids = jnp.asarray(problem.search.archive.centres(), jnp.float32)
    map_elites = partial(MAPElites, emitter=emitter, metrics_function=lambda repertoire: {})

    def start(score: QDaxScore, key: Key, latents: Latents) -> tuple[Any, ...]:
        repertoire, state, _ = map_elites(score).init(latents, centroids, key)
        return repertoire, state, key

    def loop(score: QDaxScore, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        length = evaluations // emitter.batch_size
        return jax.lax.scan(map_elites(score).scan_update, carry, length=length)[0]

    def objective(carry: tuple[Any, ...]) -> Array:
        fitnesses = carry[0].fitnesses[:, 0]
        return jnp.where(fitnesses > problem.search.floor, fitnesses, -jnp.inf)

    score = QDaxScore(problem.search, problem.params, keep_objective=keep)
    return Program(score, start, loop, objective)


def programs_of(
    problem: Problem, sigmas: list[float], evaluations: int
) -> dict[tuple[str, str, str], Program]:
    """(library, algorithm, sigma) -> program."""
    search, options = problem.search, problem.config.search
    E = options.emitters
    B, rest = divmod(search.evaluations_per_generation, E)
    assert not rest
    programs = {("here", "CMA-MAEGA", ""): ours(problem, search, evaluations)}
    for sigma in sigmas:
        named = {
            "CMA-ME": {"algorithm": "cma_me"},
            "MAP-Elites": {"algorithm": "map_elites_line", "line_sigma": LINE_SIGMA},
        }
        for name, own in named.items():
            config = SearchConfig(
                emitters=E, batch_size=B, sigma0=sigma, threshold_min=options.threshold_min, **own
            )
            made = make_search(
                config, search.archive, problem.score,
                init_memory=search.init_memory, repair=search.repair,
            )  # fmt: skip
            programs["here", name, f"{sigma}"] = ours(problem, made, evaluations)
        vary = partial(isoline_variation, iso_sigma=sigma, line_sigma=LINE_SIGMA)
        mixing = MixingEmitter(lambda genotypes, key: genotypes, vary, 1.0, E * B)
        improvement = CMAImprovementEmitter(
            B, problem.generator.latent_size, jnp.asarray(search.archive.centres(), jnp.float32),
            sigma_g=sigma, min_count=1,
        )  # fmt: skip
        pool = CMAPoolEmitter(E, improvement)
        programs["QDax", "CMA-ME", f"{sigma}"] = qdax(problem, pool, evaluations, keep=True)
        programs["QDax", "MAP-Elites", f"{sigma}"] = qdax(problem, mixing, evaluations)
    return programs


def compare(
    problem: Problem, programs: dict[tuple[str, str, str], Program], seeds: int, evaluations: int
) -> list[dict[str, Any]]:
    """Runs all programs in turns, once for each seed."""

    def begin(seed: int) -> tuple[Key, Latents]:
        latents_key, key = jax.random.split(jax.random.key(seed))
        return key, problem.generator.sample(latents_key, problem.config.search.initial_samples)

    rows = [
        {"library": library, "algorithm": algorithm, "sigma": sigma}
        | {"seconds_compile": program.compile(*begin(0)), "seeds": []}
        for (library, algorithm, sigma), program in programs.items()
    ]
    for seed in range(seeds):
        for row, program in zip(rows, programs.values(), strict=True):
            row["seeds"].append(program.run(*begin(seed)))
    for row in rows:
        columns = {name: [each[name] for each in row["seeds"]] for name in row["seeds"][0]}
        row["evaluations_per_second"] = evaluations / median(columns.pop("seconds"))
        for name, values in columns.items():
            row[name], row[f"{name}_deviation"] = mean(values), pstdev(values)
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    """Mean and standard deviation over seeds, in Markdown."""
    print(f"| {' | '.join(COLUMNS)} |\n|---|---|{'---:|' * 6}")
    for row in rows:
        print(
            f"| {row['library']} | {row['algorithm']} | {row['sigma']} "
            f"| {row['qd_score']:,.0f} ± {row['qd_score_deviation']:,.0f} "
            f"| {row['coverage']:.2f} ± {row['coverage_deviation']:.2f} "
            f"| {row['best_objective']:.1f} ± {row['best_objective_deviation']:.1f} "
            f"| {row['evaluations_per_second']:,.0f} | {row['seconds_compile']:.1f} |"
        )


def main() -> None:
    """Runs all programs with all seeds, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.1, 0.5])
    parser.add_argument("--evaluations", type=int, help="the config's by default")
    parser.add_argument("--json", type=Path, help="where to write the figures of each seed")
    options = parser.parse_args()
    threadpoolctl.threadpool_limits(1, user_api="blas")
    problem = load_problem(load_config(options.config))
    a_generation = problem.search.evaluations_per_generation
    generations = problem.config.search.generations
    if options.evaluations:
        generations = max(1, options.evaluations // a_generation)
    evaluations = generations * a_generation
    programs = programs_of(problem, options.sigmas, evaluations)
    rows = compare(problem, programs, options.seeds, evaluations)
    print_table(rows)
    if options.json:
        result = {
            "jax": jax.__version__, "qdax": version("qdax"), "device": str(jax.devices()[0]),
            "cores": os.cpu_count(), "python": platform.python_version(),
            "date": time.strftime("%F"), "config": options.config.name, "evaluations": evaluations,
            "line_sigma": LINE_SIGMA, "results": rows,
        }  # fmt: skip
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
