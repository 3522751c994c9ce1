"""Mapping tables: from the tensors of a file to the leaves of a tree of weights."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from qdgs_jax.errors import CheckpointError
from qdgs_jax.models.checkpoint import Tensors, to_device
from qdgs_jax.typing import Key, Params

Transform: TypeAlias = Callable[[np.ndarray], np.ndarray]

_TOLD = 20  # problems listed in one message


class Row(NamedTuple):
    """One weight: its name in the file, its path in the tree, and how it is transformed."""

    source: str
    target: str
    read: Transform


def dense(source: str, target: str, *, flax: bool = False) -> Iterator[Row]:
    """A linear layer, of PyTorch or Flax."""
    if flax:
        yield Row(f"{source}.kernel", f"{target}/kernel", same)
    else:
        yield Row(f"{source}.weight", f"{target}/kernel", turned)
    yield Row(f"{source}.bias", f"{target}/bias", same)


def norm(source: str, target: str, *, flax: bool = False) -> Iterator[Row]:
    """A layer norm, of PyTorch or Flax."""
    yield Row(f"{source}.{'scale' if flax else 'weight'}", f"{target}/scale", same)
    yield Row(f"{source}.bias", f"{target}/bias", same)


def fused_attention(source: str, target: str) -> Iterator[Row]:
    """A `torch.nn.MultiheadAttention`, which stacks query, key and value."""
    for part, name in enumerate(("query", "key", "value")):
        read = partial(_third, part)
        yield Row(f"{source}.in_proj_weight", f"{target}/{name}/kernel", read)
        yield Row(f"{source}.in_proj_bias", f"{target}/{name}/bias", read)
    yield from dense(f"{source}.out_proj", f"{target}/out")


def hugging_face_blocks(tower: str, layers: int, *, flax: bool = False) -> Iterator[Row]:
    """The blocks of a tower, "vision" or "text", as transformers names them."""
    for i in range(layers):
        source, target = f"{tower}_model.encoder.layers.{i}", f"{tower}/block{i}"
        yield from norm(f"{source}.layer_norm1", f"{target}/norm1", flax=flax)
        yield from norm(f"{source}.layer_norm2", f"{target}/norm2", flax=flax)
        for theirs, ours in zip("qkv", ("query", "key", "value"), strict=True):
            attention = f"{target}/attention/{ours}"
            yield from dense(f"{source}.self_attn.{theirs}_proj", attention, flax=flax)
        yield from dense(f"{source}.self_attn.out_proj", f"{target}/attention/out", flax=flax)
        yield from dense(f"{source}.mlp.fc1", f"{target}/up", flax=flax)
        yield from dense(f"{source}.mlp.fc2", f"{target}/down", flax=flax)


def fill(
    init: Callable[[Key], Params],
    table: Iterable[Row],
    tensors: Tensors,
    path: Path,
    *,
    layers: int,
    ignored: frozenset[str],
) -> Params:
    """Fills every leaf from one row and uses every tensor; one error lists all problems.

    Args:
        init: makes the tree, of which only the shapes are computed.
        table: has a row for every leaf.
        tensors: by their names in the file.
        path: of the file, for messages.
        layers: blocks of the network in all.
        ignored: last parts of names of tensors that are no weights.

    Raises:
        ValueError: there cannot be as many layers.
        CheckpointError: tensors are missing, unknown, or of other shapes.
    """
    if layers > len(tensors):
        raise ValueError("its config names more layers than it has tensors")
    tree = traverse_util.flatten_dict(jax.eval_shape(init, jax.random.key(0)), sep="/")
    unused = {key for key in tensors if key.rsplit(".", 1)[-1] not in ignored}
    leaves: dict[str, Any] = {}
    problems: list[str] = []
    for row in table:
        unused.discard(row.source)
        if row.source not in tensors:
            problems.append(f"{row.source} is missing")
            continue
        tensor, shape = tensors[row.source], tree[row.target].shape
        leaf = _read(row, tensor)
        if leaf is None or leaf.shape != shape:
            problems.append(
                f"{row.source} of shape {tensor.shape} does not fit {row.target} of shape {shape}"
            )
        else:
            leaves[row.target] = to_device(leaf)
    problems = [*dict.fromkeys(problems), *(f"{key} is unknown" for key in sorted(unused))]
    if problems:
        told = "; ".join(problems[:_TOLD])
        more = f"; and {len(problems) - _TOLD} more" if len(problems) > _TOLD else ""
        raise CheckpointError(
            f"{path} does not fit its config: {told}{more}: take weights and config from one source"
        )
    assert leaves.keys() == tree.keys(), "the table has a row for every leaf"
    return traverse_util.unflatten_dict(leaves, sep="/")


def write(row: Row, leaf: np.ndarray) -> np.ndarray:
    """The file's tensor for a leaf, by the inverse of `row.read`, where it has one."""
    return _INVERSES[row.read](leaf).copy()  # safetensors needs contiguous memory


def same(x: np.ndarray) -> np.ndarray:
    return x


def turned(x: np.ndarray) -> np.ndarray:
    return x.T


def from_hwio(x: np.ndarray) -> np.ndarray:
    """The kernel of a convolution of patches, of Flax, as a matrix."""
    return x.reshape(-1, x.shape[-1])


def from_oihw(x: np.ndarray) -> np.ndarray:
    """The kernel of a convolution of patches, of PyTorch, as a matrix."""
    return from_hwio(x.transpose(2, 3, 1, 0))


def _to_oihw(x: np.ndarray) -> np.ndarray:
    size = round((x.shape[0] / 3) ** 0.5)
    return x.reshape(size, size, 3, -1).transpose(3, 2, 0, 1)


def _third(part: int, x: np.ndarray) -> np.ndarray:
    return np.split(x, 3)[part].T


_INVERSES: dict[Transform, Transform] = {same: same, turned: turned, from_oihw: _to_oihw}


def _read(row: Row, tensor: np.ndarray) -> np.ndarray | None:
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        return None
    try:
        return row.read(tensor)
    except (IndexError, ValueError):  # a wrong number of axes
        return None
