"""Is CLIP in JAX as fast as in PyTorch, for the work of a search?

Question: how long does ViT-B/32 in float32 take (a) to embed a batch of 16 images, and (b) to embed
    one image and compute the gradients of three numbers with respect to its pixels? Gradient
    emitters need (b) once per generation, for an objective and two measures.
Method: transformers' PyTorch CLIP with random weights, and this package's CLIP with the same ones,
    in one process on the CPU, each with its default threads. Both run alternately; compilation and
    the first run come before, and are reported separately. (b) in JAX is one forward pass and three
    vmapped pull-backs. PyTorch does three forward and backward passes, as the reference
    implementation does, and for fairness also one forward and three backward passes. Medians over
    rounds, and their ratios: only ratios within one run are meaningful. Both must agree.
Command: python benchmarks/clip.py --json benchmarks/results/clip.json
    (needs the extra `bench`; --small is a toy network, to check that the script works)
Result (2026-11-22, two x86-64 cores, jax 0.10.2, PyTorch 2.13.0, medians of 11 rounds):
    (a) 0.80 s, PyTorch 0.92 s: 1.15 times as fast
    (b) 0.29 s, PyTorch 0.68 s with three forwards (2.4 times), 0.46 s with one (1.6 times)
"""

import argparse
import json
import platform
import tempfile
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
from transformers import CLIPConfig, CLIPModel

from qdgs_jax.models import clip

GRADIENTS = 3
TOLERANCE = 1e-3  # relative; float32 in two orders of summation gives about 1e-6
SMALL = {
    "text_config": {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1,
                    "intermediate_size": 64, "vocab_size": 100, "bos_token_id": 98,
                    "eos_token_id": 99},
    "vision_config": {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2,
                      "intermediate_size": 128, "image_size": 64},
}  # fmt: skip


def main() -> None:
    """Runs both parts and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--small", action="store_true", help="a toy network, not ViT-B/32")
    parser.add_argument("--json", type=Path, help="where to write all times")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(**SMALL if options.small else {})).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config, params = clip.load(folder)
    result = {
        "network": "toy" if options.small else "ViT-B/32, float32, random weights",
        "batch": options.batch,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads of PyTorch",
        "versions": {"jax": jax.__version__, "torch": torch.__version__},
        "forward": forward(model, config, params, options),
        "gradients": gradients(model, config, params, options),
    }
    print_table(result)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def forward(
    model: CLIPModel, config: clip.CLIPConfig, params: Any, options: argparse.Namespace
) -> dict[str, Any]:
    """(a): embeddings of a batch."""
    images = random_images(config, options.batch)
    theirs = to_torch(images)
    embed = jax.jit(partial(clip.embed_images, config))

    def in_torch() -> np.ndarray:
        with torch.inference_mode():
            return torch_embed(model, theirs).numpy()

    return compare({"jax": lambda: embed(params, images), "torch": in_torch}, rounds=options.rounds)


def gradients(
    model: CLIPModel, config: clip.CLIPConfig, params: Any, options: argparse.Namespace
) -> dict[str, Any]:
    """(b): gradients of three numbers with respect to one image."""
    image = random_images(config, 1)
    theirs = to_torch(image).requires_grad_()
    cotangents = np.random.default_rng(1).normal(size=(GRADIENTS, 1, config.embedding_size))
    cotangents = jnp.asarray(cotangents, jnp.float32)
    torch_cotangents = torch.tensor(np.asarray(cotangents))

    @jax.jit
    def in_jax(params: Any, image: jax.Array) -> jax.Array:
        _, pull_back = jax.vjp(partial(clip.embed_images, config, params), image)
        return jax.vmap(pull_back)(cotangents)[0]

    def three_forwards() -> np.ndarray:
        pulled = [
            torch.autograd.grad(torch_embed(model, theirs), theirs, cotangent)[0]
            for cotangent in torch_cotangents
        ]
        return from_torch(torch.stack(pulled))

    def one_forward() -> np.ndarray:
        embedding = torch_embed(model, theirs)
        pulled = [
            torch.autograd.grad(embedding, theirs, cotangent, retain_graph=True)[0]
            for cotangent in torch_cotangents
        ]
        return from_torch(torch.stack(pulled))

    programs = {
        "jax": lambda: in_jax(params, image),
        "torch": three_forwards,
        "torch, one forward": one_forward,
    }
    return compare(programs, rounds=options.rounds)


def compare(programs: dict[str, Callable[[], Any]], *, rounds: int) -> dict[str, Any]:
    """Times of all programs, run alternately, after a check that their results agree."""
    first, results = {}, {}
    for name, program in programs.items():
        start = time.perf_counter()
        results[name] = np.asarray(program())  # waits for the device
        first[name] = time.perf_counter() - start
    desired = results["torch"]
    for name, actual in results.items():
        error = np.linalg.norm(actual - desired) / np.linalg.norm(desired)
        if not error < TOLERANCE:
            raise SystemExit(f"{name} differs from torch by {error:.1e}: times mean nothing")
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            start = time.perf_counter()
            np.asarray(program())
            times[name].append(time.perf_counter() - start)
    medians = {name: median(values) for name, values in times.items()}
    ratios = {name: medians[name] / medians["jax"] for name in programs if name != "jax"}
    return {"first_s": first, "times_s": times, "median_s": medians, "ratio_to_jax": ratios}


def print_table(result: dict[str, Any]) -> None:
    """Medians and ratios."""
    print(f"{result['network']}; {result['machine']}")
    for part in ("forward", "gradients"):
        for name, seconds in result[part]["median_s"].items():
            ratio = result[part]["ratio_to_jax"].get(name, 1)
            first = result[part]["first_s"][name]
            print(f"{part:10} {name:20} {seconds:8.4f} s   x {ratio:5.2f}   (first {first:.1f} s)")


def torch_embed(model: CLIPModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Embeddings [N, E] of PyTorch's model."""
    return model.visual_projection(model.vision_model(pixel_values).pooler_output)


def random_images(config: clip.CLIPConfig, batch: int) -> jax.Array:
    """Normalised pixels [N, H, W, 3]."""
    shape = (batch, config.image_size, config.image_size, 3)
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def to_torch(images: jax.Array) -> torch.Tensor:
    """[N, H, W, 3] -> [N, 3, H, W]."""
    return torch.tensor(np.asarray(images)).permute(0, 3, 1, 2).contiguous()


def from_torch(gradients: torch.Tensor) -> np.ndarray:
    """[K, 1, 3, H, W] -> [K, 1, H, W, 3]."""
    return gradients.permute(0, 1, 3, 4, 2).numpy()


if __name__ == "__main__":
    main()
