"""Reads a graph model of TensorFlow.js: a JSON file, and its files of weights beside it.

The format: `modelTopology` is a GraphDef as JSON, `weightsManifest` lists groups of files and the
weights that these hold one behind another: in float32, int32 or bool, or quantised to float16, or
to uint8 or uint16 with `scale` and `min`.
"""

import base64
import graphlib
import hashlib
import math
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from qdgs_jax.models.checkpoint import explained, map_file, read_json
from qdgs_jax.models.pickles import UnreadableError
from qdgs_jax.models.tfjs.modeling import OPERATIONS, Graph, Node
from qdgs_jax.typing import Params

MAX_JSON = 16 << 20  # bytes
MAX_NODES = 1 << 14
MAX_WEIGHTS = 1 << 14
MAX_FILES = 1 << 10

_DTYPES = {"float32": np.float32, "int32": np.int32, "bool": np.bool_}
_QUANTISED = {"float16": np.float16, "uint8": np.uint8, "uint16": np.uint16}


def load(path: str | Path) -> tuple[Graph, Params]:
    """Loads `model.json` and the files of weights that it names.

    Returns:
        The graph, and its floats by name.

    Raises:
        CheckpointError: a file is absent, damaged, hostile, of another format, or the graph has an
            operation that is not run here.
    """
    path = Path(path)
    values = read_json(path, MAX_JSON)
    with explained(path, "fetch it and its files of weights again"):
        if values.get("format") != "graph-model":
            raise UnreadableError(
                "it is no graph model of TensorFlow.js",
                "convert the model by `tensorflowjs_converter --output_format=tfjs_graph_model`",
            )
        weights, sha256 = _read_weights(path, values["weightsManifest"])
        nodes = _read_nodes(values["modelTopology"]["node"], weights)
        graph = _graph(nodes, values.get("signature"), weights, sha256)
    floats = {
        name: jnp.asarray(each, jnp.float32)
        for name, each in weights.items()
        if each.dtype == np.float32
    }
    return graph, floats


def _read_weights(path: Path, manifest: list[dict[str, Any]]) -> tuple[dict[str, np.ndarray], str]:
    """Arrays by name, floats as float32, and the SHA-256 of their files."""
    weights: dict[str, np.ndarray] = {}
    digest = hashlib.sha256()
    if sum(len(group["paths"]) for group in manifest) > MAX_FILES:
        raise UnreadableError(f"it names more than {MAX_FILES} files")
    for group in manifest:
        content = b"".join(_read_file(path, name) for name in group["paths"])
        digest.update(content)
        start = 0
        for described in group["weights"]:
            weight, start = _read_weight(described, content, start)
            if len(weights) >= MAX_WEIGHTS or described["name"] in weights:
                raise UnreadableError("it has too many weights, or two of one name")
            weights[described["name"]] = weight
        if start != len(content):
            raise UnreadableError("its files of weights are larger than its weights")
    return weights, digest.hexdigest()


def _read_file(path: Path, name: Any) -> memoryview:
    if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]{,254}", name, re.A):
        raise UnreadableError("it names a file outside of its folder, or none")
    with explained(path.parent / name, "fetch it again"):
        return map_file(path.parent / name)


def _read_weight(described: dict[str, Any], content: bytes, start: int) -> tuple[np.ndarray, int]:
    """A weight of a file's bytes, and where the next one starts."""
    quantised = described.get("quantization") or {}
    kind, shape = described["dtype"], [int(size) for size in described["shape"]]
    if kind not in _DTYPES or quantised.get("dtype", "uint8") not in _QUANTISED:
        raise UnreadableError(f"its weight {described['name'][:80]!r} is of an unsupported type")
    stored = np.dtype(_QUANTISED[quantised["dtype"]] if quantised else _DTYPES[kind])
    end = start + math.prod(shape) * stored.itemsize
    if min(shape, default=0) < 0 or end > len(content):
        raise UnreadableError("its files of weights are too short")
    found = np.frombuffer(content[start:end], stored.newbyteorder("<"))
    values: np.ndarray = found.reshape(shape)
    if quantised.get("dtype") in ("uint8", "uint16"):
        values = values * np.float32(quantised["scale"]) + np.float32(quantised["min"])
        values = values if kind == "float32" else np.round(values)
    return values.astype(_DTYPES[kind]), end


def _read_nodes(listed: list[dict[str, Any]], weights: dict[str, np.ndarray]) -> list[Node]:
    """The nodes, inputs before what uses them.

    Raises:
        UnreadableError: an operation is not run here, images have channels first, a constant has no
            weight, or nodes depend on themselves.
    """
    if len(listed) > MAX_NODES:
        raise UnreadableError(f"it has more than {MAX_NODES} nodes")
    nodes = {}
    for each in listed:
        name, op = each["name"], each["op"]
        inputs = tuple(
            re.sub(r":0$", "", given) for given in each.get("input", ()) if given[:1] != "^"
        )
        attributes = {key: _plain(value) for key, value in each.get("attr", {}).items()}
        if op == "Const":
            if name not in weights:
                raise UnreadableError(f"its constant {name[:80]!r} has no weight")
        elif op != "Placeholder" and op not in OPERATIONS:
            raise UnreadableError(
                f"its operation {op[:80]!r} is not supported", "use a model without it"
            )
        if attributes.get("data_format", "NHWC") != "NHWC":
            raise UnreadableError(
                f"its node {name[:80]!r} has images with channels first",
                "convert a model that has channels last, NHWC",
            )
        nodes[name] = Node(name, op, inputs, attributes)
    try:
        order = graphlib.TopologicalSorter({n.name: n.inputs for n in nodes.values()})
        return [nodes[name] for name in order.static_order()]
    except (KeyError, graphlib.CycleError):
        raise UnreadableError("one of its nodes has itself or no node as input") from None


def _plain(value: dict[str, Any]) -> Any:
    """The value of an attribute of a GraphDef as JSON, where bytes are in base 64."""
    ((kind, content),) = list(value.items())[:1] or [("", None)]
    if kind == "list":
        return tuple(_plain({key: each}) for key, many in content.items() for each in many)
    if kind == "i":
        return int(content)
    if kind == "s":
        return base64.b64decode(content).decode()
    return content


def _graph(
    nodes: list[Node],
    signature: dict[str, Any] | None,
    weights: dict[str, np.ndarray],
    sha256: str,
) -> Graph:
    placeholders = [node for node in nodes if node.op == "Placeholder"]
    if len(placeholders) != 1:
        raise UnreadableError(f"it has {len(placeholders)} inputs instead of one")
    (placeholder,) = placeholders
    used = {name for node in nodes for name in node.inputs}
    named = [each["name"] for each in (signature or {}).get("outputs", {}).values()]
    outputs = [re.sub(r":0$", "", name) for name in named]
    outputs = outputs or [node.name for node in nodes if node.name not in used]
    if not outputs or not set(outputs) <= {node.name for node in nodes}:
        raise UnreadableError("its outputs are no nodes")
    sizes = [int(each["size"]) for each in placeholder.attributes["shape"].get("dim", ())]
    return Graph(
        nodes=tuple(node for node in nodes if node.op != "Placeholder"),
        input=placeholder.name,
        input_shape=tuple(size if size >= 0 else None for size in sizes),
        outputs=tuple(outputs),
        constants={name: each for name, each in weights.items() if each.dtype != np.float32},
        sha256=sha256,
    )
