"""How does the whole loop compare with PyTorch's, as published and at its best?

Question: seconds, evaluations/s and memory of the paper's search here and in PyTorch, and what a
    search has found after equal evaluations and after equal time.
Method: CMA-MAEGA with the paper's options. Three programs have its one emitter of three branches:
    `published` and `strong` (`pytorch_loop.py`, with pyribs), and `here`. `strong, many` and `here,
    many` have more emitters. Domains: `built-in` (the built-in VAE and CLIP, 50 x 50 cells),
    `shapes` (the built-in VAE and a ViT-B/32 of random weights) and `faces` (StyleGAN2-256 in w+
    and ViT-B/32 of random weights; 5,000 cells, as several processes share the memory). All read
    the same files of weights, and must return the same scores and gradients for the same latents,
    without crops. Each program has its own process on the same device with its default threads, and
    they run in turns while the others wait; the PyTorch programs keep freed memory
    (MALLOC_TRIM_THRESHOLD_). Before that, `strong` tries eager and compiled networks, both layouts,
    and three ways to pull several cotangents back, and keeps the fastest. Start-up is from the
    start of the process to the first generation: imports, weights, the random latents to start
    from, and compilation, here or by `strong`; compilation is also reported apart. An evaluation is
    a latent whose scores are computed, a gradient a row of a Jacobian. With --curves, each seed of
    each program runs alone on the built-in domain, until it has both the evaluations and the
    seconds asked for; QD score and coverage count elites with an objective above 0. A crop of its
    own for each score is noise that fills cells, so the elites after equal evaluations are also
    scored anew by whole images, in an empty archive.
Command: python benchmarks/against_pytorch.py --curves \
        --json benchmarks/results/against_pytorch.json
    (needs the extra `bench`; --small has toy networks, to check that the script works)
Result: two x86-64 cores, 2026-11-30, one emitter: 6.6 (built-in), 2.7 (shapes) and 2.9 (faces)
    times as fast as published, 2.7, 1.18 and 1.08 times as fast as strong; more in
    benchmarks/README.md.
"""

import argparse
import dataclasses
import functools
import json
import multiprocessing
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from qdgs_jax.config import Config, load_config

CONFIGS = Path(__file__).parents[1] / "configs/search"
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
TOLERANCE = 1e-3  # relative; float32 in two orders of summation gives about 1e-6
CHECKED = 4  # latents whose scores all programs must agree on


@dataclasses.dataclass(frozen=True)
class Domain:
    """A config, its models, and how long it runs between two readings of the clock."""

    config: Config
    encoder: str
    many: tuple[int, int]
    """Emitters and batch size of the programs with many emitters."""
    generations: int


@dataclasses.dataclass(frozen=True)
class Program:
    """A line of the table."""

    name: str
    kind: str
    """`published`, `strong` or `here`."""
    emitters: int
    batch_size: int

    @property
    def evaluations(self) -> int:
        """Of a generation."""
        return self.emitters * (1 + self.batch_size)


def domains(small: bool) -> dict[str, Domain]:
    """By name."""
    shapes, faces = (load_config(CONFIGS / f"{name}_paper.toml") for name in ("shapes", "faces"))
    vae, encoder = (dataclasses.replace(getattr(shapes, name), model=model) for name, model in
                    (("generator", "shapes-vae"), ("encoder", "shapes-clip")))  # fmt: skip
    shapes = dataclasses.replace(shapes, generator=vae, encoder=encoder)
    # The tokenizer of the stand-in for CLIP knows words of the shapes alone.
    words = [("red", "blue"), ("triangle", "square"), ("red triangle", "square"),
             ("blue", "triangle")]  # fmt: skip
    measures = tuple(
        dataclasses.replace(measure, low=low, high=high, cells=cells)
        for measure, (low, high), cells in zip(faces.measures, words, (10, 10, 5, 10), strict=True)
    )
    objective = dataclasses.replace(
        faces.objective, positive=shapes.objective.positive, negative=shapes.objective.negative
    )
    search = dataclasses.replace(faces.search, initial_samples=16)
    faces = dataclasses.replace(
        faces, objective=objective, measures=measures, search=search, encoder=encoder, notice=""
    )
    automatic = tuple(dataclasses.replace(each, range="auto") for each in shapes.measures)
    built_in = dataclasses.replace(shapes, measures=automatic)
    return {
        "built-in": Domain(
            built_in, "shapes-clip", (2, 3) if small else (16, 7), 2 if small else 50
        ),
        "shapes": Domain(shapes, "ViT-B/32", (2, 3) if small else (4, 7), 1 if small else 3),
        "faces": Domain(faces, "ViT-B/32", (2, 3) if small else (2, 5), 1),
    }


