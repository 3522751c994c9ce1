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
from qdgs_jax.models.checkpoint import read_tensors
from qdgs_jax.models.clip.configs import from_hugging_face, from_openai, to_hugging_face
from qdgs_jax.models.clip.layouts import IGNORED, Row, hugging_face, openai, write
from qdgs_jax.models.clip.modeling import CLIPConfig, init
from qdgs_jax.typing import Params

_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "flax_model.msgpack")
_OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_BESIDE = ("*.json", "merges.txt")  # configs and tokenizer
_TOLD = 20  # problems listed in one message


def load(path_or_hub_id: str | Path) -> tuple[CLIPConfig, Params]:
    """Load a CLIP from a folder, a single file, or the Hugging Face hub.

    A folder in Hugging Face's layout holds config.json and one of model.safetensors,
    pytorch_model.bin, flax_model.msgpack; one in open_clip's holds open_clip_config.json and
    open_clip_model.safetensors or open_clip_pytorch_model.bin. A single file has its configs beside
    it. Without them it is read as OpenAI's: the config follows from its shapes, the activation is
    OpenAI's.

    Returns:
        The config, and the weights as float32.

    Raises:
        CheckpointError: The weights are absent, are no CLIP's, or do not fit the config.
    """
    path = find_weights(path_or_hub_id)
    tensors = read_tensors(path)
    try:
        if "visual.conv1.weight" in tensors:
            config = _openai_config(path, tensors)
            return config, _fill(config, openai(config), tensors, path)
        config = from_hugging_face(
            _read_json(path.parent / "config.json"),
            _read_json(path.parent / "preprocessor_config.json", optional=True) or {},
        )
        table = hugging_face(config, flax="visual_projection.kernel" in tensors)
        return config, _fill(config, table, tensors, path)
    except (AttributeError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"{path} is no CLIP known here, {reason}: take one with a vision transformer in the "
            "layout of Hugging Face, OpenAI or open_clip"
        ) from error


def find_weights(path_or_hub_id: str | Path) -> Path:
    """The file that `load` reads; its folder has the configs and, from the hub, the tokenizer.

    Raises:
        CheckpointError: There is no such file.
    """
    path = Path(path_or_hub_id)
    if path.is_file():
        return path
    return _choose(path if path.is_dir() else _download(str(path_or_hub_id)))


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
    for name, values in (("config.json", model), ("preprocessor_config.json", preprocessor)):
        files.write(folder / name, json.dumps(values, indent=2) + "\n")
    files.write(folder / "model.safetensors", safetensors.numpy.save(tensors, {"format": "pt"}))


def _fill(
    config: CLIPConfig, table: Iterable[Row], tensors: dict[str, np.ndarray], path: Path
) -> Params:
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
            leaves[row.target] = jnp.asarray(leaf, jnp.float32)
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


def _openai_config(path: Path, tensors: dict[str, np.ndarray]) -> CLIPConfig:
    open_clip = _read_json(path.parent / "open_clip_config.json", optional=True)
    if open_clip is None and (path.suffix == ".safetensors" or path.name.startswith("open_clip")):
        warnings.warn(
            f"{path} is read as OpenAI's weights, with activation quick_gelu: if open_clip trained "
            "them, put its open_clip_config.json beside them",
            stacklevel=3,
        )
    return from_openai(tensors, open_clip)


def _choose(folder: Path) -> Path:
    """The preferred file of weights in a folder."""
    for name in _candidates(folder):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(
        f"{folder} holds no CLIP: it needs config.json and one of {', '.join(_WEIGHTS)}, "
        f"or open_clip_config.json and one of {', '.join(_OPEN_CLIP_WEIGHTS)}"
    )


def _candidates(folder: Path) -> tuple[str, ...]:
    # timm's folders have a config.json and a model.safetensors of another kind beside open_clip's.
    config = _read_json(folder / "config.json", optional=True) or {}
    if "vision_config" in config or "text_config" in config:
        return _WEIGHTS
    if (folder / "open_clip_config.json").is_file():
        return _OPEN_CLIP_WEIGHTS
    return ()


def _download(hub_id: str) -> Path:
    """Fetches the configs and one file of weights; repositories hold several copies of weights."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id):
        raise CheckpointError(f"{hub_id} is neither a file, a folder nor a hub id: check the path")
    try:
        folder = Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=[*_BESIDE]))
        for name in _candidates(folder):
            huggingface_hub.snapshot_download(hub_id, allow_patterns=[*_BESIDE, name])
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
    if optional and not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: put it beside the weights") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: fetch it again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no JSON object: fetch it again")
    return values
