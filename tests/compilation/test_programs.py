"""Programs for chips that are not there: what they need, what they exchange, whether they fit."""

import dataclasses
import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from qdgs_jax import collectives
from qdgs_jax.cli import run_command
from qdgs_jax.compilation import programs, topologies
from qdgs_jax.compilation.programs import Program, Report, compile_for
from qdgs_jax.compilation.topologies import CHIPS, GIB, compile_only
from qdgs_jax.config import Config
from qdgs_jax.emitters import cma_es
from qdgs_jax.errors import ConfigError, QDGSError
from qdgs_jax.sharding import make_mesh

CONFIG = str(Path(__file__).parents[2] / "configs/search/shapes.toml")

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
needs_cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_plugins") is None
    or importlib.util.find_spec("jax_plugins.xla_cuda12") is None,
    reason="JAX's CUDA plugin is not installed",
)


def report(**parts: Any) -> Report:
    """A report of 1, 2, 3 and 4 GiB for weights, archives, emitters and temporaries."""
    sizes = {"weights": 1, "archives": 2, "emitters": 3, "temporaries": 4, "available": 16, **parts}
    available = sizes.pop("available")
    temporaries = sizes.pop("temporaries") * GIB
    held = {part: size * GIB for part, size in sizes.items()}
    init = Program(GIB, 0, 0, 0, 0, 1.0)
    exchanged = tuple(
        collectives.Collective(kind, size, depth, "")
        for kind, size, depth in [
            ("all-gather", 3, 1), ("all-gather", 4, 1), ("all-to-all", 5, 2), ("all-reduce", 6, 0),
        ]
    )  # fmt: skip
    run = Program(sum(held.values()), 7, 7, temporaries, 0, 2.0, exchanged)
    return Report("v5e:4x4", 16, available * GIB, 128, held, init, run)


def test_a_report_sums_memory_and_collectives() -> None:
    values = report().as_dict()
    assert values["fits"]
    assert values["live_bytes"] == 10 * GIB
    assert values["collectives"] == {
        "generation": {"all-gather": {"count": 2, "bytes": 7}},
        "loops_within_generation": {"all-to-all": {"count": 1, "bytes": 5}},
        "after_generations": {"all-reduce": {"count": 1, "bytes": 6}},
        "init": {},
    }
    assert "all-gather 7 bytes in 2" in str(report())
    assert str(report()).endswith("It fits.")


@pytest.mark.parametrize(
    ("part", "remedy"),
    [
        ("weights", "smaller models"),
        ("archives", "lower the cells"),
        ("emitters", "lower search.emitters"),
        ("temporaries", "lower search.chunk_size"),
    ],
)
def test_what_does_not_fit_names_its_largest_part(part: str, remedy: str) -> None:
    large = report(**{part: 20})
    assert not large.fits
    assert f"most of it for {part} (20.00 GiB): " in large.problem()
    assert remedy in large.problem()
    assert large.problem() in str(large)


def test_a_first_program_that_does_not_fit_is_the_whole_report() -> None:
    first = dataclasses.replace(report(), init=Program(0, 0, 0, 99 * GIB, 0, 1.0), run=None)
    assert not first.fits
    assert first.as_dict()["programs"]["run"] is None
    assert "needs 99.00 GiB of the 16.00 GiB" in str(first)


