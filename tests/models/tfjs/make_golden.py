"""Makes a model of every operation, and golden.npz: the values of its nodes by TensorFlow.js.

Run it where Node and its package @tensorflow/tfjs are: NODE_PATH=.../node_modules python
tests/models/tfjs/make_golden.py
"""

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
SHAPE = (2, 9, 8, 3)
JS = """
const tf = require('@tensorflow/tfjs'), fs = require('fs'), path = require('path');
const [file, names, shape, values] = JSON.parse(fs.readFileSync(0));
const described = JSON.parse(fs.readFileSync(file));
const data = Buffer.concat(described.weightsManifest.flatMap(
  group => group.paths.map(name => fs.readFileSync(path.join(path.dirname(file), name)))));
(async () => {
  await tf.setBackend('cpu');
  const model = await tf.loadGraphModel(tf.io.fromMemory({
    modelTopology: described.modelTopology, signature: described.signature,
    weightSpecs: described.weightsManifest.flatMap(group => group.weights),
    weightData: data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength)}));
  const found = {};
  for (const name of names) {
    const result = model.execute(tf.tensor(values, shape), name);
    found[name] = {shape: result.shape, values: Array.from(result.dataSync())};
  }
  console.log(JSON.stringify(found));
})();
"""


def by_tensorflow_js(path: Path, images: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    """Values of a model's nodes."""
    given = json.dumps([str(path), names, images.shape, images.ravel().tolist()])
    found = subprocess.run(["node", "-e", JS], input=given, text=True, stdout=-1, check=True)
    return {
        name: np.array(each["values"], np.float32).reshape(each["shape"])
        for name, each in json.loads(found.stdout.splitlines()[-1]).items()
    }


class Model:
    """A graph model being written."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.nodes: list[dict[str, Any]] = []
        self.weights: list[dict[str, Any]] = []
        self.content = b""
        dim = [{"size": str(size)} for size in (-1, *SHAPE[1:])]
        self.nodes.append({
            "name": "images", "op": "Placeholder",
            "attr": {"dtype": {"type": "DT_FLOAT"}, "shape": {"shape": {"dim": dim}}},
        })  # fmt: skip

    def node(self, name: str, op: str, *inputs: str, **attributes: Any) -> str:
        """Adds an operation; bytes of strings are in base 64."""
        described = {"name": name, "op": op, "input": list(inputs)}
        attr = {key: self.attribute(value) for key, value in attributes.items()}
        self.nodes.append({**described, "attr": {"T": {"type": "DT_FLOAT"}, **attr}})
        return name

    def attribute(self, value: Any) -> dict[str, Any]:
        if isinstance(value, list):
            kinds = [self.attribute(each) for each in value]
            key = next(iter(kinds[0])) if kinds else "i"
            return {"list": {key: [each[key] for each in kinds]} if kinds else {}}
        if isinstance(value, bool):
            return {"b": value}
        if isinstance(value, int):
            return {"i": str(value)}
        if isinstance(value, float):
            return {"f": value}
        return {"s": base64.b64encode(value.encode()).decode()}

    def constant(self, name: str, values: Any, quantised: str = "") -> str:
        """Adds a weight."""
        values = np.asarray(values)
        kind = "int32" if values.dtype.kind == "i" else "float32"
        described: dict[str, Any] = {"name": name, "shape": list(values.shape), "dtype": kind}
        if quantised == "float16":
            described["quantization"] = {"dtype": quantised, "original_dtype": kind}
            stored = values.astype(np.float16)
        elif quantised:
            least, levels = float(values.min()), np.iinfo(quantised).max
            scale = (float(values.max()) - least) / levels
            described["quantization"] = {"dtype": quantised, "scale": scale, "min": least}
            stored = np.round((values - least) / scale).astype(quantised)
        else:
            stored = values.astype(kind)
        self.content += stored.tobytes()
        self.weights.append(described)
        self.nodes.append({
            "name": name, "op": "Const",
            "attr": {"dtype": {"type": "DT_INT32" if kind == "int32" else "DT_FLOAT"}},
        })  # fmt: skip
        return name

    def floats(self, name: str, *shape: int, quantised: str = "") -> str:
        return self.constant(name, self.random.normal(size=shape) * 0.5, quantised)


def build() -> Model:
    """Every operation once or more."""
    m = Model()
    same: dict[str, Any] = {"padding": "SAME", "data_format": "NHWC"}
    plain: dict[str, Any] = {"strides": [1, 1, 1, 1], "dilations": [1, 1, 1, 1]}
    m.node("conv", "Conv2D", "images", m.floats("kernel", 3, 3, 3, 4, quantised="float16"),
           strides=[1, 2, 2, 1], dilations=[1, 1, 1, 1], explicit_paddings=[], **same)  # fmt: skip
    m.node("bias", "BiasAdd", "conv", m.floats("bias/weights", 4))
    m.node("valid", "Conv2D", "images", m.floats("kernel 2", 2, 3, 3, 4, quantised="uint8"),
           padding="VALID", data_format="NHWC", strides=[1, 1, 1, 1],
           dilations=[1, 2, 2, 1])  # fmt: skip
    m.node("explicit", "Conv2D", "images", "kernel", padding="EXPLICIT", data_format="NHWC",
           explicit_paddings=[0, 0, 2, 1, 0, 1, 0, 0], strides=[1, 1, 2, 1],
           dilations=[1, 1, 1, 1])  # fmt: skip
    m.node("depthwise", "DepthwiseConv2dNative", "images",
           m.floats("kernel 3", 3, 3, 3, 2, quantised="uint16"), **plain, **same)  # fmt: skip
    m.node("fused conv", "_FusedConv2D", "images", "kernel", "bias/weights",
           fused_ops=["BiasAdd", "Relu6"], num_args=1, **plain, **same)  # fmt: skip
    m.node("fused prelu", "_FusedConv2D", "images", "kernel", "bias/weights",
           m.floats("slopes", 4), fused_ops=["BiasAdd", "Prelu"], num_args=2,
           **plain, **same)  # fmt: skip
    m.node("fused depthwise", "FusedDepthwiseConv2dNative", "images", "kernel 3",
           m.floats("bias 3", 6), fused_ops=["BiasAdd", "Relu"], num_args=1,
           **plain, **same)  # fmt: skip
    for name, op in (("max pool", "MaxPool"), ("mean pool", "AvgPool")):
        m.node(name, op, "images", ksize=[1, 3, 2, 1], strides=[1, 2, 2, 1], **same)
    variance = m.constant("variance", m.random.uniform(0.5, 2, 4))
    m.node("norm", "FusedBatchNormV3", "bias", m.floats("scale", 4), m.floats("offset", 4),
           m.floats("mean/weights", 4), variance, epsilon=0.01, is_training=False,
           **same)  # fmt: skip
    for op in ("Relu", "Relu6", "Elu", "Sigmoid", "Tanh", "Exp", "Square", "Neg", "Identity"):
        m.node(op, op, "bias")
    m.node("LeakyRelu", "LeakyRelu", "bias", alpha=0.3)
    m.node("Prelu", "Prelu", "bias", "slopes")
    m.node("Sqrt", "Sqrt", "Exp")
    m.node("Rsqrt", "Rsqrt", "Exp")
    m.node("Softmax", "Softmax", "bias")
    for op in ("Add", "AddV2", "Sub", "Mul", "RealDiv", "Maximum", "Minimum"):
        m.node(op, op, "bias", "variance")
    axes = m.constant("axes", np.array([1, 2]))
    for op in ("Mean", "Sum", "Max", "Min"):
        m.node(op, op, "bias", axes, keep_dims=op == "Max")
    m.node("kept squeezed", "Squeeze", "Max", squeeze_dims=[1, 2])
    m.node("flat", "Reshape", "Mean", m.constant("shape", np.array([-1, 4])))
    m.node("wider", "ExpandDims", "flat", m.constant("axis", np.array(1)))
    m.node("turned", "Transpose", "wider", m.constant("order", np.array([2, 0, 1])))
    m.node("padded", "Pad", "flat", m.constant("ends", np.array([[0, 0], [1, 2]])))
    m.node("padded by 3", "PadV2", "flat", "ends", m.constant("three", np.array(3.0)))
    m.node("both", "ConcatV2", "flat", "padded", m.constant("last", np.array(-1)))
    m.node(
        "product", "MatMul", "flat", m.floats("matrix", 5, 4), transpose_a=False, transpose_b=True
    )
    m.node("fused product", "_FusedMatMul", "flat", m.floats("matrix 2", 4, 3),
           m.floats("bias 2", 3), fused_ops=["BiasAdd", "Relu"], num_args=1,
           transpose_a=False, transpose_b=False)  # fmt: skip
    m.node("probabilities", "Softmax", "product")
    m.node("pointwise", "Conv2D", "images", m.floats("kernel 4", 1, 1, 3, 4), **plain, **same)
    m.node("strided depthwise", "DepthwiseConv2dNative", "images", "kernel 3",
           strides=[1, 2, 2, 1], dilations=[1, 1, 1, 1], **same)  # fmt: skip
    m.node("wide depthwise", "DepthwiseConv2dNative", "images", "kernel 3", padding="VALID",
           data_format="NHWC", strides=[1, 1, 1, 1], dilations=[1, 2, 2, 1])  # fmt: skip
    return m


def main() -> None:
    """Writes all files beside this script."""
    model = build()
    group = {"paths": ["weights.1.bin", "weights.2.bin"], "weights": model.weights}
    half = len(model.content) // 2 + 1
    (HERE / "weights.1.bin").write_bytes(model.content[:half])
    (HERE / "weights.2.bin").write_bytes(model.content[half:])
    (HERE / "model.json").write_text(
        json.dumps({
            "format": "graph-model",
            "modelTopology": {"node": model.nodes, "versions": {"producer": 1, "minConsumer": 1}},
            "signature": {"outputs": {"probabilities": {"name": "probabilities:0"}}},
            "weightsManifest": [group],
        })
        + "\n"
    )  # fmt: skip
    images = np.random.default_rng(1).uniform(-1, 1, SHAPE).astype(np.float32)
    constants = {weight["name"] for weight in model.weights} | {"images"}
    names = [node["name"] for node in model.nodes if node["name"] not in constants]
    values = by_tensorflow_js(HERE / "model.json", images, names)
    np.savez_compressed(
        HERE / "golden.npz", images=images, **{f"node {n}": v for n, v in values.items()}
    )


if __name__ == "__main__":
    main()
