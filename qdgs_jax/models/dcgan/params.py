"""A DCGAN's weights as PyTorch saves them, recognised by their shapes, whatever their names are.

A state dict does not say which functions stand between its layers. Assumed are those of the paper:
ReLUs, a tanh at the end, and a stride of 2 with a padding of 1 after the first layer.
"""

import dataclasses
import math
import re
from itertools import combinations, pairwise
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from qdgs_jax import files
from qdgs_jax.models.checkpoint import Tensors, explained, read_tensors
from qdgs_jax.models.dcgan.modeling import DCGANConfig
from qdgs_jax.models.pickles import UnreadableError
from qdgs_jax.typing import Params

WEIGHTS = "model.safetensors"
LAYOUT = (
    "a linear layer or a transposed convolution of latents, then 4 x 4 transposed convolutions of "
    "stride 2 up to images of 1 or 3 channels, with or without batch norms between"
)
"""What is read, for a sentence."""

EPSILON = 1e-5  # of PyTorch's batch norm
MAX_LAYERS = 12  # an image of 8,192 pixels a side
MAX_TENSORS = 1 << 9  # of what may be a DCGAN, whose layers have at most six
MAX_FILE = 1 << 12  # tensors in all
MAX_DEPTH = 8  # parts of a prefix and a layer
_TOLD = 4  # tensors spelled out in one message


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """One layer with weights, and the batch norm behind it."""

    kernel: np.ndarray
    """[in, out, h, w]; a linear layer is one too, from 1 x 1 to h x w pixels."""
    bias: np.ndarray | None
    """[out], or [out * h * w] of a linear layer."""
    norm: Tensors
    """Its tensors by their own names, sized like a bias; empty without a norm."""


class _ChainError(UnreadableError):
    """The tensors are no convolutions that continue each other, from latents to images."""


def load(path: str | Path) -> tuple[DCGANConfig, Params]:
    """Loads a file of weights; its config follows from its shapes.

    Raises:
        CheckpointError: The weights are absent, or not those of a DCGAN's generator.
    """
    tensors = read_tensors(path)
    with explained(path, f"give the weights of a DCGAN ({LAYOUT})"):
        layers = find(tensors)
    shapes = [layer.kernel.shape for layer in layers]
    config = DCGANConfig(
        latent_size=shapes[0][0],
        channels=tuple(shape[1] for shape in shapes[:-1]),
        first_side=shapes[0][2],
        image_channels=shapes[-1][1],
    )
    params = {}
    for i, layer in enumerate(layers):
        kernel, bias = _fold(layer)
        if i == 0:  # from 1 x 1 to h x w pixels: a linear map
            kernel = kernel.transpose(0, 2, 3, 1).reshape(config.latent_size, -1)
            bias = bias.transpose(1, 2, 0).reshape(-1)
        else:
            kernel, bias = kernel.transpose(2, 3, 0, 1), bias[:, 0, 0]
        params[f"up{i}" if i else "project"] = {
            "kernel": jnp.asarray(kernel, jnp.float32),
            "bias": jnp.asarray(bias, jnp.float32),
        }
    return config, params