@pytest.mark.parametrize(
    ("topology", "sentence"),
    [
        (
            "v5ee:4x4",
            "no chip 'v5ee' (did you mean 'v5e'?): give one of v4:2x2x4 (32 GiB a chip), ",
        ),
        ("", "There is no chip ''"),
        ("v5e", "'v5e' has no layout of chips: write it like v5e:4x4."),
        ("v5e:0x4", "'v5e:0x4' has no layout"),
        ("v5e:4x4\n", "has no layout"),
    ],
)
def test_a_wrong_topology_names_those_known(topology: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as refused, compile_only(topology):
        pass
    assert sentence in str(refused.value)


@pytest.mark.parametrize(("topology", "extra"), [("v5e:4x4", "tpu-compile"), ("h100:8", "cuda12")])
def test_a_missing_compiler_names_its_extra(
    topology: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(topologies, "_is_installed", lambda package: False)
    with pytest.raises(ConfigError, match=rf'pip install "qdgs-jax\[{extra}\]"'):
        compile_only(topology).__enter__()


def test_the_command_tells_figures_and_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[Config, str]] = []
    given = [report(), report(archives=20)]

    def compiled(config: Config, topology: str, **_: Any) -> Report:
        seen.append((config, topology))
        return given[len(seen) - 1]

    monkeypatch.setattr(programs, "compile_for", compiled)
    command = ["compile", CONFIG, "--topology", "v5e:4x4"]
    assert run_command(command) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["fits"]
    assert told.err == ""
    assert run_command([*command, "--emitters", "48", "--batch-size", "7"]) == 1
    told = capsys.readouterr()
    assert not json.loads(told.out)["fits"]
    assert told.err.startswith("qdgs: The search does not fit: ")
    (plain, topology), (other, _) = seen
    assert topology == "v5e:4x4"
    sizes = {"emitters": 48, "batch_size": 7}
    assert other == dataclasses.replace(plain, search=dataclasses.replace(plain.search, **sizes))
    assert run_command([*command, "--emitters", "0"]) == 2


def test_ranges_are_not_measured(toy_config: Config) -> None:
    assert {measure.range for measure in toy_config.measures} == {"auto"}
    ranged = programs._with_numbers(toy_config)
    assert {measure.range for measure in ranged.measures} == {(-1.0, 1.0)}
    given = dataclasses.replace(ranged.measures[0], range=(0.0, 3.0))
    kept = programs._with_numbers(dataclasses.replace(ranged, measures=(given,)))
    assert kept.measures == (given,)
    search = dataclasses.replace(toy_config.search, chunk_size="auto")
    with pytest.raises(ConfigError, match=r"fits the device at hand .*: give a number"):
        programs._with_numbers(dataclasses.replace(toy_config, search=search))


def test_a_compiler_of_another_age_is_told() -> None:
    class Compiled:
        def as_text(self) -> str:
            raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: Unknown opcode: mulhi")

    with pytest.raises(QDGSError, match=r'Unknown opcode: mulhi.*pip install -U "jax\[tpu\]"'):
        programs._text(Compiled())


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(("topology", "devices"), [("v5e:4x4", 16), ("v5e:16x16", 256)])
@pytest.mark.usefixtures("toy_models")
def test_a_small_search_compiles_for_tpus(
    topology: str, devices: int, toy_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = []

    def read(text: str) -> collectives.Program:
        texts.append(text)
        return collectives.read(text)

    monkeypatch.setattr(programs, "read", read)
    before = dict(os.environ)
    search = dataclasses.replace(
        toy_config.search, emitters=devices, batch_size=4, initial_samples=2 * devices
    )
    found = compile_for(dataclasses.replace(toy_config, search=search), topology)
    assert os.environ == before
    assert found.fits
    assert found.devices == devices
    assert found.evaluations == 5 * devices
    assert found.run
    assert found.run.aliased > found.held["archives"]  # the state is donated
    assert 0 < found.run.temporaries < found.available
    generation = found.as_dict()["collectives"]["generation"]
    exchanged = sum(kind["bytes"] for kind in generation.values())
    assert exchanged >= 4 * 4 * devices  # all devices get all objectives
    assert not found.as_dict()["collectives"]["loops_within_generation"]
    assert len(texts) == 2
    assert not any("lapack" in text for text in texts)


@pytest.mark.slow
@needs_libtpu
@pytest.mark.usefixtures("toy_models")
def test_one_chip_exchanges_nothing(toy_config: Config) -> None:
    found = compile_for(toy_config, "v5e:1x1")
    assert found.devices == 1
    assert not any(found.as_dict()["collectives"].values())


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("name", [name for name, chip in CHIPS.items() if chip.platform == "tpu"])
def test_memory_of_a_tpu_is_what_its_compiler_says(name: str) -> None:
    """A program that needs 256 GiB does not fit; the compiler says into how much."""
    topology = compile_only(f"{name}:2x2x1")
    try:
        chip, devices = topology.__enter__()
    except ConfigError as error:
        if "update JAX and its libtpu" not in str(error):
            raise
        pytest.skip("this libtpu is older than the chip")
    assert len(devices) == 4 * chip.devices
    whole = NamedSharding(make_mesh(devices), PartitionSpec())
    shapes = [jax.ShapeDtypeStruct((2**20, 2**10), jnp.float32, sharding=whole)] * 32
    lowered = jax.jit(lambda xs: [x + 1 for x in xs]).lower(shapes)
    with pytest.raises(jax.errors.JaxRuntimeError) as failed:
        lowered.compile()
    compiled, program = programs._compile(lowered, shapes, shapes, (), 0.0, chip)
    topology.__exit__(None, None, None)
    known = re.search(r"(?:available HBM \(| of )([\d.]+)G", str(failed.value))
    assert known, failed.value
    assert float(known[1]) == pytest.approx(chip.memory / GIB, abs=0.02)
    assert compiled is None
    assert program.arguments == program.outputs == 2**37
    assert program.live >= 2**37


@pytest.mark.slow
@needs_libtpu
def test_an_impossible_layout_is_told() -> None:
    with pytest.raises(ConfigError, match=r"'v5e:3x5' is impossible .*: give another layout"):
        compile_only("v5e:3x5").__enter__()


@pytest.mark.slow
@needs_libtpu
def test_programs_for_absent_chips_are_not_cached() -> None:
    """Reading one again fails with a warning, which is an error here."""
    for _ in range(2):
        with compile_only("v5e:2x2") as (_, devices):
            whole = NamedSharding(make_mesh(devices), PartitionSpec())
            shape = jax.ShapeDtypeStruct((3,), jnp.float32, sharding=whole)
            jax.jit(lambda x: jnp.sin(x) + 17).lower(shape).compile()
    assert jax.config.jax_enable_compilation_cache


@pytest.mark.slow
@needs_libtpu
def test_tpu_programs_have_the_branches_of_tpus() -> None:
    """`platform_dependent` resolves to the topology's platform, not to this machine's."""
    with compile_only("v5e:2x2") as (_, devices):
        mesh = make_mesh(devices)
        shape = jax.ShapeDtypeStruct(
            (4, 40, 40), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec())
        )
        text = jax.jit(cma_es._eigh).lower(shape).compile().as_text()
    assert "EighTpu" in text
    assert "lapack" not in text


@pytest.mark.slow
@needs_cuda
@pytest.mark.usefixtures("toy_models")
def test_a_small_search_compiles_for_gpus(toy_config: Config) -> None:
    try:
        found = compile_for(toy_config, "h100:8")
    except ConfigError as error:
        if "CUDA plugin does not load" not in str(error):
            raise
        pytest.skip("JAX's CUDA plugin loads here only under JAX_PLATFORMS=cpu")
    assert found.fits
    assert found.devices == 8
    assert found.available == 84942979072 * 3 // 4
