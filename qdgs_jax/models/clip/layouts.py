"""The layouts in which CLIP's weights are published, with one mapping table each."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np

from qdgs_jax.models.clip.modeling import CLIPConfig

Transform: TypeAlias = Callable[[np.ndarray], np.ndarray]

IGNORED = frozenset(
    ("attn_mask", "context_length", "input_resolution", "logit_bias", "output_dim", "position_ids",
     "vocab_size")
)  # fmt: skip
"""Last parts of keys that hold constants of the program, or of training, rather than weights."""


class Row(NamedTuple):
    """One weight: its name in the file, its path in the tree, and how it is transformed."""

    source: str
    target: str
    read: Transform


def hugging_face(config: CLIPConfig, *, flax: bool = False) -> Iterator[Row]:
    """Hugging Face's layout, that of PyTorch files or that of Flax files."""
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


def openai(config: CLIPConfig) -> Iterator[Row]:
    """The layout of OpenAI's and open_clip's files: projections are stored input-major."""

    def dense(source: str, target: str) -> Iterator[Row]:
        yield Row(f"{source}.weight", f"{target}/kernel", _turn)
        yield Row(f"{source}.bias", f"{target}/bias", _same)

    def norm(source: str, target: str) -> Iterator[Row]:
        yield Row(f"{source}.weight", f"{target}/scale", _same)
        yield Row(f"{source}.bias", f"{target}/bias", _same)

    def blocks(prefix: str, tower: str, layers: int) -> Iterator[Row]:
        for i in range(layers):
            source, target = f"{prefix}.resblocks.{i}", f"{tower}/block{i}"
            yield from norm(f"{source}.ln_1", f"{target}/norm1")
            yield from norm(f"{source}.ln_2", f"{target}/norm2")
            for part, name in enumerate(("query", "key", "value")):
                read, attention = partial(_third, part), f"{target}/attention/{name}"
                yield Row(f"{source}.attn.in_proj_weight", f"{attention}/kernel", read)
                yield Row(f"{source}.attn.in_proj_bias", f"{attention}/bias", read)
            yield from dense(f"{source}.attn.out_proj", f"{target}/attention/out")
            yield from dense(f"{source}.mlp.c_fc", f"{target}/up")
            yield from dense(f"{source}.mlp.c_proj", f"{target}/down")

    yield Row("logit_scale", "logit_scale", _same)
    yield Row("visual.class_embedding", "vision/class_embedding", _same)
    yield Row("visual.conv1.weight", "vision/patch_embedding/kernel", _from_oihw)
    yield Row("visual.positional_embedding", "vision/position_embedding", _same)
    yield from norm("visual.ln_pre", "vision/norm_pre")
    yield from blocks("visual.transformer", "vision", config.vision.layers)
    yield from norm("visual.ln_post", "vision/norm_post")
    yield Row("visual.proj", "vision/projection/kernel", _same)
    yield Row("token_embedding.weight", "text/token_embedding/embedding", _same)
    yield Row("positional_embedding", "text/position_embedding", _same)
    yield from blocks("transformer", "text", config.text.layers)
    yield from norm("ln_final", "text/norm_post")
    yield Row("text_projection", "text/projection/kernel", _same)


def write(row: Row, leaf: np.ndarray) -> np.ndarray:
    """The file's tensor for a leaf, by the inverse of `row.read`; for `hugging_face(config)`."""
    return _INVERSES[row.read](leaf).copy()  # safetensors needs contiguous memory


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _turn(x: np.ndarray) -> np.ndarray:
    return x.T


def _third(part: int, x: np.ndarray) -> np.ndarray:
    return np.split(x, 3)[part].T


def _from_hwio(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])


def _from_oihw(x: np.ndarray) -> np.ndarray:
    return _from_hwio(x.transpose(2, 3, 1, 0))


def _to_oihw(x: np.ndarray) -> np.ndarray:
    size = round((x.shape[0] / 3) ** 0.5)
    return x.reshape(size, size, 3, -1).transpose(3, 2, 0, 1)


_INVERSES: dict[Transform, Transform] = {_same: _same, _turn: _turn, _from_oihw: _to_oihw}