def save(folder: str | Path, config: DCGANConfig, params: Params) -> Path:
    """Writes model.safetensors into a folder, with PyTorch's layout, which `load` reads; returns
    its path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    side, channels = config.first_side, config.channels[0]
    tensors: Tensors = {}
    for name, layer in params.items():
        kernel, bias = np.asarray(layer["kernel"], np.float32), np.asarray(layer["bias"])
        if name == "project":
            kernel = kernel.reshape(config.latent_size, side, side, channels).transpose(3, 1, 2, 0)
            kernel = kernel.reshape(-1, config.latent_size)
            bias = bias.reshape(side, side, channels).transpose(2, 0, 1).reshape(-1)
        else:
            kernel = kernel.transpose(2, 3, 0, 1)
        tensors[f"{name}.weight"] = np.ascontiguousarray(kernel)
        tensors[f"{name}.bias"] = np.ascontiguousarray(bias, np.float32)
    path = folder / WEIGHTS
    files.write(path, safetensors.numpy.save(tensors, {"format": "pt"}))
    return path


def find(tensors: Tensors) -> list[Layer]:
    """The layers of a DCGAN's generator, in their order, among all tensors of a file.

    It may stand under any prefix, beside other networks; of a network and its moving average
    (`ema`), the average is taken.

    Raises:
        UnreadableError: There is none, or one with layers that are not read; it names them.
    """
    if len(tensors) > MAX_FILE:
        raise UnreadableError(f"it holds more than {MAX_FILE} tensors")
    networks: dict[str, Tensors] = {}  # prefix -> all below it
    for name, tensor in tensors.items():
        parts = name.split(".")
        if parts[-1] != "num_batches_tracked":
            for depth in range(min(len(parts) - 1, MAX_DEPTH)):
                networks.setdefault(".".join(parts[:depth]), {})[name] = tensor
    misfits: dict[str, UnreadableError] = {}
    for prefix in sorted(networks, key=_rank):
        parts, weights = prefix.split("."), [x for x in networks[prefix].values() if x.ndim > 1]
        around = (misfits.get(".".join(parts[:depth])) for depth in range(len(parts)))
        if len(networks[prefix]) > MAX_TENSORS or len(weights) < 2:
            continue
        if not all(misfit is None or isinstance(misfit, _ChainError) for misfit in around):
            continue  # part of a generator that is not read would return other images
        try:
            layers = _parse(networks[prefix])
            _check_input(tensors, prefix, layers[0])
        except UnreadableError as misfit:
            misfits[prefix] = misfit
        else:
            return layers
    if not misfits:
        raise UnreadableError(f"it holds only {_told(tensors)}")
    # Rather which layer of a generator is not read than why a whole file is no generator.
    raise min(misfits.values(), key=lambda misfit: isinstance(misfit, _ChainError))


def _rank(prefix: str) -> tuple[bool, int, str]:
    """Averages and whole networks first."""
    return "ema" not in re.split(r"[._]", prefix.lower()), len(prefix), prefix


def _within(name: str, prefix: str) -> bool:
    return not prefix or name.startswith(f"{prefix}.")


def _check_input(tensors: Tensors, prefix: str, first: Layer) -> None:
    """Refuses a network whose inputs may be the outputs of a linear layer beside it."""
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and name.endswith(".weight") and not _within(name, prefix):
            pixels, rest = divmod(tensor.shape[0], first.kernel.shape[0])
            if pixels and not rest and math.isqrt(pixels) ** 2 == pixels:
                raise UnreadableError(
                    f"its {name} {tensor.shape} may be a layer before those of {prefix}",
                    "if it is not, save the state dict of the generator alone",
                )


def _parse(tensors: Tensors) -> list[Layer]:
    """The layers of a network that has no other tensors than these."""
    modules: dict[str, Tensors] = {}  # layer -> its tensors by their own names
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        modules.setdefault(layer, {})[part] = tensor
    try:
        kernels = _chain(modules)
    except _ChainError as error:  # safetensors files are sorted by name: main.12 before main.3
        modules = dict(sorted(modules.items(), key=lambda item: _natural(item[0])))
        try:
            kernels = _chain(modules)
        except _ChainError:
            raise error from None
    if len(kernels) > MAX_LAYERS:
        raise UnreadableError(f"it has more than {MAX_LAYERS} layers")
    for layer, parts in modules.items():
        _check_parts(layer, parts, layer in kernels)
    norms = _norms(modules, kernels)
    return [
        Layer(kernel, modules[layer].get("bias"), norms.get(layer, {}))
        for layer, kernel in kernels.items()
    ]


def _natural(name: str) -> list[str | int]:
    """Sorts layer 3 before layer 12."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]


