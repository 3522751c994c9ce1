"""StyleGAN2's weights on disk, under the names and in the layouts of NVIDIA's PyTorch code."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util

from qdgs_jax import files, folders
from qdgs_jax.errors import CheckpointError
from qdgs_jax.models.checkpoint import (
    Tensors,
    explained,
    find_network,
    read_json,
    read_tensors,
    to_device,
)
from qdgs_jax.models.stylegan2.modeling import StyleGAN2Config
from qdgs_jax.models.stylegan2.nvidia import read_generator
from qdgs_jax.models.torch_files import LEGACY_START
from qdgs_jax.typing import Params

CONFIG, WEIGHTS = "config.json", "model.safetensors"
MODEL_TYPE = "stylegan2"
SIGN = "synthesis.b4.const"
_TOLD = 20  # problems listed in one message


class Row(NamedTuple):
    """One weight: its name in the file, its path in the tree, and the order of its axes there."""

    source: str
    target: str
    shape: tuple[int, ...]
    """In the file."""
    axes: tuple[int, ...]
    """Order of these axes in the tree, where a 1 x 1 kernel is a matrix."""

    @property
    def ordered(self) -> tuple[int, ...]:
        """Shape in the tree, before the two axes of a 1 x 1 kernel are dropped."""
        return tuple(self.shape[axis] for axis in self.axes)

    @property
    def leaf(self) -> tuple[int, ...]:
        """Shape in the tree."""
        return self.ordered[2:] if self.ordered[:2] == (1, 1) else self.ordered


def load(path: str | Path) -> tuple[StyleGAN2Config, Params]:
    """Load a generator: a folder that `save` wrote, its safetensors, or a pickle of NVIDIA's.

    A pickle's averaged generator `G_ema` is read. Nothing in it is executed.

    Returns:
        The config, and the weights as float32.

    Raises:
        CheckpointError: The file is absent, unreadable, unsafe or no StyleGAN2.
    """
    path = Path(path)
    if path.is_dir():
        path = path / WEIGHTS
    if is_pickle(path):
        config, tensors = read_generator(path)
    else:
        tensors = read_tensors(path)
        tensors = find_network(tensors, SIGN) or tensors
        if SIGN in tensors and not (path.parent / CONFIG).exists():
            raise CheckpointError(
                f"{path} holds the bare weights of a StyleGAN2, which do not say how it computes: "
                f"give the .pkl of NVIDIA's that they come from, or put a {CONFIG} beside them as "
                "`qdgs convert stylegan2` writes it"
            )
        config = _read_config(path.parent / CONFIG)
        filters = [name for name in tensors if name.endswith(".resample_filter")]
        tensors = {name: x for name, x in tensors.items() if name not in filters}
    with explained(path, f"check that {CONFIG} beside it belongs to it"):
        return config, _fill(config, tensors, path)


def save(folder: str | Path, config: StyleGAN2Config, params: Params) -> None:
    """Writes config.json and model.safetensors into a folder, which `load` reads."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    leaves = traverse_util.flatten_dict(params, sep="/")
    tensors = {}
    for row in table(config):
        ordered = np.asarray(leaves[row.target], np.float32).reshape(row.ordered)
        turned = ordered.transpose(np.argsort(row.axes))
        tensors[row.source] = np.asarray(turned, order="C")
    values = {"model_type": MODEL_TYPE, **dataclasses.asdict(config)}
    files.write(folder / CONFIG, json.dumps(values, indent=2) + "\n")
    files.write(folder / WEIGHTS, safetensors.numpy.save(tensors, {"format": "pt"}))


def convert(source: str | Path, folder: str | Path) -> None:
    """Loads a generator in any form that `load` reads, and saves it as a folder.

    Raises:
        CheckpointError: The source cannot be read.
        QDGSError: The folder cannot be written.
    """
    config, params = load(source)
    with folders.interruptions_explained(Path(folder), again="run the same command again"):
        save(folder, config, params)


