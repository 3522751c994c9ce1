"""Generators in the pickles of NVIDIA's PyTorch code, read as data.

Such a file holds modules with the source code of their classes, which NVIDIA's own loader executes.
Here only the state of each module is read; its source code is ignored.
"""

import math
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qdgs_jax.models.checkpoint import MAX_NAME, explained, map_file
from qdgs_jax.models.pickles import Attributes, UnreadableError, unpickle
from qdgs_jax.models.stylegan2.modeling import StyleGAN2Config
from qdgs_jax.models.torch_files import (
    Storage,
    Tensor,
    read_legacy,
    rebuild_tensor,
    refuse_class,
    storage_type,
)

MAX_STORAGES = 1 << 13  # generator, its average and discriminator at 1024 x 1024 have about 600
MAX_STORAGE_OPCODES = 64  # PyTorch writes about 20
MAX_MODULES = 256  # a generator of 1024 x 1024 has about 70
MAX_TENSORS = 1 << 10  # a generator of 1024 x 1024 has about 200

_PLAIN = (int, float, bool, str, type(None))
_NUMBERS = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i"}


class Module(NamedTuple):
    """The state of a network's part."""

    kind: str
    state: dict[str, Any]


def read_generator(path: str | Path) -> tuple[StyleGAN2Config, dict[str, np.ndarray]]:
    """The averaged generator `G_ema`: its config, and its parameters and buffers by name.

    Raises:
        CheckpointError: The file is absent, damaged, hostile, or holds something else.
    """
    with explained(path, "fetch a .pkl that NVIDIA's PyTorch code for StyleGAN2 or 3 has written"):
        data = map_file(Path(path))
        modules = _modules(_unpickle(data))
        config = _config(modules)
        return config, _tensors(modules, len(data))


def _unpickle(data: memoryview) -> Module:
    storages: dict[int, tuple[memoryview, Storage]] = {}

    def storage(stream: Any) -> Storage:
        if not isinstance(stream, memoryview):
            raise UnreadableError("one of its storages is malformed")
        if id(stream) not in storages:
            if len(storages) == MAX_STORAGES:
                raise UnreadableError(f"it has more than {MAX_STORAGES} storages")
            held = read_legacy(stream, storage_type, limit=MAX_STORAGE_OPCODES)
            if not isinstance(held, Storage):
                raise UnreadableError("one of its storages is malformed")
            storages[id(stream)] = (stream, held)
        return storages[id(stream)][1]

    inert = {**_INERT, ("torch.storage", "_load_from_bytes"): storage}

    def find_global(module: str, name: str) -> Any:
        if module.startswith("dnnlib.tflib"):
            raise UnreadableError("it is a pickle of NVIDIA's older code, for TensorFlow")
        if module.split(".")[0] not in ("dnnlib", "numpy", "torch", "torch_utils"):
            refuse_class(module, name)
        return inert.get((module, name))

    networks = unpickle(data, find_global)
    if type(networks) is not dict or not isinstance(networks.get("G_ema"), Module):
        raise UnreadableError("it holds no network G_ema")
    return networks["G_ema"]


def _module(meta: Any) -> Module:
    if type(meta) is not dict or (meta.get("type"), meta.get("version")) != ("class", 6):
        raise UnreadableError("one of its networks is of another version of the format")
    if type(meta.get("class_name")) is not str or type(meta.get("state")) is not dict:
        raise UnreadableError("one of its networks is malformed")
    return Module(meta["class_name"], meta["state"])


