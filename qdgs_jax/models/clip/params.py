"""CLIP's weights on disk and on the Hugging Face hub."""

import json
import re
import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util

from qdgs_jax import files
from qdgs_jax.errors import CheckpointError
from qdgs_jax.models.checkpoint import (
    INDEX,
    Tensors,
    find_network,
    read_json,
    read_tensors,
    to_device,
)
from qdgs_jax.models.clip.configs import from_hugging_face, from_openai, to_hugging_face
from qdgs_jax.models.clip.layouts import IGNORED, Row, hugging_face, openai, write
from qdgs_jax.models.clip.modeling import CLIPConfig, init
from qdgs_jax.models.foreign import name_network
from qdgs_jax.typing import Params

_WEIGHTS = (
    "model.safetensors", f"model.safetensors{INDEX}", "model.fp16.safetensors",
    "pytorch_model.bin", f"pytorch_model.bin{INDEX}", "pytorch_model.fp16.bin",
    "flax_model.msgpack",
)  # fmt: skip
_OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_BESIDE = ("*.json", "merges.txt")  # configs and tokenizer
_SHARDS = ("model-*-of-*.safetensors", "pytorch_model-*-of-*.bin")
_OPENAI, _HUGGING_FACE = "visual.class_embedding", "vision_model.embeddings.class_embedding"
_CONFIG, _OPEN_CLIP_CONFIG = "config.json", "open_clip_config.json"
_PROCESSOR, _IMAGE_PROCESSOR = "processor_config.json", "preprocessor_config.json"
_TOLD = 20  # problems listed in one message


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
            return config, _fill(config, openai(config), network, path)
        config = from_hugging_face(_read_json(path.parent / _CONFIG), _read_processor(path.parent))
        table = hugging_face(config, flax="visual_projection.kernel" in network)
        return config, _fill(config, table, network, path)
    except CheckpointError:
        raise
    except Exception as error:  # a hostile config chooses how its reading fails
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        what, remedy = foreign or (
            f"no CLIP known here, {reason}",
            "take one with a vision transformer in the layout of Hugging Face, OpenAI or open_clip",
        )
        raise CheckpointError(f"{path} is {what}: {remedy}") from error


def find_weights(path_or_hub_id: str | Path) -> Path:
    """The file that `load` reads; its folder has the configs and, from the hub, the tokenizer.

    Raises:
        CheckpointError: There is no such file.
    """
    path = Path(path_or_hub_id)
    if path.is_dir():
        return _choose(path)
    return path if path.exists() else _choose(_download(str(path_or_hub_id)))


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
    for name, values in ((_CONFIG, model), (_IMAGE_PROCESSOR, preprocessor)):
        files.write(folder / name, json.dumps(values, indent=2) + "\n")
    files.write(folder / "model.safetensors", safetensors.numpy.save(tensors, {"format": "pt"}))


