"""Is a training step of face recognition as fast as in PyTorch?

Question: how long does a step of AdaFace on an IR-18 take here and in PyTorch, with batches of 64
    images of 64 x 64 pixels?
Method: each program has its own process on the CPU, with its default threads. Both have the same
    network with the same initial weights, must return the same loss for the same first batch, and
    train on the same images (uint8 noise, as time does not depend on their content), with dropout,
    SGD, momentum and weight decay. Neither augments; "jax, augmented" does all that the paper's
    recipe does, which loaders of PyTorch do in other processes. PyTorch runs with contiguous
    images, its default; with channels last; and with channels last and glibc keeping freed memory,
    since otherwise it frees and allocates each step's activations, page by page. Each round is a
    few steps in each program, one after the other, while the others wait. Only ratios within one
    run are meaningful.
Command: python benchmarks/face_recognition_training.py --rounds 7 --steps 4
    --json benchmarks/results/face_recognition_training.json
    (needs the extra `bench`; --small is a toy setting, to check that the script works)
Result: not measured on a quiet machine yet.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
import torch
from flax import traverse_util
from torch.nn import functional

from qdgs_jax.models import iresnet
from qdgs_jax.models.iresnet.params import table
from qdgs_jax.training import face_recognition
from qdgs_jax.training.config import AugmentationConfig, FaceRecognitionConfig
from qdgs_jax.training.face_recognition import Faces

sys.path.append(str(Path(__file__).parents[1] / "tests/models/iresnet"))
from make_golden import AdaFace, IResNet  # proven equal by the port's tests

PROGRAMS = (
    "jax", "jax, augmented",
    "torch", "torch, channels last", "torch, channels last, memory kept",
)  # fmt: skip
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
PEOPLE = 1000
TOLERANCE = 1e-3  # of the first loss, relative
PLAIN = AugmentationConfig(flip=0, crop=0, low_resolution=0, photometric=0)


def main() -> None:
    """Runs all programs alternately and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="of a round")
    parser.add_argument("--small", action="store_true", help="a toy setting")
    parser.add_argument("--json", type=Path, help="where to write all times")
    options = parser.parse_args()
    setting = {
        "image_size": 32 if options.small else 64,
        "batch_size": 8 if options.small else 64,
        "channels": (4, 6, 8, 10) if options.small else (64, 128, 256, 512),
        "steps": options.steps,
    }
    programs, first = {}, {}
    for name in PROGRAMS:  # one after the other, since compilation is timed
        programs[name] = start(name, setting)
        first[name] = programs[name].recv()
    for name, (loss, _) in first.items():
        if "augmented" not in name and not abs(loss / first["jax"][0] - 1) < TOLERANCE:
            raise SystemExit(
                f"{name} has a loss of {loss}, not {first['jax'][0]}: times say nothing"
            )
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for number in range(options.rounds):
        for name, pipe in programs.items():
            pipe.send(number)
            seconds[name].append(pipe.recv())
    for pipe in programs.values():
        pipe.send(None)
    medians = {name: median(times) for name, times in seconds.items()}
    result = {
        "setting": setting,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads of PyTorch",
        "versions": {"jax": jax.__version__, "torch": torch.__version__},
        "compilation_s": first["jax"][1],
        "seconds_a_step": seconds,
        "ratio": {name: value / medians["jax"] for name, value in medians.items()},
    }
    print(f"{result['machine']}; compilation {result['compilation_s']:.1f} s")
    for name, value in medians.items():
        print(f"{name:34} {value:7.3f} s a step, {result['ratio'][name]:5.2f}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def start(name: str, setting: dict[str, Any]) -> Connection:
    """Starts a program in its own process; sending it a number gives seconds of a step."""
    ours, theirs = multiprocessing.Pipe()
    environment = KEEP_MEMORY if "memory kept" in name else {}
    os.environ.update(environment)  # glibc reads it when the process begins
    arguments = name, setting, theirs
    multiprocessing.get_context("spawn").Process(target=serve, args=arguments, daemon=True).start()
    for key in environment:
        del os.environ[key]
    return ours


def serve(name: str, setting: dict[str, Any], pipe: Connection) -> None:
    """The loss of the first step and seconds of compilation first; then seconds of a step."""
    layout = torch.channels_last if "channels last" in name else torch.contiguous_format
    if name.startswith("jax"):
        augmentation = AugmentationConfig() if "augmented" in name else PLAIN
        program: Any = InJax(setting, augmentation)
    else:
        program = InTorch(setting, layout)
    pipe.send((program.first_loss, program.compilation))
    while pipe.recv() is not None:
        begun = time.perf_counter()
        program.train()
        pipe.send((time.perf_counter() - begun) / setting["steps"])


def make_batches(setting: dict[str, Any]) -> Faces:
    random = np.random.default_rng(0)
    count = setting["steps"], setting["batch_size"]
    images = random.integers(0, 256, (*count, *(setting["image_size"],) * 2, 3), np.uint8)
    return Faces(images, random.integers(0, PEOPLE, count).astype(np.int32))


def initial_state(
    setting: dict[str, Any], *, dropout: float
) -> tuple[iresnet.IResNetConfig, face_recognition.TrainingState]:
    network = iresnet.IResNetConfig(
        channels=setting["channels"], image_size=setting["image_size"], dropout=dropout
    )
    params = iresnet.init(network, jax.random.key(0))
    config = FaceRecognitionConfig(augmentation=PLAIN)
    return network, face_recognition.start(config, params, jax.random.key(1), people=PEOPLE)


class InJax:
    """A training as `fit` runs it."""

    def __init__(self, setting: dict[str, Any], augmentation: AugmentationConfig) -> None:
        self.config = FaceRecognitionConfig(augmentation=augmentation)
        self.batches = make_batches(setting)
        # Dropout draws other numbers in each program, hence the first loss is without.
        self.network, self.state = initial_state(setting, dropout=0.0)
        self.first_loss = self.train()
        self.network, self.state = initial_state(setting, dropout=0.4)
        begun = time.perf_counter()
        self.train()
        once = time.perf_counter()
        self.train()
        self.compilation = (once - begun) - (time.perf_counter() - once)

    def train(self) -> float:
        """The loss of the first step."""
        self.state, losses = face_recognition.train(
            self.config, self.network, self.state, jax.random.key(2), self.batches, steps=1000
        )
        return float(losses[0])


class InTorch:
    """The same in PyTorch, in its usual form."""

    compilation = None

    def __init__(self, setting: dict[str, Any], layout: torch.memory_format) -> None:
        self.setting, self.layout = setting, layout
        batches = make_batches(setting)
        self.images = torch.tensor(batches.images).permute(0, 1, 4, 2, 3)
        self.labels = torch.tensor(batches.labels, dtype=torch.int64)
        self.prepare(dropout=0.0)
        self.first_loss = self.train()
        self.prepare(dropout=0.4)
        self.train()  # warm

    def prepare(self, *, dropout: float) -> None:
        """Network, head and optimiser with the initial weights of `InJax`."""
        config, state = initial_state(self.setting, dropout=dropout)
        params = face_recognition.weights(state)
        network = IResNet(
            config.channels, config.image_size, config.embedding_size, dropout, config.blocks
        )
        leaves = traverse_util.flatten_dict(params, sep="/")
        tensors = {}
        for row in table(config):
            leaf = np.asarray(leaves[row.target])
            leaf = leaf.reshape([row.spelled[axis] for axis in row.axes])
            tensor = leaf.transpose(np.argsort(row.axes)).reshape(row.shape)
            tensors[row.source] = torch.tensor(np.ascontiguousarray(tensor))
        network.load_state_dict(tensors, strict=False)  # without counts of batches
        self.network = network.to(memory_format=self.layout).train()
        self.head = AdaFace(config.embedding_size, PEOPLE)
        self.head.kernel.data = torch.tensor(np.asarray(state.params["centres"]))
        norms = {
            id(parameter)
            for module in network.modules()
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
            for parameter in module.parameters()
        }
        everything = [*self.network.parameters(), *self.head.parameters()]
        groups = [
            {"params": [p for p in everything if id(p) not in norms], "weight_decay": 1e-4},
            {"params": [p for p in everything if id(p) in norms], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.SGD(groups, lr=0.01, momentum=0.9)

    def train(self) -> float:
        """The loss of the first step."""
        losses = []
        for images, labels in zip(self.images, self.labels, strict=True):
            batch = (images.float() / 127.5 - 1).contiguous(memory_format=self.layout)
            loss = functional.cross_entropy(self.head(self.network(batch), labels), labels)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.optimiser.step()
            losses.append(loss.item())
        return losses[0]


if __name__ == "__main__":
    main()
