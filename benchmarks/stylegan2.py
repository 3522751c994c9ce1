"""Is StyleGAN2 in JAX as fast as in PyTorch, for the work of a search?

Question: how long does the generator for FFHQ at 256 x 256, in float32, take (a) to render a batch
    of 4 images, and (b) to render it and to pull one cotangent back to the styles?
Method: this package's network with random weights, and the PyTorch network in
    `pytorch_networks.py` with the same ones, in one process on the CPU, each with its default
    threads. PyTorch modulates in both ways: by one kernel for each sample (grouped convolutions),
    and by scaling activations as this package does; the ratio is relative to the faster way.
    Neither computes gradients of weights. All run alternately; compilation and the first run come
    before, and are reported separately. Medians over rounds, and their ratios: only ratios within
    one run are meaningful. All must agree.
Command: python benchmarks/stylegan2.py --json benchmarks/results/stylegan2.json
    (needs the extra `bench`; --small is a toy network, to check that the script works)
Result: two x86-64 cores, 2026-11-22: 0.59 of PyTorch's time forward, 0.64 with gradients.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import traverse_util
from pytorch_networks import Weights, torch_synthesize

from qdgs_jax.models import stylegan2

TOLERANCE = 1e-3  # relative; float32 in two orders of summation gives about 1e-6
SMALL = stylegan2.StyleGAN2Config(
    latent_size=32, style_size=32, mapping_sizes=(32,), channels=(32, 32, 16, 8)
)


def main() -> None:
    """Runs both parts and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--small", action="store_true", help="a toy network, not FFHQ's")
    parser.add_argument("--json", type=Path, help="where to write all times")
    options = parser.parse_args()
    config = SMALL if options.small else stylegan2.StyleGAN2Config()
    result = {
        "network": "toy" if options.small else "FFHQ-256, float32, random weights",
        "batch": options.batch,
        "gflop_per_image": flop(config) / 1e9,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads of PyTorch",
        "versions": {"jax": jax.__version__, "torch": torch.__version__},
        **measure(config, batch=options.batch, rounds=options.rounds),
    }
    print_table(result)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def measure(config: stylegan2.StyleGAN2Config, *, batch: int, rounds: int) -> dict[str, Any]:
    """Both parts."""
    params = random_weights(config)
    weights = to_torch(params["synthesis"])
    random = np.random.default_rng(1)
    ws = random.normal(size=(batch, config.layers, config.style_size)).astype(np.float32)
    shape = (batch, config.image_size, config.image_size, config.image_channels)
    cotangent = random.normal(size=shape).astype(np.float32)
    torch_ws, torch_cotangent = torch.tensor(ws), torch.tensor(cotangent.transpose(0, 3, 1, 2))
    synthesize = jax.jit(partial(stylegan2.synthesize, config))
    synthesize_torch = partial(torch_synthesize, weights, filter_taps=config.filter_taps)

    @jax.jit
    def pull_back(params: Any, ws: jax.Array, cotangent: jax.Array) -> tuple[Any, Any]:
        images, back = jax.vjp(partial(stylegan2.synthesize, config, params), ws)
        return images, back(cotangent)[0]

    def forward(fused: bool) -> np.ndarray:
        with torch.inference_mode():
            images = synthesize_torch(torch_ws, fused=fused)
            return images.permute(0, 2, 3, 1).numpy()

    def gradient(fused: bool) -> np.ndarray:
        leaf = torch_ws.clone().requires_grad_()
        images = synthesize_torch(leaf, fused=fused)
        return torch.autograd.grad(images, leaf, torch_cotangent)[0].numpy()

    inputs = params, jnp.asarray(ws), jnp.asarray(cotangent)
    parts = {
        "forward": (lambda: synthesize(*inputs[:2]), forward),
        "gradients": (lambda: jax.block_until_ready(pull_back(*inputs))[1], gradient),
    }
    return {
        part: compare(
            {
                "jax": in_jax,
                "torch, scaled activations": partial(in_torch, fused=False),
                "torch, kernel per sample": partial(in_torch, fused=True),
            },
            rounds=rounds,
        )
        for part, (in_jax, in_torch) in parts.items()
    }


def compare(programs: dict[str, Callable[[], Any]], *, rounds: int) -> dict[str, Any]:
    """Times of all programs, run alternately, after a check that their results agree."""
    first, results = {}, {}
    for name, program in programs.items():
        start = time.perf_counter()
        results[name] = np.asarray(program())  # waits for the device
        first[name] = time.perf_counter() - start
    for name, actual in results.items():
        error = np.linalg.norm(actual - results["jax"]) / np.linalg.norm(results["jax"])
        if not error < TOLERANCE:
            raise SystemExit(f"{name} differs from jax by {error:.1e}: times mean nothing")
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            start = time.perf_counter()
            np.asarray(program())
            times[name].append(time.perf_counter() - start)
    medians = {name: median(values) for name, values in times.items()}
    fastest = min(seconds for name, seconds in medians.items() if name != "jax")
    return {
        "first_s": first,
        "times_s": times,
        "median_s": medians,
        "jax_to_fastest_torch": medians["jax"] / fastest,
    }


def print_table(result: dict[str, Any]) -> None:
    """Medians and ratios."""
    print(f"{result['network']}; batch {result['batch']}; {result['machine']}")
    for part in ("forward", "gradients"):
        for name, seconds in result[part]["median_s"].items():
            first = result[part]["first_s"][name]
            print(f"{part:10} {name:26} {seconds:8.4f} s   (first {first:.1f} s)")
        print(f"{part:10} {'jax / fastest torch':26} {result[part]['jax_to_fastest_torch']:8.2f}")


def random_weights(config: stylegan2.StyleGAN2Config) -> Any:
    """Effective weights of variance 1, with noise, without compiling `init`."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(partial(stylegan2.init, config), jax.random.key(0))
    weights = jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(size=leaf.shape), jnp.float32), shapes
    )
    mapping = jax.tree.map(lambda leaf: leaf / config.mapping_rate, weights["mapping"])
    return {**weights, "mapping": mapping}


def flop(config: stylegan2.StyleGAN2Config) -> float:
    """Operations of one image's convolutions, two for each multiplication, without upsampling."""
    total = 0.0
    for i, n_out in enumerate(config.channels):
        pixels, n_in = (4 << i) ** 2, config.channels[max(i - 1, 0)]
        total += 18 * pixels * n_out * n_out + 2 * pixels * n_out * config.image_channels
        total += 18 * (pixels / 4) * n_in * n_out if i else 0
    return total


def to_torch(params: Any) -> Weights:
    """Kernels in PyTorch's layouts: O I H W, and I O H W of those that upsample."""
    weights = {}
    for name, leaf in traverse_util.flatten_dict(params, sep="/").items():
        value = np.asarray(leaf)
        if name.endswith("conv0/kernel"):
            value = value.transpose(0, 3, 1, 2)
        elif name.endswith("conv1/kernel"):
            value = value.transpose(3, 2, 0, 1)
        elif name.endswith("const"):
            value = value.transpose(2, 0, 1)
        weights[name] = torch.tensor(np.ascontiguousarray(value).reshape(value.shape))
    return weights


if __name__ == "__main__":
    main()
