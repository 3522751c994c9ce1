"""CLIP's weights on disk and on the Hugging Face hub."""

import json
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import safetensors.numpy
from flax import traverse_util

from qdgs_jax import files
from qdgs_jax.errors import CheckpointError
from qdgs_jax.models.checkpoint import Tensors, find_network, read_tensors
from qdgs_jax.models.clip.configs import from_hugging_face, from_openai, to_hugging_face
from qdgs_jax.models.clip.layouts import IGNORED, hugging_face, openai
from qdgs_jax.models.clip.modeling import CLIPConfig, init
from qdgs_jax.models.foreign import name_network
from qdgs_jax.models.hugging_face import (
    CONFIG,
    IMAGE_PROCESSOR,
    OPEN_CLIP_CONFIG,
    find_weights,
    read_config,
    read_processor,
    warn_of_pixels,
)
from qdgs_jax.models.tables import fill, write
from qdgs_jax.typing import Params

_OPENAI, _HUGGING_FACE = "visual.class_embedding", "vision_model.embeddings.class_embedding"
_DEFAULT_PIXELS = "OpenAI's"


def load(path_or_hub_id: str | Path) -> tuple[CLIPConfig, Params]:
    """Load a CLIP from a folder, a single file, or the Hugging Face hub.

    A folder in Hugging Face's layout holds config.json and one of model.safetensors (or
    model.fp16.safetensors), pytorch_model.bin, flax_model.msgpack, of which the first two may be an
    index of shards; one in open_clip's holds open_clip_config.json and open_clip_model.safetensors
    or open_clip_pytorch_model.bin. A single file has its configs beside it. Without them it is read
    as OpenAI's: the config follows from its shapes, the activation is OpenAI's. Either may be a
    training checkpoint; see `checkpoint.find_network`.

    Returns:
        The config, and the weights as float32.

    Raises:
        CheckpointError: The weights are absent, are no CLIP's, or do not fit the config.
    """
    path = find_weights(path_or_hub_id)
    tensors = read_tensors(path)
    network = _merged_towers(find_network(tensors, _OPENAI, _HUGGING_FACE))
    foreign = name_network(tensors, "encoder")
    if not network and foreign:
        raise CheckpointError(f"{path} holds {foreign[0]}: {foreign[1]}")
    try:
        if not network:
            raise ValueError("it has no image tower of a CLIP")
        if _OPENAI in network:
            config = _openai_config(path, tensors, network)
            table = openai(config)
        else:
            model = read_config(path.parent / CONFIG)
            config = from_hugging_face(model, read_processor(path.parent, _DEFAULT_PIXELS))
            table = hugging_face(config, flax="visual_projection.kernel" in network)
        layers = config.vision.layers + config.text.layers
        leaves = partial(init, config)
        return config, fill(leaves, table, network, path, layers=layers, ignored=IGNORED)
    except CheckpointError:
        raise
    except Exception as error:  # a hostile config chooses how its reading fails
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        what, remedy = foreign or (
            f"no CLIP known here, {reason}",
            "take one with a vision transformer in the layout of Hugging Face, OpenAI or open_clip",
        )
        raise CheckpointError(f"{path} is {what}: {remedy}") from error


def save(folder: str | Path, config: CLIPConfig, params: Params) -> None:
    """Write a folder in Hugging Face's layout, which `load` and transformers read.

    The files are config.json, preprocessor_config.json and model.safetensors.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    leaves = traverse_util.flatten_dict(params, sep="/")
    tensors = {
        row.source: write(row, np.asarray(leaves[row.target], np.float32))
        for row in hugging_face(config)
    }
    model, preprocessor = to_hugging_face(config)
    for name, values in ((CONFIG, model), (IMAGE_PROCESSOR, preprocessor)):
        files.write(folder / name, json.dumps(values, indent=2) + "\n")
    files.write(folder / "model.safetensors", safetensors.numpy.save(tensors, {"format": "pt"}))


def _merged_towers(network: Tensors) -> Tensors:
    """The names of open_clip's CLIPs whose text tower is a network of its own, `text`."""
    if "text.token_embedding.weight" not in network:
        return network
    return {name.removeprefix("text."): tensor for name, tensor in network.items()}


def _openai_config(path: Path, tensors: Tensors, network: Tensors) -> CLIPConfig:
    open_clip = read_config(path.parent / OPEN_CLIP_CONFIG, optional=True)
    named = path.suffix == ".safetensors" or path.name.startswith("open_clip")
    if open_clip is None and (named or _OPENAI not in tensors):
        warnings.warn(
            f"{path} is read as OpenAI's weights, with activation quick_gelu: if open_clip trained "
            f"them, put its {OPEN_CLIP_CONFIG} beside them",
            stacklevel=3,
        )
    if open_clip is not None and not {"mean", "std"} <= open_clip.get("preprocess_cfg", {}).keys():
        warn_of_pixels(path.parent / OPEN_CLIP_CONFIG, _DEFAULT_PIXELS)
    return from_openai(network, open_clip)