class _Type(Attributes):
    """A number's type."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name = name


def _scalar(kind: Any, data: Any) -> float:
    if not isinstance(kind, _Type) or type(kind.name) is not str or kind.name not in _NUMBERS:
        raise UnreadableError("one of its numbers is malformed")
    if type(kind.state) is not tuple or kind.state[1:2] != ("<",):
        raise UnreadableError("its byte order is not little-endian")
    return struct.unpack(_NUMBERS[kind.name], data)[0]


_INERT: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _module,
    ("dnnlib.util", "EasyDict"): lambda: {},
    ("collections", "OrderedDict"): lambda: {},
    ("builtins", "set"): lambda values: values,
    ("numpy", "dtype"): _Type,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("torch._utils", "_rebuild_parameter"): lambda data, requires_grad, hooks: data,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
}


def _modules(root: Module) -> dict[str, Module]:
    """All parts by dotted name, outer before inner."""
    modules: dict[str, Module] = {}
    todo = [("", root)]
    while todo:
        name, module = todo.pop()
        modules[name] = module
        for key, child in _items(module, "_modules"):
            if child is not None:
                if not isinstance(child, Module):
                    raise UnreadableError("its generator is malformed")
                todo.append((_joined(name, key), child))
            if len(modules) + len(todo) > MAX_MODULES:
                raise UnreadableError(f"its generator has more than {MAX_MODULES} parts")
    return modules


def _items(module: Module, part: str) -> Iterable[tuple[Any, Any]]:
    if len(module.state[part]) > MAX_TENSORS:
        raise UnreadableError("its generator has too many parts, or too many tensors")
    return module.state[part].items()


def _joined(name: str, key: Any) -> str:
    if type(key) is not str or not 0 < len(key) <= MAX_NAME - len(name) or not key.isprintable():
        raise UnreadableError("one of its names is empty, too long, or no plain text")
    return f"{name}.{key}" if name else key


def _tensors(modules: dict[str, Module], limit: int) -> dict[str, np.ndarray]:
    """Parameters and buffers, at most `limit` bytes, without filters, which the config holds."""
    tensors: dict[str, np.ndarray] = {}
    for name, module in modules.items():
        for part in ("_parameters", "_buffers"):
            for key, tensor in _items(module, part):
                if tensor is None or key == "resample_filter":
                    continue
                if not isinstance(tensor, Tensor):
                    raise UnreadableError("its generator is malformed")
                limit -= tensor.bytes
                if limit < 0 or len(tensors) == MAX_TENSORS:
                    raise UnreadableError("its generator has too many tensors, or too large ones")
                tensors[_joined(name, key)] = tensor.array()
    return tensors


def _config(modules: dict[str, Module]) -> StyleGAN2Config:
    """The config of all parts, from the values that they store, not from constructor arguments."""
    if "synthesis.b4" not in modules or "mapping" not in modules:
        raise UnreadableError(f"its G_ema, a {modules[''].kind[:40]!r}, is no StyleGAN2")
    sides = [4 << i for i in range(len(modules)) if f"synthesis.b{4 << i}" in modules]
    blocks = [f"synthesis.b{side}" for side in sides]
    dense = [f"mapping.fc{i}" for i in range(len(modules)) if f"mapping.fc{i}" in modules]
    state = {name: module.state for name, module in modules.items()}

    def outputs(name: str) -> int:
        return int(state[name]["_parameters"]["weight"].size[0])

    def plain(name: str, key: str) -> Any:
        value = state[name][key]  # nested tuples may take for ever to be compared or shown
        if type(value) not in _PLAIN:
            raise UnreadableError(f"its {name} has a {key} that is no number and no text")
        return value

    clamp = plain("synthesis.b4.conv1", "conv_clamp")
    label_size, style_size = plain("mapping", "c_dim"), plain("mapping", "w_dim")
    config = StyleGAN2Config(
        latent_size=plain("mapping", "z_dim"),
        label_size=label_size,
        style_size=style_size,
        mapping_sizes=tuple(map(outputs, dense)),
        embedding_size=outputs("mapping.embed") if label_size else style_size,
        mapping_rate=float(plain(dense[0], "bias_gain")),
        channels=tuple(outputs(f"{block}.conv1") for block in blocks),
        image_channels=outputs(f"{blocks[-1]}.torgb"),
        architecture=plain(blocks[-1], "architecture"),
        clamp=None if clamp is None else float(clamp),
        filter_taps=_taps(modules),
        noise=plain("synthesis.b4.conv1", "use_noise"),
    )
    for name, module in modules.items():
        for key, value in _stored(config, name, module).items():
            if not _equal(stored := plain(name, key), value):
                raise UnreadableError(f"its {name} has {key} {str(stored)[:20]}, not {value}")
    return config


def _stored(config: StyleGAN2Config, name: str, module: Module) -> dict[str, Any]:
    """What a part of this config's network stores."""
    last = name.rsplit(".", 1)[-1]
    match module.kind:
        case "SynthesisBlock":
            side = int(last[1:])
            return {
                "resolution": side,
                "architecture": config.architecture,
                "is_last": side == config.image_size,
            }
        case "SynthesisLayer":
            return {
                "resolution": int(name.split(".")[1][1:]),
                "up": 2 if last == "conv0" else 1,
                "padding": 1,
                "activation": "lrelu",
                "act_gain": math.sqrt(2),
                "conv_clamp": config.clamp,
                "use_noise": config.noise,
            }
        case "ToRGBLayer":
            return {"conv_clamp": config.clamp, "weight_gain": _gain(module)}
        case "FullyConnectedLayer":
            hidden = last.startswith("fc")
            rate = config.mapping_rate if hidden else 1.0
            return {
                "activation": "lrelu" if hidden else "linear",
                "weight_gain": rate * _gain(module),
                "bias_gain": rate,
            }
        case "Conv2dLayer":
            return {"weight_gain": _gain(module)}
        case "MappingNetwork":
            return {"num_ws": config.layers, "num_layers": len(config.mapping_sizes)}
        case "Generator" | "SynthesisNetwork":
            return {}
    raise UnreadableError(f"its {name}, a {module.kind[:40]!r}, is no part of StyleGAN2")


def _gain(module: Module) -> float:
    """1 / sqrt(inputs)."""
    return 1 / math.sqrt(math.prod(module.state["_parameters"]["weight"].size[1:]))


def _equal(stored: Any, expected: Any) -> bool:
    if isinstance(stored, float) and isinstance(expected, float):
        return math.isclose(stored, expected, rel_tol=1e-6)
    return stored == expected


def _taps(modules: dict[str, Module]) -> tuple[float, float, float, float]:
    """The filter along one axis; its outer product with itself is every stored filter."""
    buffers = [module.state["_buffers"] for module in modules.values()]
    stored = [tensors["resample_filter"] for tensors in buffers if "resample_filter" in tensors]
    if any(kernel.size != (4, 4) for kernel in stored):
        raise UnreadableError("its resample_filter is not 4 x 4")
    filters = [kernel.array() for kernel in stored]
    f0, f1, f2, f3 = taps = filters[0].astype(np.float64).sum(1)
    if not all(np.allclose(kernel, np.outer(taps, taps), rtol=1e-6) for kernel in filters):
        raise UnreadableError("its resample_filter is not one normalised filter along either axis")
    return float(f0), float(f1), float(f2), float(f3)