def programs(domain: Domain) -> list[Program]:
    """All programs of a domain."""
    one = domain.config.search.emitters, domain.config.search.batch_size
    return [
        Program("published", "published", *one),
        Program("strong", "strong", *one),
        Program("strong, many", "strong", *domain.many),
        Program("here", "here", *one),
        Program("here, many", "here", *domain.many),
    ]


# Files that all programs read.


def prepare(domain: Domain, folder: Path, seeds: int, small: bool) -> Config:
    """Writes models, prompts and initial latents; returns the config that names them."""
    import jax
    from safetensors.numpy import save_file
    from stylegan2 import SMALL, random_weights, to_torch

    from qdgs_jax import encoders, generators
    from qdgs_jax.models import clip, stylegan2
    from qdgs_jax.problem import load_problem

    folder.mkdir()
    built_in = encoders.BUILT_IN["shapes-clip"]
    shutil.copytree(built_in, folder / "encoder")
    config = domain.config
    if domain.encoder != "shapes-clip":
        own, _ = clip.load(built_in)
        vision = clip.TowerConfig(32, 2, 2, 64) if small else clip.CLIPConfig().vision
        size = {"image_size": 64} if small else {"image_size": 224, "patch_size": 32}
        network = dataclasses.replace(own, vision=vision, embedding_size=512, **size)
        clip.save(folder / "encoder", network, clip.init(network, jax.random.key(0)))
    if config.generator.model != "shapes-vae":
        made = SMALL if small else stylegan2.StyleGAN2Config()
        stylegan2.save(folder / "generator", made, random_weights(made))
        source = dataclasses.replace(config.generator, model=str(folder / "generator"))
        config = dataclasses.replace(config, generator=source)
    source = dataclasses.replace(config.encoder, model=str(folder / "encoder"))
    problem = load_problem(dataclasses.replace(config, encoder=source))
    config, weights = problem.config, problem.params["generator"]
    if config.generator.model == "shapes-vae":
        shutil.copy(
            generators.BUILT_IN["shapes-vae"] / "model.safetensors",
            folder / "generator.safetensors",
        )
        taps = ()
    else:
        taps = stylegan2.load(config.generator.model)[0].filter_taps
        arrays = {name: each.numpy() for name, each in to_torch(weights["synthesis"]).items()}
        styles = {name: np.array(weights[name]) for name in ("mean_style", "style_std")}
        save_file(arrays | styles, folder / "generator.safetensors")
    pairs = [problem.params["prompts"].objective, *problem.params["prompts"].measures]
    stacked = np.stack([np.concatenate([pair.near, pair.far]) for pair in pairs])
    np.savez(folder / "prompts.npz", prompts=stacked)
    for seed in range(seeds):
        seeded = dataclasses.replace(problem, config=dataclasses.replace(config, seed=seed))
        np.save(folder / f"{seed}.npy", seeded.initial_latents()[1])
    norms = np.linalg.norm(problem.generator.sample(jax.random.key(0), 10_000), axis=-1)
    read = clip.load(folder / "encoder")[0]
    setting = {
        "latent_size": problem.generator.latent_size, "latents": str(folder),
        "mean": read.pixel_mean, "std": read.pixel_std, "filter_taps": taps,
        "regularisation": config.objective.regularisation,
        "radius": config.objective.radius * float(norms.mean()),
        "uniqueness": config.objective.uniqueness,
        "cells": [measure.cells for measure in config.measures],
        "ranges": [measure.ends for measure in config.measures],
    }  # fmt: skip
    (folder / "setting.json").write_text(json.dumps(setting))
    return config


