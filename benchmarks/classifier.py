"""Are the trainings of the repair experiment faster than in PyTorch?

Question: how long do the trainings of `configs/experiments/repair.toml` take here and in PyTorch?
    For each of 25 pairs of bias and seed, one classifier is trained on 1,000 images and fine-tuned
    on a few hundred others by each repair; all are tested on 5,000. Searches and drawings are not
    trainings, and are left out.
Method: each program has its own process on the CPU, with its default threads. Both have the same
    network with the same initial weights, and must return the same outputs; the same images (uint8
    noise, as time does not depend on their content), batches, optimiser and random rotation. Images
    are in memory, without a loader. PyTorch runs with contiguous images, its default; with channels
    last; and with channels last and glibc keeping freed memory, since otherwise it frees and
    allocates each step's activations, page by page. Each round is an epoch, two epochs of a repair
    and a test in each program, one after the other, while the others wait. Times of the experiment
    are computed from the medians, here with compilation, which is measured separately. Only ratios
    within one run are meaningful.
Command: python benchmarks/classifier.py --rounds 5 --json benchmarks/results/classifier.json
    (needs the extra `bench`; --small is a toy setting, to check that the script works)
Result: 2.2 times as fast as PyTorch by default, 1.6 times as fast as with channels last, and 0.75
    times as fast as with freed memory kept too; see benchmarks/README.md.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import platform
import time
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from qdgs_jax.evaluation.repair import EPOCHS_AT_ONCE
from qdgs_jax.experiments.config import load_experiment_config
from qdgs_jax.experiments.repair.arms import epochs_of
from qdgs_jax.experiments.repair.config import RepairConfig
from qdgs_jax.training import classifier
from qdgs_jax.training.classifier import Data
from qdgs_jax.training.config import ClassifierConfig, TrainingConfig

CONFIG = Path(__file__).parents[1] / "configs/experiments/repair.toml"
PROGRAMS = "jax", "torch", "torch, channels last", "torch, channels last, memory kept"
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
PARTS = "epoch", "two repair epochs", "test"
TOLERANCE = 1e-4  # relative; float32 in two orders of summation gives about 1e-6
SMALL = RepairConfig(
    biases=(0.9,), seeds=2, images=20, repair_images=10, test_images=30, arms=("qdgs",),
    classifier=ClassifierConfig(channels=(4, 8), hidden=8),
    training=TrainingConfig(batch_size=8, epochs=1, repair_epochs=2),
)  # fmt: skip


def main() -> None:
    """Runs all programs alternately and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a toy setting")
    parser.add_argument("--json", type=Path, help="where to write all times")
    options = parser.parse_args()
    config = SMALL if options.small else load_experiment_config(RepairConfig, CONFIG)
    size = 16 if options.small else 128
    programs, outputs = {}, {}
    for name in PROGRAMS:  # one after the other, since compilation is timed
        programs[name] = start(name, config, size)
        outputs[name] = programs[name].recv()
    require_agreement({name: found for name, (found, _) in outputs.items()})
    seconds: dict[str, dict[str, list[float]]] = {
        name: {part: [] for part in PARTS} for name in programs
    }
    for number in range(options.rounds):
        for name, pipe in programs.items():
            pipe.send(number)
            for part, took in zip(PARTS, pipe.recv(), strict=True):
                seconds[name][part].append(took)
    for pipe in programs.values():
        pipe.send(None)
    pairs = len(config.biases) * config.seeds
    repairs = {arm: epochs_of(config, arm) for arm in config.arms}
    again = repairs.pop("biased", 0)  # its images are those of the training
    count = {
        "epoch": pairs * (config.training.epochs + again),
        "two repair epochs": pairs * sum(repairs.values()) / 2,
        "test": pairs * (1 + len(config.arms)),
    }
    compilation = outputs["jax"][1]
    totals = {
        name: sum(count[part] * median(times) for part, times in parts.items())
        for name, parts in seconds.items()
    }
    totals["jax"] += compilation
    setting = dataclasses.asdict(config)
    del setting["search"]  # a path, and not a training
    result = {
        "setting": setting,
        "image_size": size,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads of PyTorch",
        "versions": {"jax": jax.__version__, "torch": torch.__version__},
        "count": count,
        "compilation_s": compilation,
        "seconds": seconds,
        "total_s": totals,
        "ratio": {name: total / totals["jax"] for name, total in totals.items()},
    }
    print_table(result)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def start(name: str, config: RepairConfig, size: int) -> Connection:
    """Starts a program in its own process; sending it a round's number gives the round's times."""
    ours, theirs = multiprocessing.Pipe()
    environment = KEEP_MEMORY if "memory kept" in name else {}
    os.environ.update(environment)  # glibc reads it when the process begins
    arguments = name, config, size, theirs
    multiprocessing.get_context("spawn").Process(target=serve, args=arguments, daemon=True).start()
    for key in environment:
        del os.environ[key]
    return ours


