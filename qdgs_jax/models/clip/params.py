"""CLIP's weights on disk: one mapping table for each layout met in the wild."""

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from qdgs_jax.errors import CheckpointError
from qdgs_jax.models.checkpoint import read_tensors
from qdgs_jax.models.clip.modeling import CLIPConfig, TowerConfig, init
from qdgs_jax.typing import Params

WEIGHTS = ("model.safetensors", "pytorch_model.bin", "flax_model.msgpack")
"""Names of a folder's weights in Hugging Face's layout, best first."""


Transform: TypeAlias = Callable[[np.ndarray], np.ndarray]


class Row(NamedTuple):
    """Where one weight comes from, where it goes, and how it is turned on the way."""

    source: str
    target: str
    read: Transform


def load(path: str | Path) -> tuple[CLIPConfig, Params]:
    """Load a CLIP from a folder in Hugging Face's layout.

    Returns:
        The config, and the weights as float32.

    Raises:
        CheckpointError: The weights do not fit the config, key by key.
    """
    folder = Path(path)
    config = _from_hugging_face(*_read_configs(folder))
    weights = folder / WEIGHTS[0]
    return config, _fill(config, hugging_face(config), read_tensors(weights), weights)


def save(folder: str | Path, config: CLIPConfig, params: Params) -> None:
    """Write a folder in Hugging Face's layout, which `load` and transformers read.

    The files are config.json, preprocessor_config.json and model.safetensors.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    leaves = traverse_util.flatten_dict(params, sep="/")
    tensors = {
        row.source: _WRITE[row.read](np.asarray(leaves[row.target])).copy()
        for row in hugging_face(config)
    }
    model, preprocessor = _to_hugging_face(config)
    _write_json(folder / "config.json", model)
    _write_json(folder / "preprocessor_config.json", preprocessor)
    temporary = folder / ".model.safetensors"
    save_file(tensors, temporary, metadata={"format": "pt"})
    os.replace(temporary, folder / WEIGHTS[0])


def hugging_face(config: CLIPConfig, *, flax: bool = False) -> Iterator[Row]:
    """The table of Hugging Face's layout: of its PyTorch files, or of its Flax files."""
    kernel, turn, patches = ("kernel", _same, _from_hwio) if flax else ("weight", _turn, _from_oihw)
    scale, table = ("scale", "embedding") if flax else ("weight", "weight")

    def dense(source: str, target: str) -> Iterator[Row]:
        yield Row(f"{source}.{kernel}", f"{target}/kernel", turn)
        yield Row(f"{source}.bias", f"{target}/bias", _same)

    def norm(source: str, target: str) -> Iterator[Row]:
        yield Row(f"{source}.{scale}", f"{target}/scale", _same)
        yield Row(f"{source}.bias", f"{target}/bias", _same)

    def blocks(tower: str, layers: int) -> Iterator[Row]:
        for i in range(layers):
            source, target = f"{tower}_model.encoder.layers.{i}", f"{tower}/block{i}"
            yield from norm(f"{source}.layer_norm1", f"{target}/norm1")
            yield from norm(f"{source}.layer_norm2", f"{target}/norm2")
            yield from dense(f"{source}.self_attn.q_proj", f"{target}/attention/query")
            yield from dense(f"{source}.self_attn.k_proj", f"{target}/attention/key")
            yield from dense(f"{source}.self_attn.v_proj", f"{target}/attention/value")
            yield from dense(f"{source}.self_attn.out_proj", f"{target}/attention/out")
            yield from dense(f"{source}.mlp.fc1", f"{target}/up")
            yield from dense(f"{source}.mlp.fc2", f"{target}/down")

    vision, text = "vision_model.embeddings", "text_model.embeddings"
    yield Row("logit_scale", "logit_scale", _same)
    yield Row(f"{vision}.class_embedding", "vision/class_embedding", _same)
    yield Row(f"{vision}.patch_embedding.{kernel}", "vision/patch_embedding/kernel", patches)
    yield Row(f"{vision}.position_embedding.{table}", "vision/position_embedding", _same)
    yield from norm("vision_model.pre_layrnorm", "vision/norm_pre")
    yield from blocks("vision", config.vision.layers)
    yield from norm("vision_model.post_layernorm", "vision/norm_post")
    yield Row(f"visual_projection.{kernel}", "vision/projection/kernel", turn)
    yield Row(f"{text}.token_embedding.{table}", "text/token_embedding/embedding", _same)
    yield Row(f"{text}.position_embedding.{table}", "text/position_embedding", _same)
    yield from blocks("text", config.text.layers)
    yield from norm("text_model.final_layer_norm", "text/norm_post")
    yield Row(f"text_projection.{kernel}", "text/projection/kernel", turn)


