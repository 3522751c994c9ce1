"""The experiment before it starts: what it would do, its memory and its seconds, by loading and
compiling, one step of the training and some faces. Nothing is written."""

import dataclasses
import datetime
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from qdgs_jax import sharding
from qdgs_jax.chunks import device_memory, program_memory
from qdgs_jax.config import Config
from qdgs_jax.datasets.offsets import ELITES, RANK, STEPS
from qdgs_jax.experiments.face_recognition.arms import network_of
from qdgs_jax.experiments.face_recognition.config import FacePretrainingConfig
from qdgs_jax.experiments.face_recognition.experiment import make_studio
from qdgs_jax.experiments.face_recognition.people import SPARE
from qdgs_jax.image_measures import TONES
from qdgs_jax.models import iresnet
from qdgs_jax.runs import rehearsal
from qdgs_jax.runs.rehearsal import Rehearsal
from qdgs_jax.training import face_recognition as training
from qdgs_jax.training.face_recognition import Faces


@dataclasses.dataclass(frozen=True)
class FaceRehearsal:
    """What the experiment would take. Memory is in bytes of each device."""

    seeds: int
    arms: tuple[str, ...]
    search: Rehearsal | None
    """None without the arm `qdgs`."""
    network: str
    weights: int
    """Numbers of the network."""
    faces: int
    """Of a seed, that are rendered and looked at to find identities to train and to test on."""
    steps: int
    """Of all pre-trainings of a seed."""
    batch_size: int
    device: str
    devices: int
    memory_step: int
    memory_device: int
    """That there is."""
    memory_faces: int
    """Bytes of this machine for the faces of an arm."""
    seconds_compile: float
    """Of the training step."""
    seconds_step: float
    seconds_face: float
    """To render a face and to look at it."""

    @property
    def seconds_seed(self) -> float:
        """Of a seed, without writing and without real people."""
        search = self.search.seconds_run if self.search else 0.0
        return search + self.faces * self.seconds_face + self.steps * self.seconds_step

    @property
    def seconds_run(self) -> float:
        """Of the whole experiment."""
        return self.seconds_compile + self.seeds * self.seconds_seed

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        search = self.search.as_dict() if self.search else None
        seconds = {"seconds_seed": self.seconds_seed, "seconds_run": self.seconds_run}
        return {**dataclasses.asdict(self), "search": search, **seconds}

    def __str__(self) -> str:
        """For people, in lines."""
        lines = [f"{self.seeds} seed(s), each with the arms {', '.join(self.arms)}"]
        if self.search:
            lines += ["a search:", *(f"  {line}" for line in str(self.search).split("\n"))]
        lines += [
            f"identities: {self.faces:,} faces looked at, {self.seconds_face:.2g} s each: "
            f"{_duration(self.faces * self.seconds_face)}; {_size(self.memory_faces)} of this "
            "machine's memory for those of an arm",
            f"training: {self.network} of {self.weights:,} weights, {self.steps:,} steps of "
            f"{self.batch_size} images, {self.seconds_step:.3g} s each, after "
            f"{self.seconds_compile:.0f} s of compiling: "
            f"{_duration(self.steps * self.seconds_step)}",
            f"memory of each of {self.devices} device(s) ({self.device}): "
            f"{_size(self.memory_step)} of {_size(self.memory_device)}",
            f"a seed: about {_duration(self.seconds_seed)}; all: about "
            f"{_duration(self.seconds_run)}, without tests and real people",
        ]
        return "\n".join(lines)


def rehearse(
    config: FacePretrainingConfig, search: Config, *, allow_code: bool = False
) -> FaceRehearsal:
    """Loads and compiles what `run_experiment` does, and runs a step and some faces.

    Raises:
        ConfigError: the config is impossible, or the search does not fit into a device.
        CheckpointError: a model cannot be read.
    """
    searched = None
    if "qdgs" in config.arms:
        searched = rehearsal.rehearse(search, allow_code=allow_code)
    arms = [arm for arm in config.arms if arm != "none"]
    with sharding.local_devices():
        step = _time_step(config)
        studio = make_studio(config, search, allow_code=allow_code)
        random = studio.sample(config.seed, "latents of a rehearsal", studio.at_once)
        seconds_face = _seconds(lambda: [*studio.look.chunks(random)]) / len(random)
        devices = sharding.devices()
    wanted = len(arms) * config.identities + len(TONES) * config.test_identities
    own_steps = config.identities * config.images // config.training.batch_size
    return FaceRehearsal(
        seeds=config.seeds,
        arms=config.arms,
        search=searched,
        network=f"IR-{config.network.depth}",
        weights=step.weights,
        faces=math.ceil(SPARE * wanted) * 2 * len(STEPS) + 2 * RANK * ELITES,
        steps=len(arms) * config.training.epochs * own_steps,
        batch_size=config.training.batch_size,
        device=jax.devices()[0].device_kind,
        devices=devices,
        memory_step=step.memory,
        memory_device=device_memory(),
        memory_faces=config.identities * config.images * 3 * config.network.image_size**2,
        seconds_compile=step.seconds_compile,
        seconds_step=step.seconds,
        seconds_face=seconds_face,
    )


class _Step(NamedTuple):
    weights: int
    memory: int
    seconds_compile: float
    seconds: float


def _time_step(config: FacePretrainingConfig) -> _Step:
    """Compiles and runs a step of the training with grey faces."""
    network, options = network_of(config), config.training
    key = jax.random.key(0)
    params = iresnet.init(network, key)
    state = training.start(options, params, key, people=config.identities)
    state, key = sharding.on_all_devices((state, key))
    side = network.image_size
    batches = Faces(
        np.full((1, options.batch_size, side, side, 3), 128, np.uint8),
        np.arange(options.batch_size, dtype=np.int32)[None] % config.identities,
    )
    began = time.perf_counter()
    lowered = training.train.lower(options, network, state, key, batches, steps=1)
    program = lowered.compile()
    seconds_compile = time.perf_counter() - began
    seconds = 0.0
    for _ in range(2):  # the first fills caches
        began = time.perf_counter()
        state, _losses = jax.block_until_ready(program(state, key, batches))
        seconds = time.perf_counter() - began
    weights = sum(leaf.size for leaf in jax.tree.leaves(params["params"]))
    return _Step(weights, program_memory(program), seconds_compile, seconds)


def _seconds(run: Callable[[], Any]) -> float:
    """Of the second call."""
    run()
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def _size(count: float) -> str:
    return f"{count / 2**20:,.0f} MiB"
