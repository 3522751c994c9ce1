"""`CLIPConfig` from and to the JSON files beside weights, and from the shapes of the weights."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from qdgs_jax.models.clip.modeling import LEGACY_EOS, CLIPConfig, TowerConfig

_HEAD_WIDTH = 64  # of all of OpenAI's CLIPs, and open_clip's default
_OPEN_CLIP_MODEL = ("embed_dim", "quick_gelu", "vision_cfg", "text_cfg")
_OPEN_CLIP_VISION = ("image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size")
_OPEN_CLIP_TEXT = ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio")


def from_hugging_face(model: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> CLIPConfig:
    """Read Hugging Face's config.json and preprocessor_config.json (which may be empty).

    Raises:
        ValueError, TypeError: They do not describe a CLIP.
    """
    if model.get("model_type", "clip") != "clip":
        raise ValueError(f"its model_type is {model['model_type']!r}, not 'clip'")
    default = CLIPConfig()
    # Old files keep the values that differ from the defaults in `..._dict`, which takes precedence.
    vision = {**(model.get("vision_config") or {}), **(model.get("vision_config_dict") or {})}
    text = {**(model.get("text_config") or {}), **(model.get("text_config_dict") or {})}
    eos = text.get("eos_token_id", 49407)  # the default of transformers
    if not isinstance(eos, int):
        raise ValueError(f"its eos_token_id is {eos!r}, not one number")
    return CLIPConfig(
        vision=_tower(vision, default.vision),
        text=_tower(text, default.text),
        embedding_size=model.get("projection_dim", default.embedding_size),
        image_size=vision.get("image_size", default.image_size),
        patch_size=vision.get("patch_size", default.patch_size),
        context_length=text.get("max_position_embeddings", default.context_length),
        vocabulary_size=text.get("vocab_size", default.vocabulary_size),
        eos_token_id=eos,
        pixel_mean=tuple(preprocessor.get("image_mean", default.pixel_mean)),
        pixel_std=tuple(preprocessor.get("image_std", default.pixel_std)),
    )


def to_hugging_face(config: CLIPConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Contents of config.json and preprocessor_config.json; the inverse of `from_hugging_face`."""
    shared = {"projection_dim": config.embedding_size}
    model = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        **shared,
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            **_untower(config.vision),
            **shared,
        },
        "text_config": {
            "model_type": "clip_text_model",
            "max_position_embeddings": config.context_length,
            "vocab_size": config.vocabulary_size,
            "bos_token_id": None,
            "eos_token_id": config.eos_token_id,
            **_untower(config.text),
            **shared,
        },
    }
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "image_mean": config.pixel_mean,
        "image_std": config.pixel_std,
        "size": {"shortest_edge": config.image_size},
        "crop_size": {"height": config.image_size, "width": config.image_size},
    }
    return model, preprocessor


def from_openai(
    tensors: Mapping[str, np.ndarray], open_clip: Mapping[str, Any] | None
) -> CLIPConfig:
    """Infer a config from the shapes of weights in OpenAI's layout.

    Args:
        tensors: The weights.
        open_clip: Content of open_clip's open_clip_config.json, if there is one; without it the
            activation and the heads are those of OpenAI's models.

    Raises:
        KeyError, IndexError, ValueError: They do not describe a CLIP.
    """
    described = (open_clip or {}).get("model_cfg", {})
    vision, text = described.get("vision_cfg", {}), described.get("text_cfg", {})
    for options, known in (
        (described, _OPEN_CLIP_MODEL),
        (vision, _OPEN_CLIP_VISION),
        (text, _OPEN_CLIP_TEXT),
    ):
        unknown = [key for key, value in options.items() if value and key not in known]
        if unknown:
            raise ValueError(f"open_clip's {', '.join(unknown)} is unsupported")
    quick = open_clip is None or described.get("quick_gelu")
    pixels = (open_clip or {}).get("preprocess_cfg", {})
    default = CLIPConfig()

    def tower(prefix: str, width: int, heads: int) -> TowerConfig:
        blocks = [re.match(rf"{re.escape(prefix)}\.resblocks\.(\d{{1,4}})\.", k) for k in tensors]
        layers = 1 + max((int(match[1]) for match in blocks if match), default=-1)
        mlp_width = tensors[f"{prefix}.resblocks.0.mlp.c_fc.weight"].shape[0]
        return TowerConfig(width, layers, heads, mlp_width, "quick_gelu" if quick else "gelu")

    width, _, patch_size, _ = tensors["visual.conv1.weight"].shape
    grid = math.isqrt(tensors["visual.positional_embedding"].shape[0] - 1)
    context_length, text_width = tensors["positional_embedding"].shape
    return CLIPConfig(
        vision=tower("visual.transformer", width, width // vision.get("head_width", _HEAD_WIDTH)),
        text=tower("transformer", text_width, text.get("heads", text_width // _HEAD_WIDTH)),
        embedding_size=tensors["text_projection"].shape[1],
        image_size=grid * patch_size,
        patch_size=patch_size,
        context_length=context_length,
        vocabulary_size=tensors["token_embedding.weight"].shape[0],
        eos_token_id=LEGACY_EOS,
        pixel_mean=tuple(pixels.get("mean", default.pixel_mean)),
        pixel_std=tuple(pixels.get("std", default.pixel_std)),
    )


def _tower(values: Mapping[str, Any], default: TowerConfig) -> TowerConfig:
    return TowerConfig(
        width=values.get("hidden_size", default.width),
        layers=values.get("num_hidden_layers", default.layers),
        heads=values.get("num_attention_heads", default.heads),
        mlp_width=values.get("intermediate_size", default.mlp_width),
        hidden_act=values.get("hidden_act", default.hidden_act),
        layer_norm_eps=values.get("layer_norm_eps", default.layer_norm_eps),
    )


def _untower(config: TowerConfig) -> dict[str, Any]:
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": config.hidden_act,
        "layer_norm_eps": config.layer_norm_eps,
    }
