"""Folders of image-text encoders, as Hugging Face and open_clip publish them: files and configs."""

import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import huggingface_hub

from qdgs_jax.errors import CheckpointError
from qdgs_jax.models.checkpoint import INDEX, read_json
from qdgs_jax.models.layers.transformer import TowerConfig

Three: TypeAlias = tuple[float, float, float]
Pixels: TypeAlias = tuple[Three, Three]
"""Mean and standard deviation of the channels."""

CONFIG, OPEN_CLIP_CONFIG = "config.json", "open_clip_config.json"
IMAGE_PROCESSOR = "preprocessor_config.json"

_PROCESSOR = "processor_config.json"
_WEIGHTS = (
    "model.safetensors", f"model.safetensors{INDEX}", "model.fp16.safetensors",
    "pytorch_model.bin", f"pytorch_model.bin{INDEX}", "pytorch_model.fp16.bin",
    "flax_model.msgpack",
)  # fmt: skip
_OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_BESIDE = ("*.json", "merges.txt", "spiece.model")  # configs and tokenizer
_SHARDS = ("model-*-of-*.safetensors", "pytorch_model-*-of-*.bin")
_TOWERS = {"vision_config", "text_config", "vision_config_dict", "text_config_dict"}
_MAX_COUNT = 1 << 20


def find_weights(path_or_hub_id: str | Path) -> Path:
    """The file of weights; its folder has the configs and, from the hub, the tokenizer.

    Raises:
        CheckpointError: There is no such file.
    """
    path = Path(path_or_hub_id)
    if path.is_dir():
        return _choose(path)
    return path if path.exists() else _choose(_download(str(path_or_hub_id)))


def model_type(folder: Path) -> str:
    """What the config.json in a folder says that its model is; empty where it says nothing.

    Raises:
        CheckpointError: The file cannot be read.
    """
    config = read_config(folder / CONFIG, optional=True) or {}
    return str(config.get("model_type") or config.get("architecture") or "")[:40]


def read_config(path: Path, *, optional: bool = False) -> Any:
    """The object in a JSON file beside weights; None where it may be absent, and is.

    Raises:
        CheckpointError: It is absent or cannot be read.
    """
    if not path.exists():
        if optional:
            return None
        raise CheckpointError(f"{path} is missing: put it beside the weights")
    return read_json(path)


def read_processor(folder: Path, default: str) -> dict[str, Any]:
    """The options of a folder's image processor; transformers reads them in this order.

    Warns where they lack the mean and standard deviation of pixels.

    Args:
        default: what is taken in that case, for the warning.
    """
    both = read_config(folder / _PROCESSOR, optional=True) or {}
    options = both.get("image_processor") or {}
    options = options or read_config(folder / IMAGE_PROCESSOR, optional=True) or {}
    if not {"image_mean", "image_std"} <= options.keys() and options.get("do_normalize", True):
        warn_of_pixels(folder / IMAGE_PROCESSOR, default)
    return options


def warn_of_pixels(path: Path, default: str) -> None:
    """Warns that a file does not say how pixels are normalised, for the caller of a `load`."""
    warnings.warn(
        f"No {path} says by which mean and standard deviation pixels are normalised, {default} are "
        "taken: if these weights were trained with others, put that file there",
        stacklevel=4,
    )


def processed_pixels(processor: Mapping[str, Any], default: Pixels) -> Pixels:
    """Mean and standard deviation by which an image processor normalises pixels in [0, 1].

    Raises:
        ValueError: its options are no numbers.
    """
    mean, std = mean_and_std(processor, "image_mean", "image_std", default)
    # Pixels are in [0, 1] here, which is 1 / 255 of what a processor rescales.
    scale = 255 * number(processor, "rescale_factor", 1 / 255)
    scale = scale if processor.get("do_rescale", True) else 255
    if not processor.get("do_normalize", True):
        mean, std = (0.0,) * 3, (1.0,) * 3
    if not math.isclose(scale, 1, rel_tol=1e-6):
        mean, std = _over(mean, scale), _over(std, scale)
    return mean, std


def mean_and_std(options: Mapping[str, Any], mean: str, std: str, default: Pixels) -> Pixels:
    """Two options of three numbers each, by their names.

    Raises:
        ValueError: they are something else.
    """
    values = options.get(mean, default[0]), options.get(std, default[1])
    for value in values:
        if not isinstance(value, list | tuple) or len(value) != 3 or not all(map(_finite, value)):
            raise ValueError(f"its {mean} or {std} is {shown(value)}, not three numbers")
    if min(values[1]) <= 0:
        raise ValueError(f"its {std} is {shown(values[1])}, but divides pixels")
    (red, green, blue), (reds, greens, blues) = values
    return (red, green, blue), (reds, greens, blues)


def tower(values: Mapping[str, Any], default: TowerConfig) -> TowerConfig:
    """The size of a tower, from its part of a config.json.

    Raises:
        ValueError, TypeError: it describes none.
    """
    return TowerConfig(
        width=count(values, "hidden_size", default.width),
        layers=count(values, "num_hidden_layers", default.layers),
        heads=count(values, "num_attention_heads", default.heads),
        mlp_width=count(values, "intermediate_size", default.mlp_width),
        hidden_act=values.get("hidden_act", default.hidden_act),
        layer_norm_eps=number(values, "layer_norm_eps", default.layer_norm_eps),
    )


def count(options: Mapping[str, Any], key: str, default: int) -> int:
    """An option that is a whole number above 0 and not huge; ValueError if it is none."""
    value = options.get(key, default)
    if type(value) is not int or not 0 < value <= _MAX_COUNT:
        raise ValueError(f"its {key} is {shown(value)}, not a count up to {_MAX_COUNT}")
    return value


def number(options: Mapping[str, Any], key: str, default: float) -> float:
    """An option that is a number above 0 and not huge; ValueError if it is none."""
    value = options.get(key, default)
    if not _finite(value) or value <= 0:
        raise ValueError(f"its {key} is {shown(value)}, not a number above 0")
    return value


def shown(value: Any) -> str:
    """A value that anybody wrote, for a sentence."""
    return ascii(value)[:40]


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9


def _over(values: Three, scale: float) -> Three:
    red, green, blue = values
    return red / scale, green / scale, blue / scale


def _choose(folder: Path) -> Path:
    """The preferred file of weights in a folder."""
    for name in _candidates(folder):
        if (folder / name).exists():
            return folder / name
    kind = model_type(folder)
    raise CheckpointError(
        f"{folder} holds no CLIP or SigLIP{f' but {kind!a}' * bool(kind)}: give a folder with "
        f"{CONFIG} of one and one of {', '.join(_WEIGHTS)}, or with {OPEN_CLIP_CONFIG} of a CLIP "
        f"and one of {', '.join(_OPEN_CLIP_WEIGHTS)}"
    )


def _candidates(folder: Path) -> tuple[str, ...]:
    # timm's folders have a config.json and a model.safetensors of another kind beside open_clip's.
    config = read_config(folder / CONFIG, optional=True) or {}
    if config.keys() & _TOWERS:
        return _WEIGHTS
    if (folder / OPEN_CLIP_CONFIG).exists():
        return _OPEN_CLIP_WEIGHTS
    return _WEIGHTS if config.get("model_type") in ("clip", "siglip") else ()


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
