"""Does a search keep its memory, work and traffic a device, from one device to 256?

Question: the batch grows with the devices, 16 evaluations each. Per device, (a) are the archives
    1 / devices of the whole, (b) do the bytes that devices exchange stay the same, (c) does the
    work stay the same, (d) does nothing interrupt rendering and scoring? And on real accelerators,
    how many evaluations a second, relative to one device and to the card's own matrix products?
Method: `search.run` of the paper's face experiment (CMA-MAEGA, two archives of 156,250 cells of
    14 x 512 numbers, four measures, uniqueness memory), with 2 emitters of 7 branches for each
    device: 2 x (1 + 7) evaluations. It is compiled for 1 to 256 virtual CPU devices, each number in
    a process of its own, and not run. The networks are a narrow StyleGAN2 of all 14 layers and a
    small CLIP: the search around them is in question. A device has two chunks of 7 branches and two
    of 1 Jacobian: loops of all sizes are equal, as `cost_analysis` counts a loop's body once.
    `qdgs_jax.collectives` reads the exchanges from the compiled text; the bytes of a collective are
    those of its result on one device. Memory of archives is computed from the shardings of the
    compiled program.
    With --run: evaluations/s of real devices, of all and of one in turns, with StyleGAN2-256 and
    ViT-B/32 of random weights. Operations are those of the networks (a forward pass for a branch;
    a Jacobian's has 5 pull-backs too), counted before XLA optimises them. Compilation is not part
    of the times.
Command: python benchmarks/weak_scaling.py --json benchmarks/results/weak_scaling.json
    On accelerators: python benchmarks/weak_scaling.py --run --batches 16 64 256 --precision bf16
    (--run --small --devices 2 on a CPU only shows that the script works)
Result (2026-11-30, jax 0.10.2, compiled): latents are 1 / devices of the whole up to 256 (33 MiB);
    all-to-all is 516,096 bytes a generation for any number; no collective stands in the loops that
    render and score; the work grows by 0.7 %. Gathered scores and ranks grow, 21.5 bytes for
    each evaluation: 88,064 bytes on 256. Accelerators: not measured. See benchmarks/README.md.
"""

import argparse
import dataclasses
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from qdgs_jax import collectives
from qdgs_jax import search as searches
from qdgs_jax.config import load_config
from qdgs_jax.encoders import Encoder
from qdgs_jax.generators import Generator
from qdgs_jax.models import clip, stylegan2
from qdgs_jax.models.precision import Precision
from qdgs_jax.problem import make_archive
from qdgs_jax.prompts import PromptEmbeddings, PromptPair
from qdgs_jax.scoring import ImageScore, make_score
from qdgs_jax.search import Search
from qdgs_jax.sharding import make_mesh
from qdgs_jax.typing import Array, Key, Latents, Params

CONFIG = Path(__file__).parents[1] / "configs/search/faces_paper.toml"
SIZES = (1, 2, 8, 64, 256)
BATCH, CHUNK = 7, 7  # branches of an emitter; rows that a device scores at once
EMITTERS = 2  # of a device: 2 x (1 + 7) = 16 evaluations
GENERATIONS = 10
TOLERANCE = 0.05  # of the archives' memory
NETWORKS = (stylegan2.StyleGAN2Config(), clip.CLIPConfig())
TOWER = clip.TowerConfig(width=64, layers=2, heads=2, mlp_width=128)
STAND_INS = (
    stylegan2.StyleGAN2Config(channels=(8,) * 7, mapping_sizes=(512,)),
    clip.CLIPConfig(vision=TOWER, text=TOWER),
)
SMALL = (  # for --small
    stylegan2.StyleGAN2Config(
        latent_size=32, style_size=32, mapping_sizes=(32,), channels=(16, 16, 8)
    ),
    clip.CLIPConfig(vision=TOWER, text=TOWER, image_size=64),
)
Networks = tuple[stylegan2.StyleGAN2Config, clip.CLIPConfig]


