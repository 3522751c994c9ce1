"""A search before it starts: its ranges, memory and seconds, found by loading, compiling and
running a few generations. Nothing is written."""

import dataclasses
import datetime
import logging
import time
from typing import Any

import jax

from qdgs_jax import processes, sharding
from qdgs_jax.chunks import device_memory
from qdgs_jax.config import Config, Interval
from qdgs_jax.errors import ConfigError
from qdgs_jax.generators import Generator
from qdgs_jax.problem import load_problem, needed_memory, require_memory
from qdgs_jax.runs.sampling import compile_programs
from qdgs_jax.typing import Params

GENERATIONS = 3
"""Generations that are run and timed, after as many that are not timed."""
LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """What a run would take. Memory is in bytes of each device."""

    ranges: dict[str, Interval]
    """Measure -> ends, in numbers."""
    threshold_min: float
    chunk_size: int
    device: str
    devices: int
    memory_state: int
    """Of archives, emitters and first latents."""
    memory_programs: int
    """Of the compiled programs while they run, with that state, weights and temporaries."""
    memory_device: int
    """That there is."""
    generations: int
    evaluations: int
    """Latents scored in a generation."""
    seconds_load: float
    """Of loading models, embedding prompts and sampling random images."""
    seconds_compile: float
    seconds_start: float
    """Of scoring the first latents."""
    seconds_generation: float

    @property
    def seconds_evaluation(self) -> float:
        """Of one latent, on all devices together."""
        return self.seconds_generation / self.evaluations

    @property
    def seconds_run(self) -> float:
        """Of the whole run, without writing checkpoints and results."""
        before = self.seconds_load + self.seconds_compile + self.seconds_start
        return before + self.generations * self.seconds_generation

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        seconds = {"evaluation": self.seconds_evaluation, "run": self.seconds_run}
        return {
            **dataclasses.asdict(self),
            **{f"seconds_{name}": value for name, value in seconds.items()},
        }

    def __str__(self) -> str:
        """For people, in lines."""
        ranges = (f"{name} {low:g} to {high:g}" for name, (low, high) in self.ranges.items())
        return "\n".join(
            [
                f"ranges: {', '.join(ranges)}; threshold_min {self.threshold_min:g}; chunk_size "
                f"{self.chunk_size}",
                f"memory of each of {self.devices} device(s) ({self.device}): "
                f"{_size(self.memory_programs)} of {_size(self.memory_device)}, "
                f"{_size(self.memory_state)} of it for archives, emitters and first latents",
                f"seconds to load {self.seconds_load:.1f}, to compile {self.seconds_compile:.1f}, "
                f"to score the first latents {self.seconds_start:.2g}",
                f"a generation of {self.evaluations:,} evaluations: "
                f"{self.seconds_generation:.3g} s, {self.seconds_evaluation:.2g} s each",
                f"the whole run of {self.generations:,} generations: about "
                f"{datetime.timedelta(seconds=round(self.seconds_run))}",
            ]
        )


def rehearse(
    config: Config,
    *,
    generator: tuple[Generator, Params] | None = None,
    allow_code: bool = False,
) -> Rehearsal:
    """Loads and compiles a search as `sample` does, and runs a few generations.

    Args:
        generator, allow_code: as in `sample`.

    Raises:
        ConfigError: the config is impossible, or the search does not fit into a device.
        CheckpointError: a model cannot be read.
    """
    with sharding.all_devices(), processes.losses_explained(again="run the same command again"):
        began = time.perf_counter()
        with sharding.no_mesh(), processes.errors_shared():
            problem = load_problem(config, generator=generator, allow_code=allow_code)
        seconds_load = time.perf_counter() - began
        require_memory(problem)
        programs = compile_programs(problem, GENERATIONS)
        if programs.memory > device_memory():
            raise ConfigError(
                f"The search's programs need {_size(programs.memory)} on each device, but a device "
                f"has {_size(device_memory())}: lower search.chunk_size, the cells or "
                "search.emitters, or use more devices."
            )
        LOG.info("timing a few generations")
        began = time.perf_counter()
        state = jax.block_until_ready(programs.begin())
        seconds_start = time.perf_counter() - began
        for _ in range(2):
            began = time.perf_counter()
            state, _ = jax.block_until_ready(programs.advance(GENERATIONS)(state))
        seconds_generation = (time.perf_counter() - began) / GENERATIONS
        options = problem.config.search
        return Rehearsal(
            ranges={measure.name: measure.ends for measure in problem.config.measures},
            threshold_min=problem.search.floor,
            chunk_size=options.chunk,
            device=jax.devices()[0].device_kind,
            devices=sharding.devices(),
            memory_state=round(needed_memory(problem)),
            memory_programs=programs.memory,
            memory_device=device_memory(),
            generations=options.generations,
            evaluations=problem.search.evaluations_per_generation,
            seconds_load=seconds_load,
            seconds_compile=programs.seconds,
            seconds_start=seconds_start,
            seconds_generation=seconds_generation,
        )


def _size(count: float) -> str:
    return f"{count / 2**20:,.0f} MiB"
