"""Runs the graph of a TensorFlow.js model: a fixed list of operations, each a function of arrays.

Operations are named and defined as in TensorFlow's op registry. Nothing but the listed ones is
ever called, so a graph is data.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdgs_jax.models.layers.convolutions import convolve
from qdgs_jax.typing import Array, Params

Attributes = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One operation of a graph."""

    name: str
    op: str
    inputs: tuple[str, ...]
    attributes: Attributes
    """Plain values: numbers, booleans, strings, types, and lists of these."""


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A model without its weights; hashed by identity."""

    nodes: tuple[Node, ...]
    """Sorted so that a node's inputs stand before it."""
    input: str
    """Name of the placeholder."""
    input_shape: tuple[int | None, ...]
    outputs: tuple[str, ...]
    """The model's own."""
    constants: Mapping[str, np.ndarray]
    """Integers by name, such as axes and shapes, which XLA must know."""
    sha256: str
    """SHA-256 of the file of weights, in hex; of several, of one behind another."""


def apply(
    graph: Graph, params: Params, values: Array, outputs: tuple[str, ...] = ()
) -> dict[str, Array]:
    """The values of nodes for one input; differentiable where the operations are.

    Products are in float32 whatever the device's default is.

    Args:
        params: floats by name.
        values: the placeholder's, such as images [N, H, W, 3].
        outputs: names of nodes, inner ones too; by default the model's own.

    Raises:
        KeyError: an output is no node.
    """
    wanted = outputs or graph.outputs
    needed = _needed(graph, wanted)
    found: dict[str, Any] = {**graph.constants, **params, graph.input: values}
    with jax.default_matmul_precision("highest"):
        for node in graph.nodes:
            if node.name in needed and node.name not in found:
                inputs = [found[name] for name in node.inputs]
                found[node.name] = OPERATIONS[node.op](node.attributes, *inputs)
    return {name: found[name] for name in wanted}


def _needed(graph: Graph, outputs: tuple[str, ...]) -> set[str]:
    """Names of the nodes that outputs depend on, themselves included."""
    inputs = {node.name: node.inputs for node in graph.nodes}
    needed, todo = set(outputs), [*outputs]
    while todo:
        new = [name for name in inputs.get(todo.pop(), ()) if name not in needed]
        needed.update(new)
        todo += new
    return needed


def _convolve(attributes: Attributes, x: Array, kernel: Array) -> Array:
    """By a product or by `convolve` where these do: XLA's own gradient is slow within a `lax.scan`
    on a CPU."""
    (H, W), padding = kernel.shape[:2], attributes["padding"]
    strides, dilations = (_spatial(attributes, name) for name in ("strides", "dilations"))
    if H == W == 1 and strides == (1, 1) and padding != "EXPLICIT":
        return x @ kernel[0, 0]
    if H == W and H % 2 and strides == dilations == (1, 1) and padding == "SAME":
        return convolve(x, kernel)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=strides,
        padding=_padding(attributes),
        rhs_dilation=dilations,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _depthwise(attributes: Attributes, x: Array, kernel: Array) -> Array:
    """A sum of shifted images: within a `lax.scan` on a CPU, XLA's grouped convolution takes 25
    times as long, and with its gradient twice as long."""
    H, W, C, multiplier = kernel.shape
    (down, right), (tall, wide) = (_spatial(attributes, name) for name in ("strides", "dilations"))
    window, ends = (tall * (H - 1) + 1, wide * (W - 1) + 1), _padding(attributes)
    if isinstance(ends, str):
        ends = jax.lax.padtype_to_pads(x.shape[1:3], window, (down, right), ends)
    x = jnp.pad(x, ((0, 0), *ends, (0, 0)))
    rows, columns = x.shape[1] - window[0] + 1, x.shape[2] - window[1] + 1
    shifted = [
        x[:, i : i + rows : down, j : j + columns : right, :, None] * taps[None, None, None]
        for i, row in zip(range(0, H * tall, tall), kernel, strict=True)
        for j, taps in zip(range(0, W * wide, wide), row, strict=True)
    ]
    y = functools.reduce(jnp.add, shifted)
    return y.reshape(*y.shape[:3], C * multiplier)


def _spatial(attributes: Attributes, name: str) -> tuple[int, int]:
    """Height's and width's of four numbers in the order NHWC."""
    _, height, width, _ = attributes.get(name) or (1, 1, 1, 1)
    return height, width


def _padding(attributes: Attributes) -> str | list[tuple[int, int]]:
    if attributes["padding"] != "EXPLICIT":
        return str(attributes["padding"])
    ends = attributes["explicit_paddings"]
    return [(ends[2], ends[3]), (ends[4], ends[5])]


def _pool(attributes: Attributes, x: Array, mean: bool) -> Array:
    """Means are of the pixels within the image, not of its padding."""
    window = (1, *_spatial(attributes, "ksize"), 1)
    options = window, (1, *_spatial(attributes, "strides"), 1), _padding(attributes)
    if not mean:
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, *options)
    total, count = (
        jax.lax.reduce_window(each, 0.0, jax.lax.add, *options) for each in (x, jnp.ones_like(x))
    )
    return total / count


