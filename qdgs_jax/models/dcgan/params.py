"""A DCGAN's weights as PyTorch saves them: one `Sequential` of convolutions and batch norms.

Layer `main.{3i}` is the i-th transposed convolution, without a bias; `main.{3i + 1}` is its batch
norm, except after the last convolution. The other numbers are activations, without weights.
"""

from itertools import count, pairwise, takewhile
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from qdgs_jax.errors import CheckpointError
from qdgs_jax.models.checkpoint import Tensors, find_network, read_tensors
from qdgs_jax.models.dcgan.modeling import DCGANConfig
from qdgs_jax.typing import Params

_TOLD = 20  # problems spelled out in one message
EPSILON = 1e-5  # of PyTorch's batch norm

SIGN = "main.1.running_mean"
"""A discriminator has no batch norm after its first convolution."""


def load(path: str | Path) -> tuple[DCGANConfig, Params]:
    """Loads a file of weights; its config follows from its shapes.

    Raises:
        CheckpointError: The weights are absent, or not those of a DCGAN's generator.
    """
    tensors = {
        name: tensor
        for name, tensor in find_network(read_tensors(path), SIGN).items()
        if name.startswith("main.") and not name.endswith(".num_batches_tracked")
    }
    norms = takewhile(tensors.__contains__, (f"main.{3 * i + 1}.running_mean" for i in count()))
    channels = tuple(tensors[name].size for name in norms)
    if not channels:
        raise CheckpointError(
            f"{path} holds no generator of a DCGAN: give a file with main.0.weight, "
            "main.1.running_mean and the like"
        )
    first = tensors.get("main.0.weight", np.zeros(1))
    config = DCGANConfig(len(np.atleast_1d(first)), channels)
    _check(config, tensors, path)
    return config, _fold(config, tensors)


def shapes(config: DCGANConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the file and its shape."""
    table: dict[str, tuple[int, ...]] = {}
    for i, (n_in, n_out) in enumerate(pairwise((config.latent_size, *config.channels, 3))):
        table[f"main.{3 * i}.weight"] = (n_in, n_out, 4, 4)
        if i < len(config.channels):
            for part in ("weight", "bias", "running_mean", "running_var"):
                table[f"main.{3 * i + 1}.{part}"] = (n_out,)
    return table


def _check(config: DCGANConfig, tensors: Tensors, path: str | Path) -> None:
    """Compares names and shapes of tensors with the config's; one error lists all problems."""
    table = shapes(config)
    problems = [f"{name} is missing" for name in table if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in table]
    problems += [
        f"{name} is {tensors[name].dtype} {tensors[name].shape} instead of {shape}"
        for name, shape in table.items()
        if name in tensors
        and (tensors[name].shape != shape or not jnp.issubdtype(tensors[name].dtype, jnp.floating))
    ]
    if problems:
        told = "; ".join(problems[:_TOLD])
        raise CheckpointError(
            f"{path} does not hold a DCGAN's generator of 4 x 4 kernels ({told}): "
            "check which network it holds"
        )


def _fold(config: DCGANConfig, tensors: Tensors) -> Params:
    """Folds each batch norm into the kernel and the bias of its convolution."""
    params = {}
    for i in range(len(config.channels) + 1):
        kernel = tensors[f"main.{3 * i}.weight"].astype(np.float64).transpose(2, 3, 0, 1)
        bias: np.ndarray = np.zeros(kernel.shape[-1])
        if i < len(config.channels):
            weight, offset, mean, variance = (
                tensors[f"main.{3 * i + 1}.{part}"].astype(np.float64)
                for part in ("weight", "bias", "running_mean", "running_var")
            )
            scale = weight / np.sqrt(variance + EPSILON)
            kernel, bias = kernel * scale, offset - mean * scale
        if i == 0:  # from 1 x 1 to 4 x 4 pixels: a linear map
            kernel, bias = (
                kernel.transpose(2, 0, 1, 3).reshape(len(kernel[0, 0]), -1),
                np.tile(bias, 16),
            )
        params[f"up{i}" if i else "project"] = {
            "kernel": jnp.asarray(kernel, jnp.float32),
            "bias": jnp.asarray(bias, jnp.float32),
        }
    return params