# A program's process.


class Here:
    """This package's search, with the methods of `pytorch_loop.Loop`."""

    def __init__(self, program: Program, config: Config, generations: int) -> None:
        import jax

        from qdgs_jax import search as searches
        from qdgs_jax.problem import load_problem

        search = dataclasses.replace(
            config.search, emitters=program.emitters, batch_size=program.batch_size
        )
        self.problem = load_problem(dataclasses.replace(config, search=search))
        self.jax, self.searches, self.generations = jax, searches, generations
        self.program = jax.jit(searches.run, static_argnums=(0, 3), donate_argnums=2)
        self.init = jax.jit(searches.init, static_argnums=0)

    def scores(self, latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Objective and measures [N, 1 + M] and gradients [N, 1 + M, D], without crops."""
        scores, _ = self.score(self.problem.params, self.jax.random.key(0), latents, ())
        values = np.column_stack([scores.objective, scores.measures])
        return values, np.array(scores.jacobian)

    @functools.cached_property
    def score(self) -> Any:
        """The score of whole images, with its Jacobian."""
        from qdgs_jax.scoring import make_score

        problem = self.problem
        encoder = dataclasses.replace(problem.config.encoder, random_crops=False)
        config = dataclasses.replace(problem.config, encoder=encoder)
        score = make_score(config, problem.generator, problem.encoder)
        return self.jax.jit(score.with_jacobian())

    def start(self, seed: int) -> None:
        config = dataclasses.replace(self.problem.config, seed=seed)
        key, latents = dataclasses.replace(self.problem, config=config).initial_latents()
        self.state = self.init(self.problem.search, self.problem.params, key, latents)
        self.jax.block_until_ready(self.state)

    def compile(self) -> float:
        """Seconds to compile; `start` comes before."""
        began = time.perf_counter()
        arguments = self.problem.search, self.problem.params, self.state, self.generations
        self.compiled = self.program.lower(*arguments).compile()
        return time.perf_counter() - began

    def advance(self) -> float:
        """Seconds of `generations` generations."""
        began = time.perf_counter()
        self.state, self.metrics = self.compiled(self.problem.params, self.state)
        self.jax.block_until_ready(self.state)
        return time.perf_counter() - began

    def quality(self) -> tuple[float, float]:
        """QD score and coverage."""
        return float(self.metrics.qd_score), float(self.metrics.coverage)

    def elites(self) -> np.ndarray:
        """Latents [n, D] of elites with an objective above 0."""
        return np.asarray(self.state.elites.latents)[np.asarray(self.state.elites.objective) > 0]

    def quality_without_crops(self, latents: np.ndarray) -> tuple[float, float]:
        """QD score and coverage of latents that are scored by whole images, in an empty archive."""
        values = np.concatenate(
            [self.scores(np.resize(latents[i : i + 64], (64, latents.shape[1])))[0]
             [: len(latents[i : i + 64])] for i in range(0, len(latents), 64)]
        )  # fmt: skip
        archive = self.problem.search.archive
        cells, best = np.asarray(archive.index_of(values[:, 1:])), np.zeros(archive.size)
        np.maximum.at(best, cells, values[:, 0])
        return float(best.sum()), float((best > 0).mean())


class There:
    """A PyTorch program, with the same methods."""

    def __init__(self, program: Program, folder: Path, generations: int, device: str) -> None:
        from pytorch_loop import Loop, Published, Strong

        self.generations, self.program = generations, program
        published = program.kind == "published"
        scorer = (Published if published else Strong)(folder, device)
        dtype = np.float64 if published else np.float32  # pyribs' default, and half the memory
        self.loop = Loop(scorer, program.emitters, program.batch_size, dtype)
        self.start, self.quality = self.loop.start, self.loop.quality
        self.ways: dict[str, float] = {}

    def scores(self, latents: np.ndarray) -> tuple[np.ndarray, ...]:
        import torch

        scorer = self.loop.scorer
        scorer.crops = False
        found = scorer.scores(torch.tensor(latents, device=scorer.device), True)
        scorer.crops = True
        scorer.forget()
        return tuple(np.array(each.cpu()) for each in found)

    def compile(self) -> float:
        """Seconds in which `strong` tries all its ways and takes the fastest."""
        from pytorch_loop import Strong

        began = time.perf_counter()
        if isinstance(self.loop.scorer, Strong):
            program = self.program
            self.ways = self.loop.scorer.choose(
                program.emitters, program.emitters * program.batch_size
            )
        return time.perf_counter() - began

    def advance(self) -> float:
        return self.loop.advance(self.generations)

    def elites(self) -> np.ndarray:
        """Latents [n, D] of elites with an objective above 0."""
        found = self.loop.result.data(["solution", "objective"])
        return np.asarray(found["solution"], np.float32)[found["objective"] > 0]


def serve(
    program: Program, config: Config, folder: Path, generations: int, device: str, pipe: Connection
) -> None:
    """Loads, then answers: a seed restarts the search, "advance" runs it, "elites" are its latents,
    latents are scored without crops, None ends the process."""
    began = time.perf_counter()
    if program.kind == "here":
        worker: Any = Here(program, config, generations)
    else:
        worker = There(program, folder, generations, device)
    worker.start(0)
    loaded = time.perf_counter() - began
    compilation = worker.compile()
    worker.advance()
    found = worker.scores(np.load(folder / "0.npy")[:CHECKED])
    pipe.send({"scores": found, "loaded": loaded, "compilation": compilation,
               "ways": getattr(worker, "ways", {})})  # fmt: skip
    while (asked := pipe.recv()) is not None:
        if isinstance(asked, int):
            worker.start(asked)
            pipe.send(None)
        elif isinstance(asked, np.ndarray):
            pipe.send(worker.quality_without_crops(asked))
        elif asked == "elites":
            pipe.send(worker.elites())
        else:
            pipe.send((worker.advance(), worker.quality()))
    scale = 1 if sys.platform == "darwin" else 1024
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale)
    pipe.close()


# The comparison.


@contextmanager
def running(
    program: Program, config: Config, folder: Path, generations: int, device: str
) -> Iterator[tuple[Connection, dict[str, Any]]]:
    """A program's process: its pipe, and what it reported first. `memory` is reported last."""
    ours, theirs = multiprocessing.Pipe()
    environment = KEEP_MEMORY if program.kind != "here" else {}
    os.environ.update(environment)  # glibc reads it when the process begins
    context = multiprocessing.get_context("spawn")
    arguments = program, config, folder, generations, device, theirs
    began = time.perf_counter()
    process = context.Process(target=serve, args=arguments, daemon=True)
    process.start()
    for key in environment:
        del os.environ[key]
    theirs.close()
    report = ours.recv()
    report["started"] = time.perf_counter() - began
    yield ours, report
    ours.send(None)
    report["memory_bytes"] = ours.recv()
    process.join()


def speeds(domain: Domain, config: Config, folder: Path, rounds: int, device: str) -> Any:
    """All programs' reports, with the seconds of a generation in each round."""
    from contextlib import ExitStack

    reports, pipes = {}, {}
    with ExitStack() as stack:
        for program in programs(domain):
            manager = running(program, config, folder, domain.generations, device)
            pipe, report = stack.enter_context(manager)
            pipes[program.name], reports[program.name] = pipe, report
            print(f"  {program.name}: ready after {report['started']:.0f} s", flush=True)
        require_agreement({name: report["scores"] for name, report in reports.items()})
        times: dict[str, list[float]] = {name: [] for name in pipes}
        for _ in range(rounds):
            for name, pipe in pipes.items():
                pipe.send("advance")
                seconds, _ = pipe.recv()
                times[name].append(seconds / domain.generations)
    lines = {}
    for program in programs(domain):
        report = reports[program.name]
        second = median(times[program.name])
        rows = program.emitters * (1 + len(config.measures))
        lines[program.name] = {
            "emitters": program.emitters, "batch_size": program.batch_size,
            "seconds": times[program.name], "generation_s": second,
            "evaluations_per_s": program.evaluations / second, "gradients_per_s": rows / second,
            "memory_bytes": report["memory_bytes"],
            "loaded_s": report["loaded"], "compilation_s": report["compilation"],
            "ways_s": report["ways"],
        }  # fmt: skip
    return lines


def require_agreement(scores: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Ends the script if programs score the same latents differently."""
    for name, found in scores.items():
        for what, actual, desired in zip(
            ("scores", "gradients"), found, scores["here"], strict=True
        ):
            error = np.linalg.norm(actual - desired) / np.linalg.norm(desired)
            if not error < TOLERANCE:
                raise SystemExit(f"{what} of `{name}` differ from `here` by {error:.1e}")


def curves(
    domain: Domain, config: Config, folder: Path, seeds: int, evaluations: int, seconds: float,
    device: str,
) -> dict[str, Any]:  # fmt: skip
    """For each program and seed: evaluations, seconds, QD score and coverage as the search goes,
    and both of the elites after `evaluations`, scored anew without crops."""
    found: dict[str, Any] = {}
    elites: dict[str, list[np.ndarray]] = {program.name: [] for program in programs(domain)}
    for program in programs(domain):
        generations = max(1, 200 // program.evaluations)
        with running(program, config, folder, generations, device) as (pipe, _):
            for seed in range(seeds):
                pipe.send(seed)
                pipe.recv()
                rows = [(0, 0.0, 0.0, 0.0)]
                while rows[-1][0] < evaluations or rows[-1][1] < seconds:
                    pipe.send("advance")
                    took, quality = pipe.recv()
                    done = rows[-1][0] + generations * program.evaluations
                    if rows[-1][0] < evaluations <= done:
                        pipe.send("elites")
                        elites[program.name].append(pipe.recv())
                    rows.append((done, rows[-1][1] + took, *quality))
                found.setdefault(program.name, []).append(rows)
                print(f"  {program.name}, seed {seed}: {rows[-1]}", flush=True)
    anew: dict[str, list[tuple[float, float]]] = {}
    with running(programs(domain)[3], config, folder, 1, device) as (pipe, _):
        for name, each in elites.items():
            for latents in each:
                pipe.send(latents)
                anew.setdefault(name, []).append(pipe.recv())
    return {
        name: {
            "without_crops": dict(
                zip(("qd_score", "coverage"), np.transpose(anew[name]).tolist(), strict=True)
            ),
            "at_evaluations": summary(runs, 0, evaluations),
            "at_seconds": summary(runs, 1, seconds),
            "runs": [thin(run) for run in runs],
        }
        for name, runs in found.items()
    }


def summary(runs: list[list[tuple[float, ...]]], axis: int, at: float) -> dict[str, list[float]]:
    """QD score and coverage of each run, interpolated at a number of evaluations or seconds."""
    tables = [np.array(run).T for run in runs]
    return {
        name: [float(np.interp(at, table[axis], table[row])) for table in tables]
        for name, row in (("qd_score", 2), ("coverage", 3))
    }


def thin(run: list[tuple[float, ...]], points: int = 60) -> list[list[float]]:
    """About `points` rows of a run."""
    return [[round(each, 5) for each in row] for row in run[:: max(1, len(run) // points)]]


def draw(found: dict[str, Any], evaluations: int, seconds: float, path: Path) -> None:
    """QD score against evaluations and against time: mean and range of the seeds."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for panel, axis, end, label in zip(
        panels, (0, 1), (evaluations, seconds), ("evaluations", "seconds"), strict=True
    ):
        places = np.linspace(0, end, 100)
        for name, program in found.items():
            lines = np.array(
                [np.interp(places, *np.array(run).T[[axis, 2]]) for run in program["runs"]]
            )
            panel.plot(places, lines.mean(axis=0), label=name)
            panel.fill_between(places, lines.min(axis=0), lines.max(axis=0), alpha=0.2)
        panel.set_xlabel(label)
    panels[0].set_ylabel("QD score, mean and range of the seeds")
    panels[0].legend()
    figure.savefig(path, dpi=100)


def main() -> None:
    """Prints a table for each domain."""
    known = domains(small=False)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--domains", nargs="*", default=list(known), choices=known)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--curves", action="store_true", help="QD score as the search goes")
    parser.add_argument("--seeds", type=int, default=5, help="of the curves")
    parser.add_argument("--evaluations", type=int, default=8000, help="of the curves")
    parser.add_argument("--seconds", type=float, default=20.0, help="of the curves")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of PyTorch")
    parser.add_argument("--small", action="store_true", help="toy networks")
    parser.add_argument("--json", type=Path, help="where to write all figures, and a picture")
    options = parser.parse_args()
    result: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores", "date": time.strftime("%F"),
        "versions": {name: version(name) for name in ("jax", "torch", "ribs", "transformers")},
        "domains": {},
    }  # fmt: skip
    if options.json and options.json.exists():  # keeps domains that are not measured now
        result["domains"] = json.loads(options.json.read_text())["domains"]
    with tempfile.TemporaryDirectory() as root:
        for name in options.domains:
            domain = domains(options.small)[name]
            folder = Path(root) / name
            arguments = domain, folder, options.seeds, options.small
            with multiprocessing.get_context("spawn").Pool(1) as pool:  # no backend in this process
                config = pool.apply(prepare, arguments)
            print(name, flush=True)
            lines = speeds(domain, config, folder, options.rounds, options.device)
            result["domains"].setdefault(name, {}).update(date=time.strftime("%F"), programs=lines)
            print_table(lines)
            if options.curves and name == "built-in":
                limits = options.evaluations, options.seconds
                found = curves(domain, config, folder, options.seeds, *limits, options.device)
                result["domains"][name]["curves"] = found
                print_curves(found, *limits)
                if options.json:
                    draw(found, *limits, options.json.with_suffix(".png"))
            if options.json:
                options.json.write_text(json.dumps(result, indent=1) + "\n")