def main() -> None:
    """Compiles for all sizes, or runs on this machine's devices, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="*", help="with --run, the most to use")
    parser.add_argument("--one", action="store_true", help="one size in this process, as JSON")
    parser.add_argument("--run", action="store_true", help="run on this machine's devices")
    parser.add_argument("--batches", type=int, nargs="*", default=[16, 64, 256])
    parser.add_argument("--chunk", type=int, default=64, help="rows a device scores at once")
    parser.add_argument("--precision", choices=["highest", "default", "bf16"], default="highest")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="with --run, a toy search")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    options = parser.parse_args()
    if options.run:
        result = run(options)
    elif options.one:
        print(json.dumps(compile_for(options.devices[0])))
        return
    else:
        rows = [in_a_process(size) for size in options.devices or SIZES]
        result = {"jax": jax.__version__, "sizes": rows, "bars": bars(rows)}
        print_sizes(result)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if not all(result.get("bars", {}).values()):
        raise SystemExit("a bar is not met")


# The search.


def make_search(
    emitters: int, chunk: int, networks: Networks, precision: Precision = "highest"
) -> tuple[Search, ImageScore, Callable[[Key], Params]]:
    """The face experiment's search with random networks; its weights as a function of a key."""
    config = load_config(CONFIG)
    options = dataclasses.replace(
        config.search, emitters=emitters, batch_size=BATCH, chunk_size=chunk
    )
    measures = config.measures
    if networks is SMALL:
        measures = tuple(dataclasses.replace(measure, cells=5) for measure in measures)
    config = dataclasses.replace(config, search=options, measures=measures)
    of_generator, of_encoder = networks
    size = of_generator.layers * of_generator.style_size
    mean, std = (jnp.array(each, ndmin=4) for each in (of_encoder.pixel_mean, of_encoder.pixel_std))

    def render(params: Params, latents: Latents) -> Array:
        styles = latents.reshape(len(latents), of_generator.layers, of_generator.style_size)
        images = stylegan2.synthesize(of_generator, params, styles, precision=precision)
        return jnp.clip((images + 1) / 2, 0, 1)

    def embed(params: Params, images: Array) -> Array:
        pixels = (images - mean) / std
        embeddings = clip.embed_images(of_encoder, params, pixels, precision=precision)
        return embeddings / jnp.linalg.norm(embeddings, axis=-1, keepdims=True)

    def weights(key: Key) -> Params:
        keys = jax.random.split(key, 3)
        texts = jax.random.normal(
            keys[2], (2 * (1 + len(config.measures)), 1, of_encoder.embedding_size)
        )
        texts = texts / jnp.linalg.norm(texts, axis=-1, keepdims=True)
        pairs = [PromptPair(*texts[i : i + 2]) for i in range(0, len(texts), 2)]
        return {
            "generator": stylegan2.init(of_generator, keys[0]),
            "encoder": clip.init(of_encoder, keys[1]),
            "prompts": PromptEmbeddings(pairs[0], tuple(pairs[1:])),
        }

    def unused(*_: Any) -> Any:
        raise NotImplementedError("prompts are random vectors")

    score = make_score(
        config,
        Generator("random StyleGAN2", size, of_generator.image_size, normals(size), render),
        Encoder("random CLIP", "", of_encoder.image_size, embed, unused, unused, unused),
    )
    made = searches.make_search(
        options, make_archive(config), score, score.with_jacobian(), init_memory=score.init_memory
    )
    return made, score, weights


def normals(size: int) -> Callable[[Key, int], Latents]:
    """(key, n) -> standard normal latents [n, size]."""
    return lambda key, count: jax.random.normal(key, (count, size))


# Compiled for devices that are not there.


def in_a_process(devices: int) -> dict[str, Any]:
    """`compile_for` in a process of its own, as a backend's devices cannot be changed."""
    command = [sys.executable, __file__, "--one", "--devices", str(devices)]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    row: dict[str, Any] = json.loads(printed.splitlines()[-1])
    print(f"{devices} devices: compiled in {row['compile_s']:.0f} s", file=sys.stderr)
    return row


