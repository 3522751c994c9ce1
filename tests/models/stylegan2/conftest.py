"""Small StyleGAN2s, and a writer of NVIDIA's file format that needs none of NVIDIA's code."""

import math
import pickle
import pickletools
import struct
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from flax import traverse_util

from qdgs_jax.models import stylegan2
from qdgs_jax.models.stylegan2.params import table


class Call(NamedTuple):
    """A call that loading the pickle would make."""

    module: str
    name: str
    arguments: tuple[Any, ...]


class Raw(NamedTuple):
    """Opcodes as they are."""

    code: bytes


def opcodes(value: Any) -> bytes:
    """What leaves `value` on the stack, in protocol 4."""
    match value:
        case Raw(code):
            return code
        case Call(module, name, arguments):
            return opcodes(module) + opcodes(name) + b"\x93" + opcodes(arguments) + b"R"
        case dict():
            return b"}(" + b"".join(opcodes(x) for item in value.items() for x in item) + b"u"
        case tuple():
            return b"(" + b"".join(map(opcodes, value)) + b"t"
        case _:
            return pickletools.optimize(pickle.dumps(value, 3))[2:-1]


def pickled(value: Any) -> bytes:
    return b"\x80\x04" + opcodes(value) + b"."


def stream(data: bytes, **changes: Any) -> bytes:
    """A storage as `torch.save` wrote it before PyTorch 1.6; changes make it inconsistent."""
    count = changes.get("count", len(data) // 4)
    kind = Raw(f"c{changes.get('kind', 'torch FloatStorage')}\n".replace(" ", "\n").encode())
    where = Raw(opcodes(("storage", kind, "0", "cpu", count, None)) + b"Q")
    system = {"protocol_version": 1001, "little_endian": changes.get("little_endian", True)}
    parts = [changes.get("magic", 0x1950A86A20F9469CFC6C), 1001, system, where, ["0"]]
    head = b"".join(b"\x80\x02" + opcodes(part) + b"." for part in parts)
    return head + struct.pack("<Q", changes.get("written", count)) + data


def tensor(value: Any, **changes: Any) -> Call:
    value = np.asarray(value, "<f4")
    storage = changes.get("storage", stream(value.tobytes(), **changes))
    strides = tuple(np.cumprod((1, *value.shape[:0:-1]))[::-1].tolist()) if value.shape else ()
    return Call(
        "torch._utils",
        "_rebuild_tensor_v2",
        (
            Call("torch.storage", "_load_from_bytes", (storage,)),
            changes.get("offset", 0),
            changes.get("size", value.shape),
            changes.get("strides", strides),
            False,
            Call("collections", "OrderedDict", ()),
        ),
    )


def parameter(value: Any) -> Call:
    hooks = Call("collections", "OrderedDict", ())
    return Call("torch._utils", "_rebuild_parameter", (tensor(value), True, hooks))


def number(value: float, order: str = "<") -> Call:
    state = opcodes((3, order, None, None, None, -1, -1, 0)) + b"b"
    kind = Raw(opcodes(Call("numpy", "dtype", ("f8", False, True))) + state)
    return Call("numpy.core.multiarray", "scalar", (kind, struct.pack("<d", value)))


def module(kind: str, attributes: dict[str, Any], **parts: dict[str, Any]) -> Call:
    state = {
        "_parameters": parts.get("parameters", {}),
        "_buffers": parts.get("buffers", {}),
        "_non_persistent_buffers_set": Raw(b"\x8f"),
        "_modules": parts.get("modules", {}),
        **attributes,
    }
    meta = {
        "type": "class",
        "version": 6,
        "module_src": "raise RuntimeError('executed')",
        "class_name": kind,
        "state": state,
    }
    return Call("torch_utils.persistence", "_reconstruct_persistent_obj", (meta,))


def generator(config: stylegan2.StyleGAN2Config, params: Any) -> Call:
    """What NVIDIA's code would pickle for this network."""
    leaves = traverse_util.flatten_dict(params, sep="/")
    weights: dict[str, np.ndarray] = {}
    for row in table(config):
        ordered = np.asarray(leaves[row.target]).reshape(row.ordered)
        weights[row.source] = ordered.transpose(np.argsort(row.axes))
    lowpass = tensor(np.outer(config.filter_taps, config.filter_taps))
    clamp = None if config.clamp is None else int(config.clamp)

    def mine(name: str) -> dict[str, Any]:
        names = [key for key in weights if key.rsplit(".", 1)[0] == name]
        return {key.rsplit(".", 1)[1]: parameter(weights[key]) for key in names}

    def gain(name: str) -> float:
        return 1 / math.sqrt(math.prod(weights[f"{name}.weight"].shape[1:]))

    def dense(name: str, activation: str = "linear", rate: float = 1) -> Call:
        gains = {"weight_gain": number(rate * gain(name)), "bias_gain": rate}
        return module(
            "FullyConnectedLayer", {"activation": activation, **gains}, parameters=mine(name)
        )

    def layer(name: str, side: int, up: int) -> Call:
        own = mine(name)
        buffers = {"resample_filter": lowpass}
        if config.noise:
            buffers["noise_const"] = own.pop("noise_const")
        attributes = {
            "resolution": side, "up": up, "use_noise": config.noise, "activation": "lrelu",
            "conv_clamp": clamp, "padding": 1, "act_gain": number(math.sqrt(2)),
        }  # fmt: skip
        affine = {"affine": dense(f"{name}.affine")}
        return module("SynthesisLayer", attributes, parameters=own, buffers=buffers, modules=affine)

    def block(side: int) -> Call:
        name, modules = f"synthesis.b{side}", {}
        if side > 4:
            modules["conv0"] = layer(f"{name}.conv0", side, 2)
            if config.architecture == "resnet":
                modules["skip"] = module(
                    "Conv2dLayer", {"weight_gain": gain(f"{name}.skip")},
                    parameters={**mine(f"{name}.skip"), "bias": None},
                    buffers={"resample_filter": lowpass},
                )  # fmt: skip
        modules["conv1"] = layer(f"{name}.conv1", side, 1)
        if f"{name}.torgb.weight" in weights:
            modules["torgb"] = module(
                "ToRGBLayer",
                {"conv_clamp": clamp, "weight_gain": number(gain(f"{name}.torgb"))},
                parameters=mine(f"{name}.torgb"),
                modules={"affine": dense(f"{name}.torgb.affine")},
            )
        attributes = {
            "resolution": side,
            "architecture": config.architecture,
            "is_last": side == config.image_size,
        }
        return module(
            "SynthesisBlock", attributes, parameters=mine(name),
            buffers={"resample_filter": lowpass}, modules=modules,
        )  # fmt: skip

    sides = [4 << i for i in range(len(config.channels))]
    synthesis = module("SynthesisNetwork", {}, modules={f"b{side}": block(side) for side in sides})
    layers = {
        f"fc{i}": dense(f"mapping.fc{i}", "lrelu", config.mapping_rate)
        for i in range(len(config.mapping_sizes))
    }
    if config.label_size:
        layers["embed"] = dense("mapping.embed")
    sizes = {
        "z_dim": config.latent_size, "c_dim": config.label_size, "w_dim": config.style_size,
        "num_ws": config.layers, "num_layers": len(config.mapping_sizes),
    }  # fmt: skip
    mapping = module("MappingNetwork", sizes, buffers=mine("mapping"), modules=layers)
    return module("Generator", {}, modules={"synthesis": synthesis, "mapping": mapping})


@pytest.fixture(scope="session", params=["skip", "resnet", "orig"])
def config(request: pytest.FixtureRequest) -> stylegan2.StyleGAN2Config:
    """Three small networks that differ in everything a file may differ in."""
    return {
        "skip": stylegan2.StyleGAN2Config(
            latent_size=5, style_size=6, mapping_sizes=(7, 6), channels=(4, 3, 5), clamp=2.0
        ),
        "resnet": stylegan2.StyleGAN2Config(
            latent_size=6, label_size=3, embedding_size=4, style_size=6, mapping_sizes=(6,),
            mapping_rate=0.1, channels=(4, 3, 5), image_channels=1, architecture="resnet",
            clamp=1.0,
        ),
        "orig": stylegan2.StyleGAN2Config(
            latent_size=4, style_size=3, mapping_sizes=(3, 3), channels=(4, 3, 5),
            image_channels=4, architecture="orig", filter_taps=(0.125, 0.5, 0.25, 0.125),
            noise=False,
        ),
    }[request.param]  # fmt: skip


@pytest.fixture(scope="session")
def params(config: stylegan2.StyleGAN2Config) -> Any:
    return draw(config)


@pytest.fixture(scope="session")
def drawn() -> Callable[[stylegan2.StyleGAN2Config], Any]:
    return draw


def draw(config: stylegan2.StyleGAN2Config) -> Any:
    """Weights of which no leaf is constant, without compiling the program of `init`."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(partial(stylegan2.init, config), jax.random.key(0))
    return jax.tree.map(
        lambda leaf: np.asarray(random.normal(0.3, 1, leaf.shape), np.float32), shapes
    )


@pytest.fixture(scope="session")
def small() -> Any:
    """A network with random weights and its styles, of which three tests render images."""
    config = stylegan2.StyleGAN2Config(
        latent_size=8, style_size=8, mapping_sizes=(8,), channels=(8, 8)
    )
    ws = jax.random.normal(jax.random.key(1), (3, config.layers, config.style_size))
    return config, draw(config), ws, jax.jit(partial(stylegan2.synthesize, config))


@pytest.fixture
def networks(config: stylegan2.StyleGAN2Config, params: Any) -> dict[str, Any]:
    """All that NVIDIA's files hold, to be pickled."""
    other = jax.tree.map(np.zeros_like, params)
    return {
        "training_set_kwargs": Raw(opcodes(Call("dnnlib.util", "EasyDict", ())) + b"}(u"[1:]),
        "G": generator(config, other),
        "D": None,
        "G_ema": generator(config, params),
        "augment_pipe": None,
    }


@pytest.fixture(scope="session")
def nvidia() -> Any:
    """The writer's functions."""
    functions = (Call, Raw, module, number, opcodes, parameter, pickled, stream, tensor)
    return SimpleNamespace(**{function.__name__: function for function in functions})


@pytest.fixture
def write(tmp_path: Any) -> Callable[[Any], Any]:
    """Writes networks, or bytes, into a file."""

    def write(content: Any) -> Any:
        path = tmp_path / "network.pkl"
        path.write_bytes(content if isinstance(content, bytes) else pickled(content))
        return path

    return write
