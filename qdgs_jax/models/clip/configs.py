"""`CLIPConfig` from and to the JSON files beside weights, and from the shapes of the weights."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from qdgs_jax.models.clip.modeling import LEGACY_EOS, CLIPConfig
from qdgs_jax.models.hugging_face import count, mean_and_std, processed_pixels, shown, tower
from qdgs_jax.models.layers.transformer import TowerConfig

_HEAD_WIDTH = 64  # of all of OpenAI's CLIPs, and open_clip's default
_PIXELS = CLIPConfig.pixel_mean, CLIPConfig.pixel_std
_ANY = object()
_OPEN_CLIP_MODEL = dict.fromkeys(
    ("embed_dim", "quick_gelu", "vision_cfg", "text_cfg",
     "cast_dtype", "custom_text", "init_logit_bias", "init_logit_scale", "output_dict"),
    _ANY,
)  # fmt: skip
_OPEN_CLIP_VISION = {
    **dict.fromkeys(
        ("image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size",
         "attn_pooler_heads", "attn_pooler_queries", "output_tokens", "patch_dropout", "timm_drop",
         "timm_drop_path", "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias"),
        _ANY,
    ),
    "pool_type": "tok",
    "pos_embed_type": "learnable",
}  # fmt: skip
_OPEN_CLIP_TEXT = {
    **dict.fromkeys(
        ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio",
         "hf_model_pretrained", "output_tokens", "pad_id"),
        _ANY,
    ),
    "pool_type": "argmax",
    "proj_type": "linear",
}  # fmt: skip
"""Options of open_clip that leave the network as it is here: those that are read from the weights,
those of its training, and those of parts that it lacks; or the one value that does."""


def from_hugging_face(model: Mapping[str, Any], processor: Mapping[str, Any]) -> CLIPConfig:
    """Read Hugging Face's config.json and the options of its image processor (which may be none).

    Raises:
        ValueError, TypeError: They do not describe a CLIP.
    """
    if model.get("model_type", "clip") != "clip":
        raise ValueError(f"its model_type is {shown(model['model_type'])}, not 'clip'")
    default = CLIPConfig()
    # Old files keep the values that differ from the defaults in `..._dict`, which takes precedence.
    vision = {**(model.get("vision_config") or {}), **(model.get("vision_config_dict") or {})}
    text = {**(model.get("text_config") or {}), **(model.get("text_config_dict") or {})}
    vocabulary_size = count(text, "vocab_size", default.vocabulary_size)
    eos = text.get("eos_token_id", 49407)  # the default of transformers
    if type(eos) is not int or not 0 <= eos < vocabulary_size:
        raise ValueError(f"its eos_token_id is {shown(eos)}, not one of {vocabulary_size} numbers")
    mean, std = processed_pixels(processor, _PIXELS)
    return CLIPConfig(
        vision=tower(vision, default.vision),
        text=tower(text, default.text),
        embedding_size=count(model, "projection_dim", default.embedding_size),
        image_size=count(vision, "image_size", default.image_size),
        patch_size=count(vision, "patch_size", default.patch_size),
        context_length=count(text, "max_position_embeddings", default.context_length),
        vocabulary_size=vocabulary_size,
        eos_token_id=eos,
        pixel_mean=mean,
        pixel_std=std,
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
        for key, value in options.items():
            if value and known.get(key, not value) not in (_ANY, value):
                raise ValueError(f"open_clip's {key[:40]} = {shown(value)} is unsupported")
    quick = open_clip is None or described.get("quick_gelu")
    mean, std = mean_and_std((open_clip or {}).get("preprocess_cfg", {}), "mean", "std", _PIXELS)

    def tower_of(prefix: str, width: int, heads: int) -> TowerConfig:
        blocks = [re.match(rf"{re.escape(prefix)}\.resblocks\.(\d{{1,4}})\.", k) for k in tensors]
        layers = 1 + max((int(match[1]) for match in blocks if match), default=-1)
        mlp_width = tensors[f"{prefix}.resblocks.0.mlp.c_fc.weight"].shape[0]
        return TowerConfig(width, layers, heads, mlp_width, "quick_gelu" if quick else "gelu")

    head_width = count(vision, "head_width", _HEAD_WIDTH)
    width, _, patch_size, _ = tensors["visual.conv1.weight"].shape
    grid = math.isqrt(tensors["visual.positional_embedding"].shape[0] - 1)
    context_length, text_width = tensors["positional_embedding"].shape
    return CLIPConfig(
        vision=tower_of("visual.transformer", width, width // head_width),
        text=tower_of("transformer", text_width, count(text, "heads", text_width // _HEAD_WIDTH)),
        embedding_size=tensors["text_projection"].shape[1],
        image_size=grid * patch_size,
        patch_size=patch_size,
        context_length=context_length,
        vocabulary_size=tensors["token_embedding.weight"].shape[0],
        eos_token_id=LEGACY_EOS,
        pixel_mean=mean,
        pixel_std=std,
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