def compile_for(devices: int) -> dict[str, Any]:
    """Figures of the search that is compiled for a number of virtual CPU devices."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    search, _, weights = make_search(EMITTERS * devices, CHUNK, STAND_INS)
    size = STAND_INS[0].layers * STAND_INS[0].style_size
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = (
        jax.eval_shape(weights, key),
        key,
        jax.ShapeDtypeStruct((EMITTERS * SIZES[-1], size), jnp.float32),
    )
    with jax.set_mesh(make_mesh(jax.devices())):
        initial = jax.jit(searches.init, static_argnums=0).lower(search, *arguments).compile()
        state = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            jax.eval_shape(partial(searches.init, search), *arguments),
            initial.output_shardings,
        )
        began = time.perf_counter()
        run = jax.jit(searches.run, static_argnums=(0, 3), donate_argnums=2)
        compiled = run.lower(search, arguments[0], state, GENERATIONS).compile()
        seconds = time.perf_counter() - began
    memory, program = compiled.memory_analysis(), collectives.read(compiled.as_text() or "")
    costs = compiled.cost_analysis()
    assert memory is not None
    assert costs is not None
    archives = [state.elites, state.annealed]
    after = compiled.output_shardings[0]
    shardings = [after.elites, after.annealed]
    latents, of_latents = ([each.latents for each in pair] for pair in (archives, shardings))
    largest = max(program.collectives, key=lambda each: each.bytes, default=None)
    return {
        "devices": devices,
        "evaluations": search.evaluations_per_generation,
        "latents_bytes": bytes_of(latents, of_latents),
        "latents_total": bytes_of(latents),
        "archives_bytes": bytes_of(archives, shardings),
        "archives_total": bytes_of(archives),
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "collectives": by_kind(program.generation()),
        "collectives_in_loops": len(program.inner()),
        "chunks": [loop.trips for loop in program.chunk_loops()],
        "largest": dataclasses.asdict(largest) if largest else None,
        "batch_bytes": EMITTERS * devices * BATCH * size * 4,
        "flops": costs["flops"],
        "compile_s": seconds,
    }


def bytes_of(tree: Any, shardings: Any = None) -> int:
    """Bytes of a tree of arrays; with their shardings, on one device."""
    leaves = jax.tree.leaves(tree)
    shapes = [leaf.shape for leaf in leaves]
    if shardings is not None:
        each = zip(jax.tree.leaves(shardings), shapes, strict=True)
        shapes = [sharding.shard_shape(shape) for sharding, shape in each]
    return sum(
        math.prod(shape) * leaf.dtype.itemsize for shape, leaf in zip(shapes, leaves, strict=True)
    )


def by_kind(found: tuple[collectives.Collective, ...]) -> dict[str, dict[str, int]]:
    """Count and bytes of each kind of collective."""
    kinds: dict[str, dict[str, int]] = {}
    for each in found:
        row = kinds.setdefault(each.kind, {"count": 0, "bytes": 0})
        row["count"] += 1
        row["bytes"] += each.bytes
    return kinds


def bars(rows: list[dict[str, Any]]) -> dict[str, bool]:
    """Whether what must hold for any number of devices does."""
    many = [row for row in rows if row["devices"] > 1]
    exchanged = {row["collectives"].get("all-to-all", {}).get("bytes") for row in many}
    return {
        "archives' latents are total / devices": all(
            abs(row["latents_bytes"] * row["devices"] / row["latents_total"] - 1) <= TOLERANCE
            for row in rows
        ),
        "all-to-all bytes are equal": len(exchanged) <= 1 and None not in exchanged,
        "no collective in the loops over chunks": all(
            not row["collectives_in_loops"] and len(row["chunks"]) == 2 and min(row["chunks"]) > 1
            for row in rows
        ),
        "no collective has the whole batch": all(
            row["largest"]["bytes"] < row["batch_bytes"] for row in many
        ),
    }


def print_sizes(result: dict[str, Any]) -> None:
    """A row for each number of devices, and the bars."""
    print("| devices | latents MiB | archives MiB | arguments MiB | temporaries MiB | all-to-all | "
          "all-gather | all-reduce | largest / batch | in loops | Gflop |")  # fmt: skip
    print("|" + "---:|" * 11)
    for row in result["sizes"]:
        mebibytes = [
            f"{row[f'{name}_bytes'] / 2**20:,.1f}"
            for name in ("latents", "archives", "argument", "temporary")
        ]
        kinds = [
            f"{kind['count']} / {kind['bytes']:,} B" if kind else "0"
            for kind in map(row["collectives"].get, ("all-to-all", "all-gather", "all-reduce"))
        ]
        largest = row["largest"]["bytes"] / row["batch_bytes"] if row["largest"] else 0
        figures = (*mebibytes, *kinds, f"{largest:.4f}", row["collectives_in_loops"])
        print(f"| {row['devices']} |", *(f"{each} |" for each in figures), end=" ")
        print(f"{row['flops'] / 1e9:.2f} |")
    for bar, met in result["bars"].items():
        print(f"{'met' if met else 'NOT MET'}: {bar}")


# Run on devices that are there.


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Evaluations a second on all devices and on one, at several batches."""
    if options.devices:  # only CPUs can be multiplied
        jax.config.update("jax_num_cpu_devices", options.devices[0])
    devices = jax.devices()[: options.devices[0] if options.devices else None]
    if devices[0].platform == "cpu":
        print("CPU: this shows that the script works, and says nothing about accelerators")
        if options.json:
            raise SystemExit("figures of CPUs are not published: leave --json out")
    matmul = matmul_rate(options.precision, 1024 if options.small else 8192)
    print(f"{len(devices)} x {devices[0].device_kind}; matrix products {matmul / 1e12:.2f} Tflop/s")
    rows = [measure(options, devices, batch, matmul) for batch in options.batches]
    return {
        "device": devices[0].device_kind,
        "devices": len(devices),
        "jax": jax.__version__,
        "networks": "small ones" if options.small else "StyleGAN2-256 and ViT-B/32, random weights",
        "precision": options.precision,
        "chunk": options.chunk,
        "matmul_flops_per_second": matmul,
        "batches": rows,
    }


