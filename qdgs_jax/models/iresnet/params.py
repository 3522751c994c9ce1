"""An IResNet's weights on disk, in the layouts of AdaFace's and InsightFace's PyTorch code.

Networks here read RGB. Those of AdaFace's code read BGR, InsightFace's RGB.
"""

import itertools
import math
import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util

from qdgs_jax import files
from qdgs_jax.errors import CheckpointError
from qdgs_jax.models.checkpoint import Tensors, explained, find_network, read_tensors, to_device
from qdgs_jax.models.iresnet.modeling import IResNetConfig, init
from qdgs_jax.models.pickles import UnreadableError
from qdgs_jax.typing import Params

SIGNS = ("body.0.res_layer.0.running_mean", "layer1.0.prelu.weight")
"""A tensor of AdaFace's layout alone, and one of InsightFace's."""
MAX_BLOCKS = 200
_TOLD = 20  # problems spelled out in one message

_LAYERS = {
    "stem": ("input_layer.0", "conv1"),
    "stem_norm": ("input_layer.1", "bn1"),
    "stem_prelu": ("input_layer.2", "prelu"),
    "norm": ("output_layer.0", "bn2"),
    "dense": ("output_layer.3", "fc"),
    "dense_norm": ("output_layer.4", "features"),
}
"""Name here -> AdaFace's, InsightFace's."""
_BLOCK = {
    "norm1": ("res_layer.0", "bn1"),
    "conv1": ("res_layer.1", "conv1"),
    "norm2": ("res_layer.2", "bn2"),
    "prelu": ("res_layer.3", "prelu"),
    "conv2": ("res_layer.4", "conv2"),
    "norm3": ("res_layer.5", "bn3"),
    "shortcut": ("shortcut_layer.0", "downsample.0"),
    "shortcut_norm": ("shortcut_layer.1", "downsample.1"),
}
"""The same of a block's layers."""
_TENSORS = {
    "kernel": "weight", "scale": "weight", "slope": "weight", "bias": "bias",
    "mean": "running_mean", "var": "running_var",
}  # fmt: skip
"""The same of a layer's tensors, in both."""


class Row(NamedTuple):
    """One weight: its name in the file, its path in the tree, and the order of its axes there."""

    source: str
    target: str
    shape: tuple[int, ...]
    """In the file."""
    spelled: tuple[int, ...]
    """Shape in the file, with the flattened axis C x H x W of the linear layer split into three."""
    axes: tuple[int, ...]
    """Order of the spelled axes in the tree, whose images are H x W x C."""


def load(path: str | Path) -> tuple[IResNetConfig, Params]:
    """Loads a file of weights; its config follows from its names and shapes.

    Returns:
        The config, whose `image_size` is the largest that fits, and the weights as float32.

    Raises:
        CheckpointError: the file is absent, unreadable, unsafe or holds no IResNet.
    """
    tensors = find_network(read_tensors(path), *SIGNS)
    with explained(path, "give the state dict of an IR-18 to IR-101 of AdaFace or InsightFace"):
        config = _infer_config(tensors)
        params = _fill(config, tensors, Path(path))
    if not config.insightface:
        params["params"]["stem"]["kernel"] = params["params"]["stem"]["kernel"][:, :, ::-1]
    return config, params


def save(path: str | Path, config: IResNetConfig, params: Params) -> None:
    """Writes a safetensors file, which `load` and the PyTorch code of the same layout read."""
    leaves = traverse_util.flatten_dict(params, sep="/")
    tensors = {}
    for row in table(config):
        leaf = np.asarray(leaves[row.target], np.float32)
        if row.target == "params/stem/kernel" and not config.insightface:
            leaf = leaf[:, :, ::-1]
        ordered = leaf.reshape([row.spelled[axis] for axis in row.axes])
        tensor = ordered.transpose(np.argsort(row.axes)).reshape(row.shape)
        tensors[row.source] = np.ascontiguousarray(tensor)
    files.write(Path(path), safetensors.numpy.save(tensors, {"format": "pt"}))