def _chain(modules: dict[str, Tensors]) -> dict[str, np.ndarray]:
    """Kernels [in, out, h, w] by layer, from latents to images."""
    weights = {layer: parts["weight"] for layer, parts in modules.items() if "weight" in parts}
    convolutions = [layer for layer, weight in weights.items() if weight.ndim == 4]
    linear = [layer for layer, weight in weights.items() if weight.ndim == 2]
    if not convolutions or len(convolutions) + len(linear) < 2:
        found = {
            f"{layer}.{part}": modules[layer][part] for layer in modules for part in modules[layer]
        }
        raise _ChainError(f"it holds only {_told(found)}")
    for before, after in pairwise(convolutions):
        if weights[before].shape[1] != weights[after].shape[0]:
            raise _ChainError(
                f"its {_shape(after, weights)} does not continue {_shape(before, weights)} as a "
                "transposed convolution"
            )
    first, last = convolutions[0], convolutions[-1]
    *hidden, image_channels = (weights[layer].shape[1] for layer in convolutions)
    # A hidden layer as narrow as an image is the end of another network.
    narrow = min(hidden, default=image_channels + 1) <= image_channels
    if image_channels not in (1, 3) or narrow or not weights[first].size:
        raise _ChainError(f"its {_shape(last, weights)} does not return images")
    kernels = {layer: weights[layer] for layer in convolutions}
    if linear:
        matrix, channels = weights[linear[0]], weights[first].shape[0]
        side = math.isqrt(matrix.shape[0] // channels)
        if len(linear) > 1 or channels * side * side != matrix.shape[0] or not matrix.size:
            raise UnreadableError(
                f"its {_shape(linear[-1], weights)} does not map latents to squares of {channels} "
                "channels"
            )
        split = matrix.reshape(channels, side, side, -1)
        kernels = {linear[0]: split.transpose(3, 0, 1, 2), **kernels}
    for i, (layer, kernel) in enumerate(kernels.items()):
        height, width = kernel.shape[2:]
        if (height, width) != (4, 4) and (i or height != width):
            wanted = "4 x 4" if i else "square"
            raise UnreadableError(f"its {_shape(layer, weights)} has no {wanted} kernel")
    return kernels


def _check_parts(layer: str, parts: Tensors, weighted: bool) -> None:
    """Refuses a layer of another kind."""
    needed = frozenset(("weight",) if weighted else ("running_mean", "running_var"))
    for part, tensor in parts.items():
        if (
            part not in needed | {"weight", "bias"}
            or not needed <= parts.keys()
            or not jnp.issubdtype(tensor.dtype, jnp.floating)
        ):
            raise UnreadableError(
                f"its {layer}.{part}, {tensor.dtype} {tensor.shape}, is not of a convolution, nor "
                "of a batch norm with stored statistics"
            )
    if weighted and "bias" in parts and parts["bias"].shape != _outputs(parts):
        raise UnreadableError(
            f"its {layer}.bias is {parts['bias'].shape} instead of {_outputs(parts)}"
        )


def _norms(modules: dict[str, Tensors], kernels: dict[str, np.ndarray]) -> dict[str, Tensors]:
    """Batch norms by the layer with weights that each stands behind."""
    hidden = list(kernels)[:-1]
    norms = [layer for layer in modules if layer not in kernels]
    ways = [
        way
        for way in combinations(hidden, len(norms))
        if all(
            _adjacent(layer, norm, modules)
            # Behind a linear layer, before or after the reshaping.
            and all(
                x.shape in (_outputs(modules[layer]), kernels[layer].shape[1:2])
                for x in modules[norm].values()
            )
            for layer, norm in zip(way, norms, strict=True)
        )
    ]
    if len(ways) != 1:
        means = {f"{norm}.running_mean": modules[norm]["running_mean"] for norm in norms}
        widths = ", ".join(str(kernels[layer].shape[1]) for layer in hidden)
        raise UnreadableError(
            f"{_told(means)} are not of batch norms directly behind its hidden layers of {widths} "
            "channels"
        )
    return {layer: modules[norm] for layer, norm in zip(ways[0], norms, strict=True)}


def _outputs(parts: Tensors) -> tuple[int]:
    """Shape of a layer's bias."""
    weight = parts["weight"]
    return (weight.shape[0 if weight.ndim == 2 else 1],)


def _adjacent(layer: str, norm: str, modules: dict[str, Tensors]) -> bool:
    """Whether no function stands between two layers, as far as numbers of a Sequential tell."""
    (parent, _, place), (other, _, end) = layer.rpartition("."), norm.rpartition(".")
    if parent != other or not (place.isdecimal() and end.isdecimal()):
        return True
    reshaped = modules[layer]["weight"].ndim == 2
    return 1 <= int(end) - int(place) <= 1 + reshaped


def _fold(layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    """The kernel [in, out, h, w] and the bias [out, h, w], in float64, with the norm in them."""
    kernel, norm = layer.kernel.astype(np.float64), layer.norm
    shape = kernel.shape[1:]

    def spread(values: np.ndarray) -> np.ndarray:
        each = (-1, 1, 1) if values.size == shape[0] else shape
        return np.broadcast_to(values.astype(np.float64).reshape(each), shape)

    bias = np.zeros(shape) if layer.bias is None else spread(layer.bias)
    if norm:
        scale = 1 / np.sqrt(spread(norm["running_var"]) + EPSILON)
        if "weight" in norm:
            scale = spread(norm["weight"]) * scale
        kernel, bias = kernel * scale, (bias - spread(norm["running_mean"])) * scale
        if "bias" in norm:
            bias = bias + spread(norm["bias"])
    return kernel, bias


def _shape(layer: str, weights: Tensors) -> str:
    return f"{layer}.weight {weights[layer].shape}"


def _told(tensors: Tensors) -> str:
    """The first of them with their shapes, for a sentence."""
    told = [f"{name} {tensor.shape}" for name, tensor in list(tensors.items())[:_TOLD]]
    rest = f" and {len(tensors) - _TOLD} more" if len(tensors) > _TOLD else ""
    return f"the tensors {', '.join(told)}{rest}"