def _matmul(attributes: Attributes, x: Array, y: Array) -> Array:
    x = x.T if attributes.get("transpose_a") else x
    y = y.T if attributes.get("transpose_b") else y
    return x @ y


def _fused(product: Callable[..., Array]) -> Callable[..., Array]:
    """A product of two arrays, then a bias and an activation that `fused_ops` names."""

    def apply(attributes: Attributes, x: Array, y: Array, *others: Array) -> Array:
        result, rest = product(attributes, x, y), list(others)
        for name in attributes.get("fused_ops", ()):
            more = [rest.pop(0)] if name in ("BiasAdd", "Prelu") else []
            result = OPERATIONS[name](attributes, result, *more)
        return result

    return apply


def _normalise(
    attributes: Attributes, x: Array, scale: Array, offset: Array, mean: Array, variance: Array
) -> Array:
    factor = scale * jax.lax.rsqrt(variance + attributes.get("epsilon", 1e-3))
    return _broadcast(jnp.add, _broadcast(jnp.multiply, x, factor), offset - mean * factor)


def _broadcast(function: Callable[..., Array], *arrays: Array) -> Array:
    """Numbers of axes are made equal first, from the left."""
    axes = max(jnp.ndim(each) for each in arrays)
    return function(*(jnp.reshape(x, (1,) * (axes - jnp.ndim(x)) + jnp.shape(x)) for x in arrays))


def _binary(function: Callable[..., Array]) -> Callable[..., Array]:
    return lambda attributes, x, y: _broadcast(function, x, y)


def _unary(function: Callable[[Array], Array]) -> Callable[..., Array]:
    return lambda attributes, x: function(x)


def _reduce(function: Callable[..., Array]) -> Callable[..., Array]:
    def apply(attributes: Attributes, x: Array, axes: np.ndarray) -> Array:
        kept = attributes.get("keep_dims", False)
        return function(x, axis=tuple(np.ravel(axes).tolist()), keepdims=kept)

    return apply


def _pad(attributes: Attributes, x: Array, ends: np.ndarray, value: Array | float = 0.0) -> Array:
    return jnp.pad(x, [(int(low), int(high)) for low, high in ends], constant_values=value)


def _squeeze(attributes: Attributes, x: Array) -> Array:
    return jnp.squeeze(x, tuple(attributes.get("squeeze_dims", ())) or None)


def _concatenate(attributes: Attributes, *inputs: Any) -> Array:
    *arrays, axis = inputs
    return jnp.concatenate(arrays, axis=int(axis))


OPERATIONS: dict[str, Callable[..., Array]] = {
    "Identity": _unary(lambda x: x),
    "Add": _binary(jnp.add),
    "AddV2": _binary(jnp.add),
    "BiasAdd": _binary(jnp.add),
    "Sub": _binary(jnp.subtract),
    "Mul": _binary(jnp.multiply),
    "RealDiv": _binary(jnp.divide),
    "Maximum": _binary(jnp.maximum),
    "Minimum": _binary(jnp.minimum),
    "Relu": _unary(jax.nn.relu),
    "Relu6": _unary(jax.nn.relu6),
    "Elu": _unary(jax.nn.elu),
    "LeakyRelu": lambda attributes, x: jax.nn.leaky_relu(x, attributes.get("alpha", 0.2)),
    "Prelu": _binary(lambda x, slope: jnp.where(x >= 0, x, slope * x)),
    "Sigmoid": _unary(jax.nn.sigmoid),
    "Tanh": _unary(jnp.tanh),
    "Exp": _unary(jnp.exp),
    "Sqrt": _unary(jnp.sqrt),
    "Rsqrt": _unary(jax.lax.rsqrt),
    "Square": _unary(jnp.square),
    "Neg": _unary(jnp.negative),
    "Softmax": _unary(jax.nn.softmax),
    "Conv2D": _convolve,
    "DepthwiseConv2dNative": _depthwise,
    "MatMul": _matmul,
    "_FusedConv2D": _fused(_convolve),
    "FusedDepthwiseConv2dNative": _fused(_depthwise),
    "_FusedMatMul": _fused(_matmul),
    "FusedBatchNormV3": _normalise,
    "MaxPool": lambda attributes, x: _pool(attributes, x, mean=False),
    "AvgPool": lambda attributes, x: _pool(attributes, x, mean=True),
    "Mean": _reduce(jnp.mean),
    "Sum": _reduce(jnp.sum),
    "Max": _reduce(jnp.max),
    "Min": _reduce(jnp.min),
    "Reshape": lambda attributes, x, shape: jnp.reshape(x, np.ravel(shape).tolist()),
    "Squeeze": _squeeze,
    "ExpandDims": lambda attributes, x, axis: jnp.expand_dims(x, int(axis)),
    "Transpose": lambda attributes, x, axes: jnp.transpose(x, np.ravel(axes).tolist()),
    "Pad": _pad,
    "PadV2": _pad,
    "ConcatV2": _concatenate,
}
"""Names of TensorFlow -> (attributes, inputs) -> result. The only operations that are run."""
