"""Chips that are not there: their names, their memory, and devices to compile programs for.

    with compile_only("v5e:4x4") as (chip, devices):
        jax.jit(f).lower(...).compile()  # for a mesh of these devices

TPUs need libtpu, GPUs need JAX's CUDA plugin; neither needs a chip or a driver.
"""

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

from qdgs_jax.errors import ConfigError, did_you_mean, shorten

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """A kind of chip.

    Attributes:
        platform: "tpu" or "cuda".
        memory: bytes that a device has for programs.
        published: the chip's memory as its maker publishes it.
        example: a layout, of chips.
        devices: devices of JAX on one chip.
        known_as: the compiler's name of a TPU, the full name of a GPU.
        options: of the topology; for a GPU, what its compiler has to know about it.
        compiler: options of the compiler.
    """

    platform: str
    memory: int
    published: str
    example: str
    known_as: str
    devices: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    compiler: Mapping[str, Any] = field(default_factory=dict)


def _tpu(
    gib: float, published: str, example: str, known_as: str, devices: int = 1, **options: Any
) -> Chip:
    return Chip("tpu", int(gib * GIB), published, example, known_as, devices, options)


def _gpu(published: str, known_as: str, capability: int, **about: float) -> Chip:
    # JAX reserves three quarters of a GPU's memory (XLA_PYTHON_CLIENT_MEM_FRACTION).
    memory = int(about["device_memory_size"] * 3 / 4)
    same = {
        "threads_per_block_limit": 1024, "threads_per_warp": 32, "threads_per_core_limit": 2048,
        "shared_memory_per_block": 49152, "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536, "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535, "block_dim_limit_z": 65535,
    }  # fmt: skip
    device = " ".join(f"{name}: {value}" for name, value in {**same, **about}.items())
    config = (
        f"gpu_device_info {{ {device} cuda_compute_capability {{ major: {capability} }} }} "
        'platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } '
        f'device_description_str: "{known_as}"'
    )
    # Triton's tiles are chosen by trying them on a GPU; without one, some are not found.
    without_triton = {"xla_gpu_enable_triton_gemm": False}
    options = {"target_config": config}
    return Chip("cuda", memory, published, "8", known_as, 1, options, without_triton)


_HOPPER = {
    "core_count": 132, "fpus_per_core": 128, "shared_memory_per_core": 233472,
    "shared_memory_per_block_optin": 232448, "l2_cache_size": 52428800, "clock_rate_ghz": 1.98,
}  # fmt: skip
CHIPS = {
    # The bytes that libtpu 0.0.52 lets a program take, and Google's "TPU architecture".
    "v4": _tpu(30.75, "32 GiB", "2x2x4", "v4", chip_config_name="megacore"),
    "v5e": _tpu(15.75, "16 GB", "4x4", "v5e"),
    "v5p": _tpu(95.73, "95 GB", "2x2x4", "v5p"),
    "v6e": _tpu(31.24, "32 GB", "4x4", "v6e"),
    "7x": _tpu(94.74, "192 GiB", "2x2x4", "tpu7x", devices=2),
    # Bytes and sizes as CUDA tells them.
    "a100": _gpu(
        "80 GB", "NVIDIA A100-SXM4-80GB", 8, device_memory_size=85100068864,
        memory_bandwidth=2039040000000, core_count=108, fpus_per_core=64,
        shared_memory_per_core=167936, shared_memory_per_block_optin=166912,
        l2_cache_size=41943040, clock_rate_ghz=1.41,
    ),
    "h100": _gpu(
        "80 GB", "NVIDIA H100 80GB HBM3", 9, device_memory_size=84942979072,
        memory_bandwidth=3352320000000, **_HOPPER,
    ),
    "h200": _gpu(
        "141 GB", "NVIDIA H200 141GB HBM3e", 9, device_memory_size=151397597184,
        memory_bandwidth=4800000000000, **_HOPPER,
    ),
}  # fmt: skip
"""Name -> chip."""

