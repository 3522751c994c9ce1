"""Compiles a config's search for chips that are not there, and says whether it fits.

    report = compile_for(load_config("configs/search/faces_pod.toml"), "v5e:4x4")
    print(report)

The programs are those of a run: `search.init`, and `search.run` for one logging interval, of which
the state is donated. Only shapes of weights and latents go into them. What is left out: rendering
the pictures of a run, and the dataset's export. For a GPU the figures are estimates: algorithms of
products and convolutions are chosen by trying them on it.
"""

import dataclasses
import functools
import math
import re
import time
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qdgs_jax import search
from qdgs_jax.collectives import read
from qdgs_jax.compilation.report import Program, Report
from qdgs_jax.compilation.topologies import Chip, compile_only
from qdgs_jax.config import Config
from qdgs_jax.errors import ConfigError, QDGSError
from qdgs_jax.problem import Problem, load_problem
from qdgs_jax.search import SearchState
from qdgs_jax.sharding import make_mesh
from qdgs_jax.typing import Params


def compile_for(config: Config, topology: str, *, allow_code: bool = False) -> Report:
    """Compiles the search of `config` for the devices of `topology`.

    Args:
        topology: see `topologies.compile_only`.
        allow_code: whether generator, encoder and measures may be functions of other packages,
            which are imported.

    Raises:
        ConfigError: a model, size or topology is impossible, or the chip's compiler is missing.
        CheckpointError: a model cannot be read.
    """
    with compile_only(topology) as (chip, devices):
        problem = load_problem(_with_numbers(config), allow_code=allow_code)
        mesh = make_mesh(devices)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return _compiled(problem, topology, chip, mesh)


def _with_numbers(config: Config) -> Config:
    """Numbers for an `auto` floor and ranges: finding them takes long, and they do not change the
    program.

    Raises:
        ConfigError: the chunk size is to fit a device.
    """
    if config.search.chunk_size == "auto":
        raise ConfigError(
            "search.chunk_size is 'auto', which fits the device at hand and not one that is not "
            "there: give a number, such as --search.chunk-size 64."
        )
    floor = 0.0 if config.search.threshold_min == "auto" else config.search.threshold_min
    measures = tuple(
        dataclasses.replace(measure, range=(-1.0, 1.0)) if measure.range == "auto" else measure
        for measure in config.measures
    )
    search = dataclasses.replace(config.search, threshold_min=floor)
    return dataclasses.replace(config, measures=measures, search=search)


def _compiled(problem: Problem, topology: str, chip: Chip, mesh: Mesh) -> Report:
    """Both programs; the second takes its state as the first divides it."""
    params, (key, latents) = (
        _placed(tree, jax.tree.map(lambda _: PartitionSpec(), tree), mesh)
        for tree in (problem.params, jax.eval_shape(problem.initial_latents))
    )
    began = time.perf_counter()
    # Weights that a program does not use, as those of the text tower, are on the devices too.
    begin = jax.jit(functools.partial(search.init, problem.search), keep_unused=True).lower(
        params, key, latents
    )
    state = _expected(begin.out_info, mesh)
    compiled, init = _compile(begin, (params, key, latents), state, (), began, chip)
    run = None
    if compiled:
        state = jax.tree.map(_abstract, begin.out_info, compiled.output_shardings)
        # At least two generations: a loop of one is no loop, and its collectives would not be told.
        generations = max(2, problem.config.run.log_every)
        began = time.perf_counter()
        advance = jax.jit(
            functools.partial(search.run, problem.search),
            static_argnums=2,
            donate_argnums=1,
            keep_unused=True,
        ).lower(params, state, generations)
        _, run = _compile(advance, (params, state), state, state, began, chip)
    return Report(
        topology=topology,
        devices=mesh.size,
        available=chip.memory,
        evaluations=problem.search.evaluations_per_generation,
        held=_held(params, state),
        init=init,
        run=run,
    )


def _compile(
    lowered: Any, given: Any, outputs: Any, donated: Any, began: float, chip: Chip
) -> tuple[Any | None, Program]:
    """Compiles; where the compiler finds too little memory, nothing, and what it says."""
    try:
        compiled = lowered.compile(compiler_options=dict(chip.compiler))
    except jax.errors.JaxRuntimeError as error:
        needed = re.search(
            r"(?:\(([\d.]+)([KMGT])\) exceeds available|Used ([\d.]+)([KMGT]) of )", str(error)
        )
        if "RESOURCE_EXHAUSTED" not in str(error) or not needed:
            raise
        number, unit = filter(None, needed.groups())
        total = int(float(number) * 1024 ** ("KMGT".index(unit) + 1))
        arguments, results, aliased = map(_bytes, (given, outputs, donated))
        temporaries = max(0, total - arguments - results + aliased)
        seconds = time.perf_counter() - began
        return None, Program(arguments, results, aliased, temporaries, 0, seconds)
    memory = compiled.memory_analysis()
    return compiled, Program(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        seconds=time.perf_counter() - began,
        collectives=read(_text(compiled)).collectives,
    )


def _text(compiled: Any) -> str:
    try:
        return str(compiled.as_text())
    except jax.errors.JaxRuntimeError as error:
        raise QDGSError(
            f"The installed jaxlib cannot read the compiler's program ({str(error)[:100]}), which "
            'is of another age: run `pip install -U "jax[tpu]"`.'
        ) from None


def _expected(state: SearchState, mesh: Mesh) -> SearchState:
    """A state divided as `search.init` is to divide it: archives by columns, emitters by rows."""

    def rows(leaf: Any) -> PartitionSpec:
        divides = leaf.ndim and leaf.shape[0] % mesh.size == 0
        return PartitionSpec(mesh.axis_names) if divides else PartitionSpec()

    def columns(leaf: Any) -> PartitionSpec:
        divides = leaf.ndim == 2 and leaf.shape[1] % mesh.size == 0
        return PartitionSpec(None, mesh.axis_names) if divides else PartitionSpec()

    specs = jax.tree.map(columns, state).replace(emitter=jax.tree.map(rows, state.emitter))
    return _placed(state, specs, mesh)


def _placed(tree: Any, specs: Any, mesh: Mesh) -> Any:
    """Shapes in place of arrays, divided over the mesh."""
    return jax.tree.map(lambda leaf, spec: _abstract(leaf, NamedSharding(mesh, spec)), tree, specs)


def _abstract(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _held(params: Params, state: SearchState) -> dict[str, int]:
    """Part -> bytes of one device."""
    return {
        "weights": _bytes(params),
        "archives": _bytes((state.elites, state.annealed)),
        "emitters": _bytes((state.emitter, state.memory)),
    }


def _bytes(tree: Any) -> int:
    """Bytes of one device, of shapes that are divided over devices."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