def print_table(lines: dict[str, Any]) -> None:
    """Times, and ratios to the published loop and to the strong one."""
    print("| program | emitters x batch | s a generation | evaluations/s | gradients/s "
          "| times published | times strong | memory, GiB | loaded, s | compiled or tried, s |\n"
          "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")  # fmt: skip
    for name, line in lines.items():
        rate = line["evaluations_per_s"]
        print(
            f"| {name} | {line['emitters']} x {line['batch_size']} | {line['generation_s']:.4f} "
            f"| {rate:.1f} | {line['gradients_per_s']:.1f} "
            f"| {rate / lines['published']['evaluations_per_s']:.2f} "
            f"| {rate / lines['strong']['evaluations_per_s']:.2f} "
            f"| {line['memory_bytes'] / 2**30:.2f} | {line['loaded_s']:.1f} "
            f"| {line['compilation_s']:.1f} |"
        )
        for way, seconds in line["ways_s"].items():
            print(f"    {way}: {seconds:.4f} s")


def print_curves(found: dict[str, Any], evaluations: int, seconds: float) -> None:
    """Means and standard deviations over the seeds."""
    for name, program in found.items():
        parts = []
        for where, at in (("at_evaluations", f"{evaluations} evaluations"),
                          ("without_crops", "these elites without crops"),
                          ("at_seconds", f"{seconds:g} s")):  # fmt: skip
            score, coverage = (program[where][key] for key in ("qd_score", "coverage"))
            spread = np.std(score, ddof=1) if len(score) > 1 else 0
            parts.append(f"{at}: {np.mean(score):,.0f} +- {spread:,.0f}, {np.mean(coverage):.1%}")
        print(f"{name:14} {'; '.join(parts)}")


if __name__ == "__main__":
    main()
