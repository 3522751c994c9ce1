"""Every tensor of a file is used, every leaf is filled, and other networks are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qdgs_jax.errors import CheckpointError
from qdgs_jax.models import siglip
from qdgs_jax.models.siglip.params import from_hugging_face, table
from qdgs_jax.models.tables import Row


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        shutil.copy(Path(__file__).parent / "tiny" / name, tmp_path)
    return tmp_path


def change(folder: Path, part: str = "", **values: Any) -> None:
    """Changes the config.json, or one of its parts."""
    config = json.loads((folder / "config.json").read_text())
    (config[part] if part else config).update(values)
    (folder / "config.json").write_text(json.dumps(config))


def test_config(loaded: Any) -> None:
    config, _ = loaded
    assert (config.image_size, config.patch_size, config.context_length) == (18, 4, 24)
    assert (config.vision.width, config.text.width) == (16, 12)
    assert config.text.hidden_act == config.vision.hidden_act == "gelu_pytorch_tanh"
    assert config.text.layer_norm_eps == 1e-6
    assert config.pixel_mean == config.pixel_std == (0.5, 0.5, 0.5)


def test_what_files_leave_out() -> None:
    """Published files hold only what differs from ViT-B/16 of 224 pixels, 64 tokens of 32,000."""
    written = {"model_type": "siglip", "text_config": {}, "vision_config": {"image_size": 256}}
    config = from_hugging_face(written, {})
    assert config == siglip.SigLIPConfig(image_size=256)
    assert (config.vision.width, config.vision.layers, config.vision.heads) == (768, 12, 12)
    assert (config.vision.mlp_width, config.patch_size) == (3072, 16)
    assert (config.text, config.context_length) == (config.vision, 64)
    assert config.vocabulary_size == 32_000


def test_the_table_has_each_tensor_and_each_leaf_once(loaded: Any) -> None:
    config, _ = loaded
    rows: list[Row] = list(table(config))
    tensors = load_file(Path(__file__).parent / "tiny/model.safetensors")
    assert {row.source for row in rows} == tensors.keys()
    assert len({row.target for row in rows}) == len(rows)


def test_all_failures_are_told_together(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["vision_model.embeddings.position_ids"] = np.arange(16)  # ignored
    tensors["other.weight"] = tensors.pop("text_model.head.weight")
    tensors["logit_bias"] = np.zeros(2, np.float32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        siglip.load(folder)
    problems = str(caught.value).split("does not fit its config: ")[1].split("; ")
    assert len(problems) == 3
    for part in ("text_model.head.weight is missing", "logit_bias of shape (2,)", "other.weight"):
        assert any(problem.startswith(part) for problem in problems)


@pytest.mark.parametrize(
    ("part", "values", "reason"),
    [
        ("", {"model_type": "siglip2"}, r"variable resolution \(naflex\): take one .* one size"),
        ("", {"model_type": "clip"}, "its model_type is 'clip', not 'siglip': take"),
        ("", {"vision_config": 5}, "no SigLIP known here"),
        ("vision_config", {"vision_use_head": False}, "has no attention pooling: take"),
        ("vision_config", {"image_size": [18, 18]}, r"image_size is \[18, 18\], not a count"),
        ("vision_config", {"num_hidden_layers": 1_000_000}, "more layers than it has tensors"),
        ("text_config", {"projection_size": None}, "of texts have 12 numbers, those of images 16"),
        ("text_config", {"hidden_act": "relu"}, "'relu' is none of"),
    ],
)
def test_what_is_refused(folder: Path, part: str, values: Any, reason: str) -> None:
    change(folder, part, **values)
    with pytest.raises(CheckpointError, match=reason):
        siglip.load(folder)


def test_weights_of_another_network(folder: Path) -> None:
    save_file({"bias": np.zeros(1, np.float32)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="has no image tower of a SigLIP: take"):
        siglip.load(folder)


def test_a_guessed_mean_is_told(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    with pytest.warns(UserWarning, match=r"No .* says .* SigLIP's, 0\.5 and 0\.5, are taken"):
        siglip.load(folder)