def _fill(config: CLIPConfig, table: Iterable[Row], tensors: Tensors, path: Path) -> Params:
    """Fills every leaf from one row and uses every tensor; one error lists all problems."""
    if config.vision.layers + config.text.layers > len(tensors):
        raise ValueError("its config names more layers than it has tensors")
    tree = jax.eval_shape(partial(init, config), jax.random.key(0))
    shapes = {
        target: leaf.shape for target, leaf in traverse_util.flatten_dict(tree, sep="/").items()
    }
    unused = {key for key in tensors if key.rsplit(".", 1)[-1] not in IGNORED}
    leaves: dict[str, Any] = {}
    problems: list[str] = []
    for row in table:
        unused.discard(row.source)
        if row.source not in tensors:
            problems.append(f"{row.source} is missing")
            continue
        tensor = tensors[row.source]
        leaf = _read(row, tensor)
        if leaf is None or leaf.shape != shapes[row.target]:
            problems.append(
                f"{row.source} of shape {tensor.shape} does not fit {row.target} of shape "
                f"{shapes[row.target]}"
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
    assert leaves.keys() == shapes.keys(), "the table has a row for every leaf"
    return traverse_util.unflatten_dict(leaves, sep="/")


def _read(row: Row, tensor: np.ndarray) -> np.ndarray | None:
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        return None
    try:
        return row.read(tensor)
    except (IndexError, ValueError):  # a wrong number of axes
        return None


def _merged_towers(network: Tensors) -> Tensors:
    """The names of open_clip's CLIPs whose text tower is a network of its own, `text`."""
    if "text.token_embedding.weight" not in network:
        return network
    return {name.removeprefix("text."): tensor for name, tensor in network.items()}


def _openai_config(path: Path, tensors: Tensors, network: Tensors) -> CLIPConfig:
    open_clip = _read_json(path.parent / _OPEN_CLIP_CONFIG, optional=True)
    named = path.suffix == ".safetensors" or path.name.startswith("open_clip")
    if open_clip is None and (named or _OPENAI not in tensors):
        warnings.warn(
            f"{path} is read as OpenAI's weights, with activation quick_gelu: if open_clip trained "
            f"them, put its {_OPEN_CLIP_CONFIG} beside them",
            stacklevel=3,
        )
    if open_clip is not None and not {"mean", "std"} <= open_clip.get("preprocess_cfg", {}).keys():
        _warn_of_pixels(path.parent / _OPEN_CLIP_CONFIG)
    return from_openai(network, open_clip)


def _read_processor(folder: Path) -> dict[str, Any]:
    """The options of a folder's image processor; transformers reads them in this order."""
    both = _read_json(folder / _PROCESSOR, optional=True) or {}
    options = both.get("image_processor") or {}
    options = options or _read_json(folder / _IMAGE_PROCESSOR, optional=True) or {}
    if not {"image_mean", "image_std"} <= options.keys() and options.get("do_normalize", True):
        _warn_of_pixels(folder / _IMAGE_PROCESSOR)
    return options


def _warn_of_pixels(path: Path) -> None:
    warnings.warn(
        f"No {path} says by which mean and standard deviation pixels are normalised, OpenAI's are "
        "taken: if these weights were trained with others, put that file there",
        stacklevel=4,
    )


def _choose(folder: Path) -> Path:
    """The preferred file of weights in a folder."""
    for name in _candidates(folder):
        if (folder / name).exists():
            return folder / name
    config = _read_json(folder / _CONFIG, optional=True) or {}
    kind = str(config.get("model_type") or config.get("architecture") or "")[:40]
    raise CheckpointError(
        f"{folder} holds no CLIP{f' but {kind!a}' * bool(kind)}: give a folder with {_CONFIG} of a "
        f"CLIP and one of {', '.join(_WEIGHTS)}, or with {_OPEN_CLIP_CONFIG} and one of "
        f"{', '.join(_OPEN_CLIP_WEIGHTS)}"
    )


def _candidates(folder: Path) -> tuple[str, ...]:
    # timm's folders have a config.json and a model.safetensors of another kind beside open_clip's.
    config = _read_json(folder / _CONFIG, optional=True) or {}
    if config.keys() & {"vision_config", "text_config", "vision_config_dict", "text_config_dict"}:
        return _WEIGHTS
    if (folder / _OPEN_CLIP_CONFIG).exists():
        return _OPEN_CLIP_WEIGHTS
    return _WEIGHTS if config.get("model_type") == "clip" else ()


def _download(hub_id: str) -> Path:
    """Fetches the configs and one file of weights; repositories hold several copies of weights."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id):
        raise CheckpointError(f"{hub_id} is neither a file, a folder nor a hub id: check the path")
    try:
        folder = Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=[*_BESIDE]))
        for name in _candidates(folder):
            if not name.endswith(INDEX):
                huggingface_hub.snapshot_download(hub_id, allow_patterns=[*_BESIDE, name])
            elif (folder / name).is_file():
                huggingface_hub.snapshot_download(hub_id, allow_patterns=[*_BESIDE, *_SHARDS])
            if (folder / name).is_file():
                break
    except Exception as error:  # network, proxy and hub raise many kinds
        raise CheckpointError(
            f"{hub_id} is not a path, and cannot be fetched from the Hugging Face hub "
            f"({type(error).__name__}): check the name, or download it where there is a "
            "connection and pass the folder"
        ) from error
    return folder


def _read_json(path: Path, *, optional: bool = False) -> Any:
    if not path.exists():
        if optional:
            return None
        raise CheckpointError(f"{path} is missing: put it beside the weights")
    return read_json(path)
