"""Does the search balance a biased generator, in the eyes of somebody else?

Question: the built-in generator learned red triangles and blue squares. Rendering the elites of a
    search, in how far do we get all four of colour x shape, cleanly drawn, and right about which
    is which? What does plain random sampling give for as many images, and how much of the grid
    does it fill for as many evaluations?
Method: for each seed: `runs.sample`, `dataset.export` of 1,000 images, `dataset.baseline` of 1,000.
    Both folders are judged from disk by `shapes_evaluator.py`, which is geometry and hue, and has
    no part in the search. Coverage: the search's cells against those that as many random latents
    fill, scored by the same encoder, in the same archive: the same grid, and elites above
    search.threshold_min alone. Mean and standard deviation over seeds.
Command: python benchmarks/shapes_balance.py --seeds 5 --json benchmarks/results/shapes_balance.json
Result: 97 % clean, groups of 22 to 25 % against 1.4 to 23 % of random samples, and 2.2 times the
    cells with an elite above 105, but 1.3 times without that floor; see benchmarks/README.md.
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
from shapes_evaluator import judge_folder, summarise

from qdgs_jax import dataset, runs
from qdgs_jax.config import Config, load_config

CONFIG = Path(__file__).parents[1] / "configs/shapes.toml"


def main() -> None:
    """Runs all seeds and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="where to write the figures of each seed")
    parser.add_argument("--keep", type=Path, help="folder for runs and datasets; else they go")
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
    resolved = runs.load_run(run).config  # both datasets and both coverages in one grid
    dataset.export(run, exported, count=count, seed=seed)
    dataset.baseline(resolved, sampled, count=count, seed=seed)
    return {
        "seed": seed,
        "evaluations": summary["evaluations"],
        "search": {
            "coverage": summary["coverage"],
            "qd_score": summary["qd_score"],
            **judge_dataset(exported),
        },
        "random": {
            **sample_randomly(resolved, summary["evaluations"]),
            **judge_dataset(sampled),
        },
    }


def judge_dataset(folder: Path) -> dict[str, float]:
    """Shares of the four groups, and how often the dataset's own words agree with the evaluator."""
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


def sample_randomly(config: Config, evaluations: int) -> dict[str, float]:
    """Coverage and QD score of an archive that random latents fill."""
    problem = runs.load_problem(config)
    archive, size = problem.search.archive, config.search.chunk_size
    score = jax.jit(problem.score)
    best = np.full(archive.size, -np.inf)
    latent_key, score_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1))
    for start in range(0, evaluations, size):
        latents = problem.generator.sample(jax.random.fold_in(latent_key, start), size)
        key = jax.random.fold_in(score_key, start)
        objective, measures = jax.device_get(score(problem.params, key, latents))
        cells = np.asarray(archive.index_of(jnp.asarray(measures)))
        elite = objective > config.search.threshold_min
        elite[evaluations - start :] = False
        np.maximum.at(best, cells[elite], objective[elite])
    return {
        "coverage": float((best > -np.inf).mean()),
        "qd_score": float(np.maximum(best, 0).sum()),
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Mean and standard deviation over seeds, in Markdown."""
    print("| | search | random sampling |\n|---|---:|---:|")
    for name in rows[0]["search"]:
        cells = []
        for method in ("search", "random"):
            values = np.array([row[method][name] for row in rows])
            if name == "qd_score":
                cells.append(f"{values.mean():,.0f} ± {values.std():,.0f}")
            else:
                cells.append(f"{values.mean():.1%} ± {values.std():.1%}")
        print(f"| {name.replace('_', ' ')} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
