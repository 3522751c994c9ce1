"""SigLIP's weights, as Hugging Face publishes them."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qdgs_jax.errors import CheckpointError
from qdgs_jax.models.checkpoint import find_network, read_tensors
from qdgs_jax.models.hugging_face import (
    CONFIG,
    count,
    find_weights,
    processed_pixels,
    read_config,
    read_processor,
    shown,
    tower,
)
from qdgs_jax.models.siglip.modeling import SigLIPConfig, init
from qdgs_jax.models.tables import (
    Row,
    dense,
    fill,
    from_oihw,
    fused_attention,
    hugging_face_blocks,
    norm,
    same,
)
from qdgs_jax.typing import Params

_PROBE = "vision_model.head.probe"
_IGNORED = frozenset(["position_ids"])  # constants of the program, in old files
_REMEDY = (
    "take one in Hugging Face's layout that reads images of one size, such as "
    "google/siglip2-base-patch16-224"
)


def load(path_or_hub_id: str | Path) -> tuple[SigLIPConfig, Params]:
    """Load a SigLIP from a folder in Hugging Face's layout, its file, or the Hugging Face hub.

    The folder holds config.json and one of model.safetensors and pytorch_model.bin, or the index of
    shards of one. Also models of SigLIP 2 that read one image size are of this kind; those of
    variable resolution (naflex) are refused.

    Returns:
        The config, and the weights as float32.

    Raises:
        CheckpointError: The weights are absent, are no SigLIP's, or do not fit the config.
    """
    path = find_weights(path_or_hub_id)
    model = read_config(path.parent / CONFIG)
    try:
        config = from_hugging_face(model, read_processor(path.parent, "SigLIP's, 0.5 and 0.5,"))
        network = find_network(read_tensors(path), _PROBE)
        if not network:
            raise ValueError("it has no image tower of a SigLIP")
        layers = config.vision.layers + config.text.layers
        leaves, rows = partial(init, config), table(config)
        return config, fill(leaves, rows, network, path, layers=layers, ignored=_IGNORED)
    except CheckpointError:
        raise
    except Exception as error:  # a hostile config chooses how its reading fails
        raise CheckpointError(f"{path} is no SigLIP known here, {error}: {_REMEDY}") from error


def from_hugging_face(model: Mapping[str, Any], processor: Mapping[str, Any]) -> SigLIPConfig:
    """Read Hugging Face's config.json and the options of its image processor (which may be none).

    Raises:
        ValueError, TypeError: They do not describe a SigLIP, or one of variable resolution.
    """
    if model.get("model_type") == "siglip2":
        raise ValueError("it reads images of variable resolution (naflex)")
    if model.get("model_type") != "siglip":
        raise ValueError(f"its model_type is {shown(model.get('model_type'))}, not 'siglip'")
    default = SigLIPConfig()
    vision, text = model.get("vision_config") or {}, model.get("text_config") or {}
    if not vision.get("vision_use_head", True):
        raise ValueError("it has no attention pooling")
    mean, std = processed_pixels(processor, (default.pixel_mean, default.pixel_std))
    config = SigLIPConfig(
        vision=tower(vision, default.vision),
        text=tower(text, default.text),
        image_size=count(vision, "image_size", default.image_size),
        patch_size=count(vision, "patch_size", default.patch_size),
        context_length=count(text, "max_position_embeddings", default.context_length),
        vocabulary_size=count(text, "vocab_size", default.vocabulary_size),
        pixel_mean=mean,
        pixel_std=std,
    )
    size = text.get("projection_size") or config.text.width
    if size != config.vision.width:
        raise ValueError(
            f"its embeddings of texts have {shown(size)} numbers, those of images "
            f"{config.vision.width}"
        )
    return config


def table(config: SigLIPConfig) -> Iterator[Row]:
    """A row for every weight."""
    vision, text = "vision_model.embeddings", "text_model.embeddings"
    head = "vision_model.head"
    yield Row("logit_scale", "logit_scale", same)
    yield Row("logit_bias", "logit_bias", same)
    yield Row(f"{vision}.patch_embedding.weight", "vision/patch_embedding/kernel", from_oihw)
    yield Row(f"{vision}.patch_embedding.bias", "vision/patch_embedding/bias", same)
    yield Row(f"{vision}.position_embedding.weight", "vision/position_embedding", same)
    yield from hugging_face_blocks("vision", config.vision.layers)
    yield from norm("vision_model.post_layernorm", "vision/norm_post")
    yield Row(_PROBE, "vision/pooling/probe", np.ravel)  # [1, 1, C]
    yield from fused_attention(f"{head}.attention", "vision/pooling/attention")
    yield from norm(f"{head}.layernorm", "vision/pooling/norm2")
    yield from dense(f"{head}.mlp.fc1", "vision/pooling/up")
    yield from dense(f"{head}.mlp.fc2", "vision/pooling/down")
    yield Row(f"{text}.token_embedding.weight", "text/token_embedding/embedding", same)
    yield Row(f"{text}.position_embedding.weight", "text/position_embedding", same)
    yield from hugging_face_blocks("text", config.text.layers)
    yield from norm("text_model.final_layer_norm", "text/norm_post")
    yield from dense("text_model.head", "text/projection")