_ENVIRONMENT = {
    # libtpu looks for no chip, asks no metadata server, and locks no other process out; the CUDA
    # plugin looks for no driver.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "none",
    "TPU_HOST_BOUNDS": "1,1,1",
    "TPU_CHIPS_PER_HOST_BOUNDS": "2,2,1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
}


@contextlib.contextmanager
def compile_only(topology: str) -> Iterator[tuple[Chip, list[jax.Device]]]:
    """The chip and the devices of a topology; programs are compiled inside of the context.

    Args:
        topology: name of a chip and layout of the chips, such as `v5e:4x4`; for GPUs, `h100:8`, or
            `h100:4x8` for four hosts of eight.

    Raises:
        ConfigError: there is no such chip or layout, or the compiler for it is not installed.
    """
    name, _, layout = topology.partition(":")
    chip = CHIPS.get(name)
    if chip is None:
        raise ConfigError(
            f"There is no chip '{shorten(name)}'{did_you_mean(name, CHIPS)}: give one of "
            f"{known_topologies()}."
        )
    if not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4}){0,2}", layout):
        raise ConfigError(
            f"The topology '{shorten(topology)}' has no layout of chips: write it like "
            f"{name}:{chip.example}."
        )
    _require_compiler(name, chip)
    with _compiler_settings():
        yield chip, _devices(chip, topology, layout)


@contextlib.contextmanager
def _compiler_settings() -> Iterator[None]:
    """The environment of the compilers, without JAX's cache, from which no absent chip can load."""
    variables, cached = dict(os.environ), jax.config.values["jax_enable_compilation_cache"]
    os.environ.update({**_ENVIRONMENT, **variables})
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # else the setting is not read again
    try:
        yield
    finally:
        for variable in _ENVIRONMENT.keys() - variables.keys():
            os.environ.pop(variable, None)
        jax.config.update("jax_enable_compilation_cache", cached)
        compilation_cache.reset_cache()


def known_topologies() -> str:
    """All chips with an example and their memory, for a sentence."""
    return ", ".join(
        f"{name}:{chip.example} ({chip.published} a chip)" for name, chip in CHIPS.items()
    )


def _require_compiler(name: str, chip: Chip) -> None:
    if chip.platform == "tpu":
        extra, found = "tpu-compile", "TPU_LIBRARY_PATH" in os.environ or _is_installed("libtpu")
    else:
        names = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
        extra, found = "cuda12", _is_installed("jax_plugins") and any(map(_is_installed, names))
    if not found:
        raise ConfigError(
            f"The compiler for {name} is not installed: run "
            f'`pip install "qdgs-jax[{extra}]"`, which needs no such chip here.'
        )


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _devices(chip: Chip, topology: str, layout: str) -> list[jax.Device]:
    options, sizes = dict(chip.options), layout.split("x")
    if chip.platform == "cuda":  # slices x hosts of each x GPUs of each
        options["topology"] = "x".join(["1"] * (3 - len(sizes)) + sizes)
    elif set(sizes) == {"1"}:  # else libtpu wants hosts of four chips
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return topologies.get_topology_desc(
            topology_name=f"{chip.known_as}:{layout}", platform=chip.platform, **options
        ).devices
    except jax.errors.JaxRuntimeError as error:
        reason = shorten(str(error).split(": ", 1)[-1].splitlines()[0])
        remedy = f"give another layout, such as {chip.example}"
        if "Invalid TPU external name" in reason:
            remedy = 'update JAX and its libtpu by `pip install -U "jax[tpu]"`'
        raise ConfigError(
            f"The topology '{topology}' is impossible ({reason}): {remedy}."
        ) from None
    except NotImplementedError:
        raise ConfigError(
            "JAX's CUDA plugin does not load on this machine: set the environment variable "
            "JAX_PLATFORMS=cpu, under which it is not tested for a GPU."
        ) from None