def measure(
    options: argparse.Namespace, devices: list[jax.Device], batch: int, matmul: float
) -> dict[str, Any]:
    """The rates of one batch, all devices and one in turns."""
    if batch % (1 + BATCH):
        raise SystemExit(f"a batch is a multiple of {1 + BATCH} evaluations a device, not {batch}")
    counts = sorted({1, len(devices)})
    runners = {count: Runner(options, devices[:count], batch) for count in counts}
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(options.rounds):
        for count, runner in runners.items():
            seconds[count].append(runner.run())
    rates = {
        count: runners[count].evaluations * GENERATIONS / median(seconds[count]) for count in counts
    }
    each, flops = rates[len(devices)] / len(devices), runners[1].flops_per_evaluation()
    row = {
        "evaluations_per_device": batch,
        "seconds": seconds,
        "evaluations_per_second": rates,
        "efficiency": each / rates[1],
        "flops_per_evaluation": flops,
        "share_of_matmul_rate": each * flops / matmul,
        "first_s": {count: runner.first_s for count, runner in runners.items()},
    }
    print(
        f"{batch} a device: {rates[len(devices)]:.1f} evaluations/s on {len(devices)}, "
        f"{rates[1]:.1f} on one: efficiency {row['efficiency']:.2f}, "
        f"{row['share_of_matmul_rate']:.1%} of the matrix products' rate"
    )
    return row


class Runner:
    """The search on some devices, compiled and run once before it is timed."""

    def __init__(self, options: argparse.Namespace, devices: list[jax.Device], batch: int) -> None:
        networks = SMALL if options.small else NETWORKS
        emitters = batch // (1 + BATCH) * len(devices)
        self.search, self.score, weights = make_search(
            emitters, options.chunk, networks, options.precision
        )
        self.evaluations = self.search.evaluations_per_generation
        self.emitters_per_device = emitters // len(devices)
        self.mesh = make_mesh(devices)
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        self.params = jax.jit(weights, out_shardings=everywhere)(jax.random.key(0))
        size = networks[0].layers * networks[0].style_size
        key, self.latents = jax.device_put(
            (jax.random.key(1), normals(size)(jax.random.key(2), emitters)), everywhere
        )
        began = time.perf_counter()
        self.compiled = jax.jit(searches.run, static_argnums=(0, 3), donate_argnums=2)
        with jax.set_mesh(self.mesh):
            begin = jax.jit(searches.init, static_argnums=0)
            self.state = begin(self.search, self.params, key, self.latents)
        self.run()
        self.first_s = time.perf_counter() - began

    def run(self) -> float:
        """Seconds of `GENERATIONS` generations."""
        began = time.perf_counter()
        with jax.set_mesh(self.mesh):
            self.state, metrics = self.compiled(self.search, self.params, self.state, GENERATIONS)
        coverage, lost = float(metrics.coverage), int(metrics.non_finite)  # waits for the devices
        if not coverage or lost:
            raise SystemExit(
                f"the search found nothing, or lost {lost} latents: times mean nothing"
            )
        return time.perf_counter() - began

    def flops_per_evaluation(self) -> float:
        """Operations of the networks for one latent, averaged over branches and Jacobians."""
        memory = jax.eval_shape(self.score.init_memory, self.params)
        branch, jacobian = (
            jax.jit(score).lower(self.params, jax.random.key(0), self.latents[:1], memory)
            for score in (self.score, self.score.with_jacobian())
        )
        costs = [lowered.cost_analysis() or {} for lowered in (branch, jacobian)]
        return float((BATCH * costs[0]["flops"] + costs[1]["flops"]) / (1 + BATCH))


def matmul_rate(precision: Precision, side: int, repeats: int = 20) -> float:
    """Operations a second of products [side, side] x [side, side], the best of five medians."""
    dtype = jnp.bfloat16 if precision == "bf16" else jnp.float32
    exact = "highest" if precision == "highest" else None
    left, right = jax.random.normal(jax.random.key(0), (2, side, side), dtype)
    multiply = jax.jit(partial(jnp.matmul, precision=exact))
    jax.block_until_ready(multiply(left, right))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(repeats):
            product = multiply(left, right)
        jax.block_until_ready(product)
        times.append((time.perf_counter() - began) / repeats)
    return float(2 * side**3 / min(times))


if __name__ == "__main__":
    main()