def table(config: IResNetConfig) -> list[Row]:
    """One row for each weight."""
    column = int(config.insightface)
    rows = []
    for target, leaf in _leaves(config).items():
        _, *layers, tensor = target.split("/")
        if block := re.fullmatch(r"stage(\d+)_(\d+)", layers[0]):
            stage, i = int(block[1]), int(block[2])
            number = sum(config.blocks[: stage - 1]) + i
            prefix = (f"body.{number}.", f"layer{stage}.{i}.")[column]
            source = prefix + _BLOCK[layers[1]][column]
        else:
            source = _LAYERS[layers[0]][column]
        shape = spelled = leaf.shape
        axes: tuple[int, ...] = tuple(range(len(shape)))
        if len(shape) == 4:
            axes = (2, 3, 1, 0)
            shape = spelled = tuple(leaf.shape[axis] for axis in (3, 2, 0, 1))
        elif len(shape) == 2:
            side = _side(config)
            shape = leaf.shape[::-1]
            spelled, axes = (shape[0], config.channels[-1], side, side), (2, 3, 1, 0)
        rows.append(Row(f"{source}.{_TENSORS[tensor]}", target, shape, spelled, axes))
    return rows


def _leaves(config: IResNetConfig) -> dict[str, jax.ShapeDtypeStruct]:
    shapes = jax.eval_shape(partial(init, config), jax.random.key(0))
    return traverse_util.flatten_dict(shapes, sep="/")


def _side(config: IResNetConfig) -> int:
    """Pixels a side after the last stage."""
    return -(-config.image_size // 2 ** len(config.blocks))


def _fill(config: IResNetConfig, tensors: Tensors, path: Path) -> Params:
    """Fills every leaf from one row and uses every tensor; one error lists all problems."""
    expected, leaves, problems = _leaves(config), {}, []
    unused = {name for name in tensors if not name.endswith(".num_batches_tracked")}
    for row in table(config):
        unused.discard(row.source)
        tensor = tensors.get(row.source)
        if tensor is None:
            problems.append(f"{row.source} is missing")
        elif tensor.shape != row.shape or not jnp.issubdtype(tensor.dtype, jnp.floating):
            problems.append(f"{row.source} is {tensor.dtype} {tensor.shape} instead of {row.shape}")
        else:
            leaf = tensor.reshape(row.spelled).transpose(row.axes)
            leaves[row.target] = to_device(leaf.reshape(expected[row.target].shape))
    problems += [f"{key} is unknown" for key in sorted(unused)]
    if problems:
        raise CheckpointError(
            f"{path} does not hold an IResNet as read here ({'; '.join(problems[:_TOLD])}): give "
            "one without squeeze-and-excitation or other additions"
        )
    return traverse_util.unflatten_dict(leaves, sep="/")


def _infer_config(tensors: Tensors) -> IResNetConfig:
    if not tensors:
        raise UnreadableError("it holds no IResNet")
    insightface = SIGNS[1] in tensors
    first = r"layer(\d)\.\d{1,3}\.conv1" if insightface else r"body\.\d{1,3}\.res_layer\.1"
    widths = [
        (match[1] if insightface else len(tensors[name]), len(tensors[name]))
        for name in sorted(tensors, key=_natural)
        if (match := re.fullmatch(rf"{first}\.weight", name))
    ]
    if not 0 < len(widths) <= MAX_BLOCKS:
        raise UnreadableError(f"it has {len(widths)} blocks")
    stages = [list(blocks) for _, blocks in itertools.groupby(widths)]
    if len(stages) != 4:
        raise UnreadableError(f"it has {len(stages)} stages instead of 4")
    channels = tuple(blocks[0][1] for blocks in stages)
    dense = tensors[("output_layer.3", "fc")[insightface] + ".weight"]
    return IResNetConfig(
        blocks=tuple(map(len, stages)),
        channels=channels,
        image_size=2 ** len(stages) * math.isqrt(dense.shape[1] // channels[-1]),
        embedding_size=dense.shape[0],
        insightface=insightface,
    )


def _natural(name: str) -> list[str | int]:
    """Sorts block 3 before block 12."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]