def _fill(
    config: CLIPConfig, table: Iterator[Row], tensors: dict[str, np.ndarray], path: Path
) -> Params:
    """Every leaf from exactly one row, every tensor used; all that fails is told at once."""
    expected = traverse_util.flatten_dict(
        jax.eval_shape(partial(init, config), jax.random.key(0)), sep="/"
    )
    leaves, problems, unused = {}, [], set(tensors)
    for row in table:
        unused.discard(row.source)
        if row.source not in tensors:
            problems.append(f"{row.source} is missing")
            continue
        leaf, shape = row.read(tensors[row.source]), expected[row.target].shape
        if leaf.shape != shape:
            problems.append(f"{row.source} gives {leaf.shape} where {shape} is needed")
        leaves[row.target] = jnp.asarray(leaf, jnp.float32)
    problems += [f"{key} is unknown" for key in sorted(unused)]
    if problems:
        raise CheckpointError(f"{path}: {'; '.join(problems)}")
    return traverse_util.unflatten_dict(leaves, sep="/")


def _from_hugging_face(model: dict[str, Any], preprocessor: dict[str, Any]) -> CLIPConfig:
    def tower(values: dict[str, Any], default: TowerConfig) -> TowerConfig:
        return TowerConfig(
            width=values.get("hidden_size", default.width),
            layers=values.get("num_hidden_layers", default.layers),
            heads=values.get("num_attention_heads", default.heads),
            mlp_width=values.get("intermediate_size", default.mlp_width),
            hidden_act=values.get("hidden_act", default.hidden_act),
            layer_norm_eps=values.get("layer_norm_eps", default.layer_norm_eps),
        )

    default = CLIPConfig()
    vision, text = model.get("vision_config") or {}, model.get("text_config") or {}
    return CLIPConfig(
        vision=tower(vision, default.vision),
        text=tower(text, default.text),
        embedding_size=model.get("projection_dim", default.embedding_size),
        image_size=vision.get("image_size", default.image_size),
        patch_size=vision.get("patch_size", default.patch_size),
        context_length=text.get("max_position_embeddings", default.context_length),
        vocabulary_size=text.get("vocab_size", default.vocabulary_size),
        eos_token_id=text.get("eos_token_id", 49407),  # what transformers fills in
        pixel_mean=tuple(preprocessor.get("image_mean", default.pixel_mean)),
        pixel_std=tuple(preprocessor.get("image_std", default.pixel_std)),
    )


def _to_hugging_face(config: CLIPConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    def tower(values: TowerConfig) -> dict[str, Any]:
        return {
            "hidden_size": values.width,
            "num_hidden_layers": values.layers,
            "num_attention_heads": values.heads,
            "intermediate_size": values.mlp_width,
            "hidden_act": values.hidden_act,
            "layer_norm_eps": values.layer_norm_eps,
            "projection_dim": config.embedding_size,
        }

    model = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embedding_size,
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            **tower(config.vision),
        },
        "text_config": {
            "model_type": "clip_text_model",
            "max_position_embeddings": config.context_length,
            "vocab_size": config.vocabulary_size,
            "bos_token_id": None,
            "eos_token_id": config.eos_token_id,
            **tower(config.text),
        },
    }
    size = config.image_size
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "image_mean": config.pixel_mean,
        "image_std": config.pixel_std,
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
    }
    return model, preprocessor


def _read_configs(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    preprocessor = folder / "preprocessor_config.json"
    return (
        json.loads((folder / "config.json").read_text()),
        json.loads(preprocessor.read_text()) if preprocessor.is_file() else {},
    )


def _write_json(path: Path, values: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(values, indent=2) + "\n")
    os.replace(temporary, path)


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _turn(x: np.ndarray) -> np.ndarray:
    return x.T


def _from_hwio(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])


def _from_oihw(x: np.ndarray) -> np.ndarray:
    return _from_hwio(x.transpose(2, 3, 1, 0))


def _to_oihw(x: np.ndarray) -> np.ndarray:
    size = round((x.shape[0] / 3) ** 0.5)
    return x.reshape(size, size, 3, -1).transpose(3, 2, 0, 1)


_WRITE: dict[Transform, Transform] = {_same: _same, _turn: _turn, _from_oihw: _to_oihw}
