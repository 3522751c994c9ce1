"""What compiling a search for a topology shows, for programs and for people."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from qdgs_jax.collectives import Collective
from qdgs_jax.compilation.topologies import GIB

_REMEDIES = {
    "weights": "take smaller models, or a chip with more memory",
    "archives": "lower the cells, or take more chips",
    "emitters": "lower search.emitters, or take more chips",
    "temporaries": "lower search.chunk_size, or search.emitters and search.initial_samples",
}
"""Part of the memory -> what makes it smaller."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program; bytes are of one device.

    Attributes:
        arguments, outputs, aliased: bytes; outputs that are aliased take those of arguments.
        temporaries, code: bytes. A program that does not fit has only a sum, in `temporaries`.
        seconds: of tracing and compiling.
        collectives: what devices exchange.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int
    seconds: float
    collectives: tuple[Collective, ...] = ()

    @property
    def live(self) -> int:
        """Bytes that a device holds while the program runs."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code

    def as_dict(self) -> dict[str, Any]:
        """Bytes and seconds."""
        values = {"live": self.live, **dataclasses.asdict(self)}
        del values["collectives"]
        return {**values, "seconds": round(self.seconds, 1)}


@dataclasses.dataclass(frozen=True)
class Report:
    """What compiling a config for a topology shows.

    Attributes:
        topology: such as "v5e:4x4".
        devices: of JAX, over which the search is divided.
        available: bytes that a device has for programs.
        evaluations: latents scored in a generation, on all devices.
        held: part -> bytes a device between two generations.
        init, run: the programs; no `run` if `init` does not fit.
    """

    topology: str
    devices: int
    available: int
    evaluations: int
    held: dict[str, int]
    init: Program
    run: Program | None

    @property
    def largest(self) -> Program:
        """The program that needs more memory."""
        return self.init if self.run is None or self.init.live > self.run.live else self.run

    @property
    def fits(self) -> bool:
        """Whether a device can hold both programs."""
        return self.run is not None and self.largest.live <= self.available

    def as_dict(self) -> dict[str, Any]:
        """All figures as plain values."""
        run = self.run.collectives if self.run else ()
        return {
            "topology": self.topology,
            "fits": self.fits,
            "devices": self.devices,
            "evaluations_per_generation": self.evaluations,
            "available_bytes": self.available,
            "live_bytes": self.largest.live,
            "held_bytes": self.held,
            "programs": {
                "init": self.init.as_dict(),
                "run": self.run.as_dict() if self.run else None,
            },
            "collectives": {
                "generation": _summed(each for each in run if each.depth == 1),
                "loops_within_generation": _summed(each for each in run if each.depth > 1),
                "after_generations": _summed(each for each in run if each.depth == 0),
                "init": _summed(self.init.collectives),
            },
        }

    def __str__(self) -> str:
        """For people, in lines."""
        programs = {"init": self.init, "run": self.run}
        exchanged = self.as_dict()["collectives"]["generation"]
        return "\n".join(
            [
                f"{self.topology}: {self.devices} devices, {_gib(self.available)} each for "
                f"programs; {self.evaluations:,} evaluations a generation",
                "held by a device between generations: "
                + ", ".join(f"{part} {_gib(size)}" for part, size in self.held.items()),
                *(
                    f"search.{name}: {_gib(program.live)} (arguments {_gib(program.arguments)}, "
                    f"outputs {_gib(program.outputs)}, aliased {_gib(program.aliased)}, "
                    f"temporaries {_gib(program.temporaries)}, code {_gib(program.code)}), "
                    f"compiled in {program.seconds:.0f} s"
                    for name, program in programs.items()
                    if program
                ),
                "a device receives in a generation: "
                + (
                    ", ".join(
                        f"{kind} {count['bytes']:,} bytes in {count['count']}"
                        for kind, count in exchanged.items()
                    )
                    or "nothing"
                ),
                "It fits." if self.fits else self.problem(),
            ]
        )

    def problem(self) -> str:
        """What needs most of the memory, and the remedy, in a sentence."""
        parts = {**self.held, "temporaries": self.largest.live - sum(self.held.values())}
        largest = max(parts, key=lambda part: parts[part])
        return (
            f"The search does not fit: it needs {_gib(self.largest.live)} of the "
            f"{_gib(self.available)} that a device of {self.topology} has for programs, most of it "
            f"for {largest} ({_gib(parts[largest])}): {_REMEDIES[largest]}."
        )


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"


def _summed(exchanged: Iterable[Collective]) -> dict[str, dict[str, int]]:
    """Kind -> count and bytes."""
    found: dict[str, dict[str, int]] = {}
    for each in exchanged:
        sums = found.setdefault(each.kind, {"count": 0, "bytes": 0})
        sums["count"] += 1
        sums["bytes"] += each.bytes
    return dict(sorted(found.items()))
