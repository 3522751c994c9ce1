"""Configs in the files beside weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdgs_jax.models import clip
from qdgs_jax.models.clip.configs import from_hugging_face, from_openai, to_hugging_face

HEADS = {"vision_cfg": {"head_width": 8}, "text_cfg": {"heads": 2}}


@pytest.fixture(scope="module")
def openai() -> dict[str, np.ndarray]:
    """Tensors of the shapes that a config is inferred from."""
    shapes = {
        "visual.conv1.weight": (24, 3, 4, 4),
        "visual.positional_embedding": (17, 24),
        "visual.transformer.resblocks.0.mlp.c_fc.weight": (40, 24),
        "visual.transformer.resblocks.11.ln_1.weight": (24,),
        "positional_embedding": (7, 16),
        "token_embedding.weight": (30, 16),
        "transformer.resblocks.0.mlp.c_fc.weight": (28, 16),
        "text_projection": (16, 12),
    }
    return {name: np.zeros(shape) for name, shape in shapes.items()}


def test_hugging_face_round_trip(config: clip.CLIPConfig) -> None:
    model, preprocessor = json.loads(json.dumps(to_hugging_face(config)))
    assert from_hugging_face(model, preprocessor) == config


def test_transformers_reads_it_alike(tmp_path: Path, config: clip.CLIPConfig) -> None:
    from transformers import CLIPConfig

    (tmp_path / "config.json").write_text(json.dumps(to_hugging_face(config)[0]))
    theirs = CLIPConfig.from_pretrained(tmp_path).to_dict()
    assert from_hugging_face(theirs, {}) == config


def test_defaults_are_those_of_transformers() -> None:
    from transformers import CLIPConfig

    written = {"model_type": "clip", "text_config": {}, "vision_config": {}}
    assert from_hugging_face(written, {}) == from_hugging_face(CLIPConfig().to_dict(), {})
    assert from_hugging_face(written, {}).eos_token_id == 49407


def test_old_files_keep_a_second_dictionary() -> None:
    model = {
        "text_config": {"hidden_size": 512},
        "text_config_dict": {"hidden_size": 1024, "num_attention_heads": 16},
        "vision_config_dict": None,
    }
    assert from_hugging_face(model, {}).text.width == 1024


@pytest.mark.parametrize(
    "model",
    [
        {"model_type": "siglip"},
        {"text_config": {"eos_token_id": [1, 2]}},
        {"text_config": {"hidden_act": "relu"}},
        {"vision_config": {"num_attention_heads": 7}},
    ],
)
def test_refused(model: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"siglip|eos_token_id|relu|heads"):
        from_hugging_face(model, {})


def test_inferred_from_openai(openai: dict[str, np.ndarray]) -> None:
    with pytest.raises(ArithmeticError):  # no head of 64
        from_openai(openai, None)
    wide = {**openai, "visual.conv1.weight": np.zeros((128, 3, 4, 4))}
    wide["positional_embedding"] = np.zeros((7, 64))
    config = from_openai(wide, None)
    assert (config.vision.layers, config.vision.heads, config.text.heads) == (12, 2, 1)
    assert (config.image_size, config.patch_size, config.embedding_size) == (16, 4, 12)
    assert (config.context_length, config.vocabulary_size) == (7, 30)
    assert config.vision.hidden_act == config.text.hidden_act == "quick_gelu"
    assert config.eos_token_id == 2


def test_open_clip(openai: dict[str, np.ndarray]) -> None:
    pixels = {"mean": [0.5, 0.5, 0.5], "std": [0.1, 0.2, 0.3]}
    config = from_openai(openai, {"model_cfg": HEADS, "preprocess_cfg": pixels})
    assert (config.vision.heads, config.text.heads) == (3, 2)
    assert config.vision.hidden_act == config.text.hidden_act == "gelu"
    assert config.pixel_mean == (0.5, 0.5, 0.5)
    assert config.pixel_std == (0.1, 0.2, 0.3)
    quick = from_openai(openai, {"model_cfg": {**HEADS, "quick_gelu": True}})
    assert quick.vision.hidden_act == quick.text.hidden_act == "quick_gelu"


def test_options_of_open_clip_that_change_the_network(openai: dict[str, np.ndarray]) -> None:
    unused = {"timm_model_name": None, **HEADS["vision_cfg"]}
    from_openai(openai, {"model_cfg": {**HEADS, "vision_cfg": unused}})
    pooling = {"attentional_pool": True, **HEADS["vision_cfg"]}
    with pytest.raises(ValueError, match="attentional_pool"):
        from_openai(openai, {"model_cfg": {**HEADS, "vision_cfg": pooling}})
