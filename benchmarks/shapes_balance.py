"""Does the search balance a biased generator, according to an independent evaluator?

Question: the built-in generator mostly draws red triangles and blue squares. Do the exported elites
    of a search have equal shares of all four groups of colour x shape, clean drawings and correct
    labels? How do as many random samples compare, and how many cells do as many random evaluations
    fill, with any images and with clean shapes?
Method: for each seed: `runs.sample`, `dataset.export` of 1,000 images, `dataset.baseline` of 1,000.
    `shapes_evaluator.py` evaluates both folders from disk, by geometry and hue; the search does not
    use it. Cells of the search are compared with the cells that as many random latents fill, scored
    by the same encoder, in the same grid, with only elites above search.threshold_min. Clean cells
    have an elite that is a clean shape according to the evaluator; for random sampling they are
    also counted without that floor. Mean and standard deviation.
Command: python benchmarks/shapes_balance.py --seeds 5 --json benchmarks/results/shapes_balance.json
Result: 2026-11-30: 97 % clean; groups of 22.6 to 25 %, compared with 1.3 to 23 % of random samples;
    1.25 times the cells, and 1.29 times those with a clean shape; see benchmarks/README.md.
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from shapes_evaluator import judge, judge_folder, summarise

from qdgs_jax.config import Config, load_config
from qdgs_jax.datasets import export as dataset
from qdgs_jax.keys import make_key, row_keys
from qdgs_jax.problem import Problem, load_problem
from qdgs_jax.runs import sampling as runs
from qdgs_jax.runs.results import load_run
from qdgs_jax.typing import Array, Latents, Params

CONFIG = Path(__file__).parents[1] / "configs/search/shapes.toml"


def main() -> None:
    """Runs all seeds and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="where to write the figures of each seed")
    parser.add_argument("--keep", type=Path, help="keep runs and datasets in this folder")
    options = parser.parse_args()
    config = load_config(options.config)
    with tempfile.TemporaryDirectory() as temporary:
        root = options.keep or Path(temporary)
        rows = [measure_seed(config, seed, options.count, root) for seed in range(options.seeds)]
    result = {
        "command": f"shapes_balance.py --seeds {options.seeds} --count {options.count}",
        "device": jax.devices()[0].device_kind,
        "config": options.config.name,
        "generations": config.search.generations,
        "seeds": rows,
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print_table(rows)


def measure_seed(config: Config, seed: int, count: int, root: Path) -> dict[str, Any]:
    """The figures of one seed, for the search and for random sampling."""
    config = dataclasses.replace(config, seed=seed)
    run, exported, sampled = (root / f"{name}-{seed}" for name in ("run", "export", "baseline"))
    summary = runs.sample(config, run)
    finished = load_run(run)
    resolved, elites = finished.config, finished.elites  # all in one grid
    problem = load_problem(resolved)
    balance = dataset.export(run, exported, count=count, seed=seed)
    dataset.baseline(resolved, sampled, count=count, seed=seed)
    best, latents = sample_randomly(problem, summary["evaluations"])
    clean = find_clean(problem, latents)
    above = best > resolved.search.threshold_min
    return {
        "seed": seed,
        "evaluations": summary["evaluations"],
        "search": {
            "cells": len(elites.index),
            "clean cells": int(find_clean(problem, elites.latents).sum()),
            "different elites exported": sum(each.distinct for each in balance.bins),
            **judge_dataset(exported),
        },
        "random": {
            "cells": int(above.sum()),
            "clean cells": int(clean[above].sum()),
            "cells without floor": len(best),
            "clean cells without floor": int(clean.sum()),
            **judge_dataset(sampled),
        },
    }


def judge_dataset(folder: Path) -> dict[str, float]:
    """Shares of the four groups, and of labels and bins that agree with the evaluator."""
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    records = {record["file_name"]: record for record in map(json.loads, lines)}
    found = {path.relative_to(folder).as_posix(): each for path, each in judge_folder(folder)}
    shares = summarise(found.values())
    groups = [share for name, share in shares.items() if name != "clean"]
    clean = {name: judgement for name, judgement in found.items() if judgement.clean}
    labels = [records[name]["label_name"] == each.shape for name, each in clean.items()]
    bins = [records[name]["bin"] == each.group for name, each in clean.items()]
    return {
        **shares,
        "smallest group": min(groups),
        "label agrees, of clean": float(np.mean(labels)) if labels else 0.0,
        "bin agrees, of clean": float(np.mean(bins)) if bins else 0.0,
        "bin agrees, of all": sum(bins) / len(found),
    }


def sample_randomly(problem: Problem, evaluations: int) -> tuple[np.ndarray, np.ndarray]:
    """The best random latents of each filled cell: objective [n], latents [n, D]."""
    config, archive = problem.config, problem.search.archive
    size = config.search.chunk_size
    latent_key = make_key(config.seed, "latents to fill cells with")
    crop_key = make_key(config.seed, "crops to fill cells with")

    @jax.jit
    def score(params: Params, latents: Latents, start: int) -> tuple[Array, Array]:
        keys = row_keys(crop_key, start, size)
        scores, _ = problem.score.score_rows(params, keys, latents, ())
        return archive.index_of(scores.measures), scores.objective

    found = []
    for start in range(0, evaluations, size):
        latents = problem.generator.sample_rows(row_keys(latent_key, start, size))
        scored = score(problem.params, latents, start)
        found.append(jax.device_get((*scored, latents)))
    columns = (np.concatenate(each)[:evaluations] for each in zip(*found, strict=True))
    cells, objective, latents = columns
    order = np.argsort(-objective, kind="stable")
    _, first = np.unique(cells[order], return_index=True)
    return objective[order[first]], latents[order[first]]


def find_clean(problem: Problem, latents: np.ndarray, size: int = 64) -> np.ndarray:
    """Whether each of latents [n, D] renders a clean shape, according to the evaluator."""
    render = jax.jit(problem.generator.render)
    clean = []
    for start in range(0, len(latents), size):
        rows = np.arange(start, start + size).clip(max=len(latents) - 1)
        images = np.asarray(render(problem.params["generator"], jnp.asarray(latents[rows])))
        clean += [judge((255 * image).round().astype(np.uint8)).clean for image in images]
    return np.array(clean[: len(latents)])


def print_table(rows: list[dict[str, Any]]) -> None:
    """Mean and standard deviation over seeds, in Markdown."""
    print("| | search | random sampling |\n|---|---:|---:|")
    for name in dict.fromkeys([*rows[0]["search"], *rows[0]["random"]]):
        texts = []
        for method in ("search", "random"):
            values = np.array([row[method].get(name, np.nan) for row in rows])
            form = ".1%" if values.max() <= 1 else ",.0f"
            known = f"{values.mean():{form}} ± {values.std():{form}}"
            texts.append("" if np.isnan(values).any() else known)
        print(f"| {name} | {texts[0]} | {texts[1]} |")


if __name__ == "__main__":
    main()
