"""The shapes VAE's weights on disk, under the names and in the layouts of its PyTorch original."""

import dataclasses
import json
import math
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
from qdgs_jax.models.checkpoint import Tensors, find_network, read_json, read_tensors, to_device
from qdgs_jax.models.vae.modeling import VAEConfig, init
from qdgs_jax.typing import Params

WEIGHTS = "model.safetensors"
SIGNS = ("encoder.conv1.weight", "decoder.fc1.weight")
_MAX_COUNT = 1 << 14
_TOLD = 20  # problems spelled out in one message


class Row(NamedTuple):
    """One weight: its name in the file, its path in the tree, and the order of its axes there."""

    source: str
    target: str
    shape: tuple[int, ...]
    """In the file."""
    spelled: tuple[int, ...]
    """Shape in the file, with a flattened axis C x H x W of a linear map split into three."""
    axes: tuple[int, ...]
    """Order of the spelled axes in the tree, whose images are H x W x C."""


def load(path: str | Path) -> tuple[VAEConfig, Params]:
    """Loads a folder that `save` wrote, or one file of weights; its config follows from its shapes.

    Raises:
        CheckpointError: The weights are absent, or do not fit the config; it lists all their keys.
    """
    path = Path(path)
    if path.is_dir():
        config, path = _read_config(path / "config.json"), path / WEIGHTS
        tensors = read_tensors(path)
        return config, _fill(config, find_network(tensors, *SIGNS) or tensors, path)
    tensors = find_network(read_tensors(path), *SIGNS)
    config = _infer_config(tensors, path)
    return config, _fill(config, tensors, path)


def save(folder: str | Path, config: VAEConfig, params: Params) -> None:
    """Writes config.json and model.safetensors into a folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    leaves = traverse_util.flatten_dict(params, sep="/")
    tensors = {}
    for row in table(config):
        ordered = leaves[row.target].reshape([row.spelled[axis] for axis in row.axes])
        tensor = np.asarray(ordered).transpose(np.argsort(row.axes)).reshape(row.shape)
        tensors[row.source] = np.ascontiguousarray(tensor)
    values = {"model_type": "shapes_vae", **dataclasses.asdict(config)}
    files.write(folder / "config.json", json.dumps(values, indent=2) + "\n")
    files.write(folder / WEIGHTS, safetensors.numpy.save(tensors, {"format": "pt"}))


def table(config: VAEConfig) -> list[Row]:
    """One row for each weight."""
    outer, middle, inner = config.channels
    latent, side = config.latent_size, config.image_size // 8
    pixels = inner * side * side
    rows = []

    def add(source: str, target: str, shape: tuple[int, ...], *spelling: tuple[int, ...]) -> None:
        spelled, axes = spelling or (shape, tuple(range(len(shape))))
        rows.append(Row(source, target, shape, spelled, axes))

    for i, (n_in, n_out) in enumerate(((3, outer), (outer, middle), (middle, inner)), start=1):
        name, shape = f"encoder.conv{i}", (n_out, n_in, 3, 3)
        add(f"{name}.weight", f"encoder/conv{i}/kernel", shape, shape, (2, 3, 1, 0))
        add(f"{name}.bias", f"encoder/conv{i}/bias", (n_out,))
    for part in ("fc_mu", "fc_logvar"):
        add(
            f"encoder.{part}.weight", f"encoder/{part}/kernel",
            (latent, pixels), (latent, inner, side, side), (2, 3, 1, 0),
        )  # fmt: skip
        add(f"encoder.{part}.bias", f"encoder/{part}/bias", (latent,))
    add(
        "decoder.fc1.weight", "decoder/fc1/kernel",
        (pixels, latent), (inner, side, side, latent), (3, 1, 2, 0),
    )  # fmt: skip
    add("decoder.fc1.bias", "decoder/fc1/bias", (pixels,), (inner, side, side), (1, 2, 0))
    for i, (n_in, n_out) in enumerate(((inner, middle), (middle, outer), (outer, 3)), start=1):
        name, shape = f"decoder.convT{i}", (n_in, n_out, 4, 4)
        add(f"{name}.weight", f"decoder/convT{i}/kernel", shape, shape, (2, 3, 0, 1))
        add(f"{name}.bias", f"decoder/convT{i}/bias", (n_out,))
    return rows


def _fill(config: VAEConfig, tensors: Tensors, path: Path) -> Params:
    """Fills every leaf from one row and uses every tensor; one error lists all problems."""
    expected = traverse_util.flatten_dict(
        jax.eval_shape(partial(init, config), jax.random.key(0)), sep="/"
    )
    leaves, problems, unused = {}, [], set(tensors)
    for row in table(config):
        unused.discard(row.source)
        if row.source not in tensors:
            problems.append(f"{row.source} is missing")
        elif tensors[row.source].shape != row.shape or not jnp.issubdtype(
            tensors[row.source].dtype, jnp.floating
        ):
            tensor = tensors[row.source]
            problems.append(f"{row.source} is {tensor.dtype} {tensor.shape} instead of {row.shape}")
        else:
            leaf = tensors[row.source].reshape(row.spelled).transpose(row.axes)
            shape = expected[row.target].shape
            leaves[row.target] = to_device(leaf.reshape(shape))
    problems += [f"{key} is unknown" for key in sorted(unused)]
    if problems:
        raise CheckpointError(
            f"{path} does not hold this VAE ({'; '.join(problems[:_TOLD])}): "
            "check that config and weights belong together"
        )
    return traverse_util.unflatten_dict(leaves, sep="/")


def _read_config(path: Path) -> VAEConfig:
    values = read_json(path)
    try:
        config = VAEConfig(values["latent_size"], values["image_size"], _three(values["channels"]))
        sizes = (config.latent_size, config.image_size, *config.channels)
        if not all(type(n) is int and 0 < n <= _MAX_COUNT for n in sizes) or config.image_size % 8:
            raise ValueError("its sizes are no counts")
        return config
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is no config of a shapes VAE ({type(error).__name__}): give a folder with "
            "config.json and model.safetensors, or one file of weights"
        ) from None


def _infer_config(tensors: dict[str, np.ndarray], path: Path) -> VAEConfig:
    try:
        channels = _three([len(tensors[f"encoder.conv{i}.weight"]) for i in (1, 2, 3)])
        pixels, latent_size = tensors["decoder.fc1.weight"].shape
        return VAEConfig(latent_size, 8 * math.isqrt(pixels // channels[-1]), channels)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        raise CheckpointError(
            f"{path} holds no shapes VAE: give a file with encoder.conv1.weight and the like"
        ) from None


def _three(channels: list[int]) -> tuple[int, int, int]:
    outer, middle, inner = channels
    return outer, middle, inner