def table(config: StyleGAN2Config) -> Iterator[Row]:
    """One row for each weight."""

    def dense(source: str, target: str, n_in: int, n_out: int) -> Iterator[Row]:
        yield Row(f"{source}.weight", f"{target}/kernel", (n_out, n_in), (1, 0))
        yield Row(f"{source}.bias", f"{target}/bias", (n_out,), (0,))

    def convolution(source: str, target: str, n_in: int, n_out: int, side: int) -> Iterator[Row]:
        axes = (1, 2, 3, 0) if source.endswith("conv0") else (2, 3, 1, 0)
        yield from dense(f"{source}.affine", f"{target}/affine", config.style_size, n_in)
        yield Row(f"{source}.weight", f"{target}/kernel", (n_out, n_in, 3, 3), axes)
        yield Row(f"{source}.bias", f"{target}/bias", (n_out,), (0,))
        if config.noise:
            yield Row(f"{source}.noise_const", f"{target}/noise", (side, side), (0, 1))
            yield Row(f"{source}.noise_strength", f"{target}/noise_strength", (), ())

    size = config.latent_size
    if config.label_size:
        embedding = config.embedding_size
        yield from dense("mapping.embed", "mapping/embedding", config.label_size, embedding)
        size += embedding
    for i, outputs in enumerate(config.mapping_sizes):
        yield from dense(f"mapping.fc{i}", f"mapping/dense{i}", size, outputs)
        size = outputs
    yield Row("mapping.w_avg", "mean_style", (config.style_size,), (0,))
    for i, n_out in enumerate(config.channels):
        side, n_in = 4 << i, config.channels[max(i - 1, 0)]
        source, target = f"synthesis.b{side}", f"synthesis/block{side}"
        if i == 0:
            yield Row(f"{source}.const", f"{target}/const", (n_out, 4, 4), (1, 2, 0))
        else:
            yield from convolution(f"{source}.conv0", f"{target}/conv0", n_in, n_out, side)
        yield from convolution(f"{source}.conv1", f"{target}/conv1", n_out, n_out, side)
        if i > 0 and config.architecture == "resnet":
            shape = (n_out, n_in, 1, 1)
            yield Row(f"{source}.skip.weight", f"{target}/shortcut", shape, (2, 3, 1, 0))
        if config.architecture == "skip" or side == config.image_size:
            affine, shape = config.style_size, (config.image_channels, n_out, 1, 1)
            yield from dense(f"{source}.torgb.affine", f"{target}/to_image/affine", affine, n_out)
            yield Row(f"{source}.torgb.weight", f"{target}/to_image/kernel", shape, (2, 3, 1, 0))
            yield Row(f"{source}.torgb.bias", f"{target}/to_image/bias", shape[:1], (0,))


def _fill(config: StyleGAN2Config, tensors: Tensors, path: Path) -> Params:
    """Fills every leaf from one row and uses every tensor; one error lists all problems."""
    leaves: dict[str, Any] = {}
    problems: list[str] = []
    unused = set(tensors)
    for row in table(config):
        unused.discard(row.source)
        tensor = tensors.get(row.source)
        if tensor is None:
            problems.append(f"{row.source} is missing")
        elif tensor.shape != row.shape or not jnp.issubdtype(tensor.dtype, jnp.floating):
            problems.append(f"{row.source} is {tensor.dtype} {tensor.shape} instead of {row.shape}")
        else:
            leaf = tensor.transpose(row.axes).reshape(row.leaf)
            leaves[row.target] = to_device(leaf)
    problems += [f"{key} is unknown" for key in sorted(unused)]
    if problems:
        told = "; ".join(problems[:_TOLD])
        more = f"; and {len(problems) - _TOLD} more" if len(problems) > _TOLD else ""
        raise CheckpointError(
            f"{path} does not fit its config: {told}{more}: take weights and config from one source"
        )
    return traverse_util.unflatten_dict(leaves, sep="/")


def is_pickle(path: Path) -> bool:
    """Whether a file begins like a pickle of NVIDIA's.

    Raises:
        CheckpointError: It cannot be read.
    """
    with (
        explained(path, f"give a folder with {CONFIG} and {WEIGHTS}, or a .pkl of NVIDIA's"),
        files.open_regular(path) as file,
    ):
        head = file.read(len(LEGACY_START))
    return head.startswith(b"\x80") and head != LEGACY_START


def _read_config(path: Path) -> StyleGAN2Config:
    values = read_json(path)
    try:
        if values.pop("model_type", None) != MODEL_TYPE:
            raise ValueError(f"its model_type is not {MODEL_TYPE}")
        lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
        return StyleGAN2Config(**{**values, **lists})
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is no config of a StyleGAN2 ({ascii(str(error))[:200]}): "
            f"give a folder with {CONFIG} and {WEIGHTS}, or a .pkl of NVIDIA's"
        ) from error