def serve(name: str, config: RepairConfig, size: int, pipe: Connection) -> None:
    """Outputs and seconds of compilation first; then seconds of an epoch and a test on demand."""
    layout = torch.channels_last if "channels last" in name else torch.contiguous_format
    program = InJax(config, size) if name == "jax" else InTorch(config, size, layout)
    images = np.random.default_rng(1).random((8, size, size, 3), np.float32)
    pipe.send((program.outputs(images), getattr(program, "compilation", None)))
    while (number := pipe.recv()) is not None:
        times = [time.perf_counter()]
        trained = program.train(program.init(number), program.data, 1)
        times.append(time.perf_counter())
        trained = program.train(trained, program.repair_data, 2)
        times.append(time.perf_counter())
        program.test(trained)
        times.append(time.perf_counter())
        pipe.send(np.diff(times).tolist())


def make_images(config: RepairConfig, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images and labels: of a training, a repair and the test."""
    random = np.random.default_rng(0)
    return [
        (random.integers(0, 256, (n, size, size, 3), np.uint8), random.integers(0, 2, n))
        for n in (config.images, config.repair_images, config.test_images)
    ]


def initial_params(config: RepairConfig, size: int, number: int) -> Any:
    """Weights with a leading axis of one seed."""
    keys = jax.random.split(jax.random.key(number), 1)
    return classifier.init(config.classifier, keys, image_shape=(size, size, 3), classes=2)


class InJax:
    """The trainings as the experiment runs them on a CPU, one seed at a time."""

    def __init__(self, config: RepairConfig, size: int) -> None:
        self.config, self.size = config, size
        *sets, (images, _) = make_images(config, size)
        self.data, self.repair_data = (
            Data(jnp.asarray(x)[None], jnp.asarray(y)[None], jnp.ones((1, len(y)))) for x, y in sets
        )
        self.images = jnp.asarray(images)
        self.key = jax.random.split(jax.random.key(1), 1)
        start = time.perf_counter()
        params = self.init(0)
        for data in (self.data, self.repair_data):
            self.train(params, data, 1, compile_only=True)
        self.test(params)
        once = time.perf_counter()
        self.test(params)
        twice = time.perf_counter()
        self.compilation = (once - start) - (twice - once)  # the first test ran, too

    def init(self, number: int) -> Any:
        return initial_params(self.config, self.size, number)

    def train(self, params: Any, data: Data, epochs: int, *, compile_only: bool = False) -> Any:
        model, training = self.config.classifier, self.config.training
        state = classifier.start(training, params)
        for begun in range(0, epochs, EPOCHS_AT_ONCE):
            some = 0 if compile_only else min(EPOCHS_AT_ONCE, epochs - begun)
            state = classifier.train(model, training, state, self.key, data, some, classes=2)
            jax.block_until_ready(state)
        return state.params

    def test(self, params: Any) -> np.ndarray:
        model = self.config.classifier
        return np.asarray(classifier.predict(model, params, self.images, classes=2))

    def outputs(self, images: np.ndarray) -> np.ndarray:
        params = jax.tree.map(lambda leaf: leaf[0], self.init(0))
        return np.asarray(classifier.network(self.config.classifier, 2).apply(params, images))


class InTorch:
    """The same in PyTorch, in its usual form with all images in memory."""

    def __init__(self, config: RepairConfig, size: int, layout: torch.memory_format) -> None:
        self.config, self.size, self.layout = config, size, layout
        torch.manual_seed(0)
        *sets, (images, _) = make_images(config, size)
        self.data, self.repair_data = (
            (self.to_torch(x), torch.tensor(y, dtype=torch.float32)) for x, y in sets
        )
        self.images = self.to_torch(images)
        self.train(self.init(0), tuple(x[:8] for x in self.data), 1)  # warm

    def to_torch(self, images: np.ndarray) -> torch.Tensor:
        return torch.tensor(images).permute(0, 3, 1, 2).contiguous(memory_format=self.layout)

    def init(self, number: int) -> dict[str, torch.Tensor]:
        """The initial weights of `InJax` in PyTorch's layout."""
        params = jax.tree.map(
            lambda leaf: np.asarray(leaf[0]), initial_params(self.config, self.size, number)
        )["params"]
        channels = self.config.classifier.channels
        side = self.size // 2 ** len(channels)
        state = {}
        for i in range(1, len(channels) + 1):
            state[f"{3 * (i - 1)}.weight"] = params[f"conv{i}"]["kernel"].transpose(3, 2, 0, 1)
            state[f"{3 * (i - 1)}.bias"] = params[f"conv{i}"]["bias"]
        fc1 = params["fc1"]["kernel"].reshape(side, side, channels[-1], -1)
        last = 3 * len(channels) + 1
        state[f"{last}.weight"] = fc1.transpose(3, 2, 0, 1).reshape(len(params["fc1"]["bias"]), -1)
        state[f"{last}.bias"] = params["fc1"]["bias"]
        state[f"{last + 2}.weight"] = params["fc2"]["kernel"].T
        state[f"{last + 2}.bias"] = params["fc2"]["bias"]
        return {name: torch.tensor(np.ascontiguousarray(value)) for name, value in state.items()}

    def network(self, state: dict[str, torch.Tensor]) -> nn.Module:
        channels, hidden = self.config.classifier.channels, self.config.classifier.hidden
        layers: list[nn.Module] = []
        for before, after in zip((3, *channels), channels, strict=False):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        flat = channels[-1] * (self.size // 2 ** len(channels)) ** 2
        layers += [nn.Flatten(), nn.Linear(flat, hidden), nn.ReLU(), nn.Linear(hidden, 1)]
        network = nn.Sequential(*layers)
        network.load_state_dict(state)
        return network.to(memory_format=self.layout)

    def train(
        self, state: dict[str, torch.Tensor], data: tuple[torch.Tensor, torch.Tensor], epochs: int
    ) -> dict[str, torch.Tensor]:
        network, training = self.network(state), self.config.training
        optimiser = torch.optim.Adam(network.parameters(), lr=training.learning_rate)
        images, labels = data
        for _ in range(epochs):
            for rows in torch.randperm(len(images)).split(training.batch_size):
                batch = rotate(images[rows].float() / 255, training.rotation)
                loss = functional.binary_cross_entropy_with_logits(
                    network(batch)[:, 0], labels[rows]
                )
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
        return network.state_dict()

    def test(self, state: dict[str, torch.Tensor]) -> torch.Tensor:
        network = self.network(state)
        with torch.inference_mode():
            return torch.cat([network(x.float() / 255)[:, 0] > 0 for x in self.images.split(100)])

    def outputs(self, images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self.network(self.init(0))(self.to_torch(images)).numpy()


def rotate(images: torch.Tensor, degrees: float) -> torch.Tensor:
    """Rotates by random angles, with the nearest pixel; pixels beyond the edge repeat the edge."""
    angle = torch.deg2rad((2 * torch.rand(len(images)) - 1) * degrees)
    cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros(len(images))
    matrix = torch.stack([cos, -sin, zero, sin, cos, zero], 1).reshape(-1, 2, 3)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(
        images, grid, mode="nearest", padding_mode="border", align_corners=False
    )


def require_agreement(outputs: dict[str, np.ndarray]) -> None:
    """Checks that all networks with the same weights return the same outputs."""
    desired = outputs["jax"]
    for name, found in outputs.items():
        error = np.linalg.norm(found - desired) / np.linalg.norm(desired)
        if not error < TOLERANCE:
            raise SystemExit(f"{name} differs from jax by {error:.1e}: times mean nothing")


def print_table(result: dict[str, Any]) -> None:
    """Seconds of each part, hours of the experiment, and hours relative to this package's."""
    print(f"{result['machine']}; compilation {result['compilation_s']:.1f} s")
    for name, parts in result["seconds"].items():
        times = " ".join(f"{part} {median(parts[part]):6.2f} s," for part in PARTS)
        hours, ratio = result["total_s"][name] / 3600, result["ratio"][name]
        print(f"{name:34} {times} {hours:6.2f} h, {ratio:5.2f}")


if __name__ == "__main__":
    main()
