"""Weights in every layout give the same network; errors list everything that does not fit."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization, traverse_util
from safetensors.numpy import load_file, save_file

from qdgs_jax.errors import CheckpointError
from qdgs_jax.models import clip
from qdgs_jax.models.clip.layouts import hugging_face

TOLERANCES = {  # relative L2 error; measured on a CPU
    "embedding": 1e-5,  # float32 rounding over the depth of a tower: 8e-7
    "gradient": 1e-4,  # the same, forth and back, and the golden is float32 itself: 1e-6
}
HUGGING_FACE = ["model.safetensors", "pytorch_model.bin", "flax_model.msgpack"]
OPENAI = ["openai_state_dict.pt", "openai_torchscript.pt"]
OPEN_CLIP = {"model_cfg": {"vision_cfg": {"head_width": 8}, "text_cfg": {"heads": 2}}}


def error(actual: Any, desired: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(actual) - desired) / np.linalg.norm(desired))


def same(actual: Any, desired: Any) -> None:
    jax.tree.map(partial(np.testing.assert_array_equal, strict=True), actual, desired)


def to_openai(params: Any) -> dict[str, np.ndarray]:
    """Weights in OpenAI's layout, written down independently of the table."""
    tensors: dict[str, Any] = {"logit_scale": params["logit_scale"]}
    for tower, prefix in (("vision", "visual."), ("text", "")):
        weights = params[tower]
        tensors[f"{prefix}positional_embedding"] = weights["position_embedding"]
        for i in range(sum(name.startswith("block") for name in weights)):
            block, name = weights[f"block{i}"], f"{prefix}transformer.resblocks.{i}"
            qkv = [block["attention"][key] for key in ("query", "key", "value")]
            tensors[f"{name}.attn.in_proj_weight"] = np.vstack([w["kernel"].T for w in qkv])
            tensors[f"{name}.attn.in_proj_bias"] = np.hstack([w["bias"] for w in qkv])
            layers = {"attn.out_proj": block["attention"]["out"], "mlp.c_fc": block["up"],
                      "mlp.c_proj": block["down"]}  # fmt: skip
            for key, layer in layers.items():
                tensors[f"{name}.{key}.weight"] = layer["kernel"].T
                tensors[f"{name}.{key}.bias"] = layer["bias"]
            for key, norm in (("ln_1", block["norm1"]), ("ln_2", block["norm2"])):
                tensors[f"{name}.{key}.weight"] = norm["scale"]
                tensors[f"{name}.{key}.bias"] = norm["bias"]
    vision, text = params["vision"], params["text"]
    norms = {"visual.ln_pre": vision["norm_pre"], "visual.ln_post": vision["norm_post"],
             "ln_final": text["norm_post"]}  # fmt: skip
    for key, norm in norms.items():
        tensors[f"{key}.weight"], tensors[f"{key}.bias"] = norm["scale"], norm["bias"]
    tensors["visual.class_embedding"] = vision["class_embedding"]
    kernel = vision["patch_embedding"]["kernel"].reshape(4, 4, 3, 24)
    tensors["visual.conv1.weight"] = jnp.moveaxis(kernel, (3, 2), (0, 1))
    tensors["visual.proj"] = vision["projection"]["kernel"]
    tensors["token_embedding.weight"] = text["token_embedding"]["embedding"]
    tensors["text_projection"] = text["projection"]["kernel"]
    return {key: np.array(value, order="C") for key, value in tensors.items()}


@pytest.fixture
def folder(tmp_path: Path, config: clip.CLIPConfig, params: Any) -> Path:
    clip.save(tmp_path / "clip", config, params)
    return tmp_path / "clip"


@pytest.mark.parametrize("name", ["", *HUGGING_FACE])
def test_hugging_face_reference(reference: Path, name: str) -> None:
    golden = np.load(reference / "clip/hf_openai_style/golden.npz")
    with pytest.warns(UserWarning, match=r"No .*preprocessor_config\.json says"):
        config, params = clip.load(reference / "clip/hf_openai_style" / name)
    pixel_values = golden["pixel_values_nchw_normalised"].transpose(0, 2, 3, 1)
    images = jax.jit(partial(clip.embed_images, config))(params, pixel_values)
    texts = jax.jit(partial(clip.embed_tokens, config))(params, golden["input_ids"].astype(int))
    assert error(images, golden["image_features_f64"]) < TOLERANCES["embedding"]
    assert error(texts, golden["text_features"]) < TOLERANCES["embedding"]


@pytest.mark.parametrize("name", OPENAI)
def test_openai_reference(reference: Path, name: str) -> None:
    golden = np.load(reference / "clip/tiny_vit32/golden.npz")
    config, params = clip.load(reference / "clip/tiny_vit32" / name)
    images = golden["images_nchw_01"].transpose(0, 2, 3, 1)
    cotangent = golden["cotangent_of_normalised_embed"]
    mean, std = (np.array(values, ndmin=4) for values in (config.pixel_mean, config.pixel_std))

    @jax.jit
    @partial(jax.value_and_grad, argnums=1, has_aux=True)
    def score(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        embeddings = clip.embed_images(config, params, (images - mean) / std)
        unit = embeddings / jnp.linalg.norm(embeddings, axis=1, keepdims=True)
        return jnp.sum(unit * cotangent), embeddings

    (_, embeddings), gradient = score(params, images)
    texts = jax.jit(partial(clip.embed_tokens, config))(params, golden["tokens"].astype(int))
    desired = golden["grad_images"].transpose(0, 2, 3, 1)
    assert error(embeddings, golden["image_embed_f64"]) < TOLERANCES["embedding"]
    assert error(texts, golden["text_embed_f64"]) < TOLERANCES["embedding"]
    assert error(gradient, desired) < TOLERANCES["gradient"]


def test_round_trip(folder: Path, config: clip.CLIPConfig, params: Any) -> None:
    read_config, read_params = clip.load(folder)
    assert read_config == config
    same(read_params, params)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]


def test_flax_file(folder: Path, config: clip.CLIPConfig, params: Any) -> None:
    leaves = traverse_util.flatten_dict(params, sep="/")
    tensors = {row.source: np.array(leaves[row.target]) for row in hugging_face(config, flax=True)}
    key = "vision_model.embeddings.patch_embedding.kernel"
    tensors[key] = tensors[key].reshape(4, 4, 3, 24)
    tree = traverse_util.unflatten_dict(tensors, sep=".")
    (folder / "model.safetensors").unlink()
    (folder / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    same(clip.load(folder)[1], params)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_openai_layout(tmp_path: Path, config: clip.CLIPConfig, params: Any, dtype: Any) -> None:
    tensors = {key: value.astype(dtype) for key, value in to_openai(params).items()}
    tensors["input_resolution"] = np.array(16)  # OpenAI's files hold such constants
    save_file(tensors, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP))
    (tmp_path / "config.json").write_text('{"architecture": "of timm"}')
    (tmp_path / "model.safetensors").write_bytes(b"of timm")
    with pytest.warns(UserWarning, match=r"No .*open_clip_config\.json says"):
        read_config, read_params = clip.load(tmp_path)
    assert read_config.vision.hidden_act == "gelu"
    assert read_config.vision.heads == config.vision.heads
    assert {leaf.dtype for leaf in jax.tree.leaves(read_params)} == {np.dtype(np.float32)}
    same(read_params, jax.tree.map(lambda leaf: leaf.astype(dtype).astype(np.float32), params))


def test_a_guessed_activation_is_told(tmp_path: Path, params: Any) -> None:
    save_file(to_openai(params), tmp_path / "weights.safetensors")
    with (
        pytest.warns(UserWarning, match=r"quick_gelu.*open_clip_config\.json"),
        pytest.raises(CheckpointError, match="no CLIP known here"),  # no head of 64
    ):
        clip.load(tmp_path / "weights.safetensors")


def test_all_failures_are_told_together(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["text_model.embeddings.position_ids"] = np.arange(7)  # ignored
    tensors["other.weight"] = tensors.pop("visual_projection.weight")
    bias = "text_model.final_layer_norm.bias"
    tensors[bias] = np.zeros(5, np.float32)
    patches = "vision_model.embeddings.patch_embedding.weight"
    tensors[patches] = np.zeros((24, 48), np.float32)
    scale = "vision_model.post_layernorm.weight"
    tensors[scale] = np.zeros(24, np.int64)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        clip.load(folder)
    problems = str(caught.value).split("does not fit its config: ")[1].split("; ")
    assert len(problems) == 5
    for part in ("visual_projection.weight is missing", "other.weight is unknown"):
        assert any(part in problem for problem in problems)
    for part in (f"{bias} of shape (5,)", f"{patches} of shape (24, 48)", scale):
        assert any(problem.startswith(part) for problem in problems)


def test_long_lists_of_failures_are_cut(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 9
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"block7|layers\.2.*; and \d+ more: take"):
        clip.load(folder)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff", "not JSON"),
        (b'{"model_type": "siglip", "text_config": {}}', "siglip"),
        (b'{"text_config": {"hidden_size": "16"}}', "no CLIP known"),
        (b'{"vision_config": {"num_attention_heads": 0}}', "no CLIP known"),
        (b'{"vision_config": {"num_hidden_layers": 1000000}}', "more layers"),
        (b'{"vision_config": 5}', "no CLIP known"),
        (b'{"vision": {}}', "holds no CLIP"),
    ],
)
def test_configs_that_are_none(folder: Path, content: bytes, reason: str) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        clip.load(folder)


def test_weights_without_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        clip.load(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds no CLIP"):
        clip.load(folder)


def test_resnet_is_refused(tmp_path: Path) -> None:
    names = ("visual.conv1.weight", "visual.layer1.0.conv1.weight")
    save_file({name: np.zeros((8, 3, 3, 3)) for name in names}, tmp_path / "RN50.safetensors")
    with pytest.raises(CheckpointError, match="a CLIP with a ResNet: give a CLIP such as"):
        clip.load(tmp_path / "RN50.safetensors")


def test_hub(folder: Path, tmp_path: Path, params: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, asked = tmp_path / "cache", []
    cache.mkdir()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    def snapshot_download(hub_id: str, *, allow_patterns: list[str]) -> str:
        assert hub_id == "someone/clip"
        asked.append(allow_patterns[-1])
        for pattern in allow_patterns:
            for path in folder.glob(pattern):
                shutil.copy(path, cache)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    same(clip.load("someone/clip")[1], params)
    assert asked[1:] == ["model.safetensors", "model.fp16.safetensors", "pytorch_model.bin"]


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"nobody/nothing is not a path.*pass the folder"):
        clip.load("nobody/nothing")
    with pytest.raises(CheckpointError, match="check the path"):
        clip.load("no such thing")


def processor(**options: Any) -> dict[str, Any]:
    """What transformers 5 saves beside a CLIP."""
    mean_and_std = {"image_mean": [0.5, 0.25, 0.5], "image_std": [0.5, 0.5, 0.25]}
    return {"image_processor": mean_and_std | options, "processor_class": "CLIPProcessor"}


@pytest.mark.parametrize(
    ("options", "mean", "std"),
    [
        ({}, (0.5, 0.25, 0.5), (0.5, 0.5, 0.25)),
        ({"do_normalize": False}, (0, 0, 0), (1, 1, 1)),
        ({"rescale_factor": 1 / 127.5}, (0.25, 0.125, 0.25), (0.25, 0.25, 0.125)),
    ],
)
def test_a_folder_of_transformers_5(
    folder: Path, options: Any, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps(processor(**options)))
    config, _ = clip.load(folder)
    np.testing.assert_allclose(config.pixel_mean, mean)
    np.testing.assert_allclose(config.pixel_std, std)


def test_the_newer_file_prevails_as_in_transformers(folder: Path) -> None:
    (folder / "processor_config.json").write_text(json.dumps(processor()))
    assert clip.load(folder)[0].pixel_mean == (0.5, 0.25, 0.5)


@pytest.mark.parametrize("content", [None, "{}", '{"image_std": [1, 1, 1]}'])
def test_a_guessed_mean_is_told(folder: Path, config: clip.CLIPConfig, content: str | None) -> None:
    (folder / "preprocessor_config.json").unlink()
    if content:
        (folder / "preprocessor_config.json").write_text(content)
    with pytest.warns(UserWarning, match=r"No .*preprocessor_config\.json says .* put that file"):
        assert clip.load(folder)[0].pixel_mean == clip.CLIPConfig.pixel_mean


@pytest.mark.parametrize(
    "options",
    [
        {"image_mean": [0.5, 0.5]},
        {"image_mean": 0.5},
        {"image_mean": ["0.5", 0.5, 0.5]},
        {"image_mean": [float("nan"), 0.5, 0.5]},
        {"image_std": [0, 0.5, 0.5]},
        {"image_std": [float("inf"), 0.5, 0.5]},
        {"rescale_factor": 0},
    ],
)
def test_pixels_that_are_no_numbers(folder: Path, options: Any) -> None:
    (folder / "processor_config.json").write_text(json.dumps(processor(**options)))
    with pytest.raises(CheckpointError, match=r"no CLIP known here, its (image|rescale)"):
        clip.load(folder)


@pytest.mark.parametrize(
    ("wrapper", "kind"),
    [("state_dict.module.", "hugging face"), ("model._orig_mod.", "openai"), ("", "openai, text")],
)
def test_training_checkpoints(
    folder: Path, tmp_path: Path, params: Any, wrapper: str, kind: str
) -> None:
    if kind == "hugging face":
        tensors = load_file(folder / "model.safetensors")
    else:
        (folder / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP | {"preprocess_cfg": {
            "mean": [0.5] * 3, "std": [0.5] * 3}}))  # fmt: skip
        tensors = to_openai(params)
        tensors["logit_bias"] = np.array(-10, np.float32)  # of the loss alone
        if kind.endswith("text"):
            tensors = {
                name if name.startswith(("visual.", "logit")) else f"text.{name}": tensor
                for name, tensor in tensors.items()
            }
    tensors = {f"{wrapper}{name}": tensor for name, tensor in tensors.items()}
    if wrapper:
        tensors["optimizer.lr"] = np.ones(1)
    save_file(tensors, folder / "training.safetensors")
    same(clip.load(folder / "training.safetensors")[1], params)


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "model.safetensors.index.json"])
def test_other_names_of_weights(folder: Path, params: Any, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if name.endswith(".index.json"):
        half = len(tensors) // 2
        parts = [dict(list(tensors.items())[:half]), dict(list(tensors.items())[half:])]
        names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
        for part, shard in zip(parts, names, strict=True):
            save_file(part, folder / shard)
        pairs = zip(parts, names, strict=True)
        weight_map = {key: shard for part, shard in pairs for key in part}
        (folder / name).write_text(json.dumps({"weight_map": weight_map}))
        same(clip.load(folder)[1], params)
    else:
        save_file({key: x.astype(np.float16) for key, x in tensors.items()}, folder / name)
        rounded = jax.tree.map(lambda leaf: leaf.astype(np.float16).astype(np.float32), params)
        same(clip.load(folder)[1], rounded)


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["vision_model.head.probe", "logit_bias"], "a SigLIP, .* with the config.json"),
        (["visual.trunk.attn_pool.latent"], "a SigLIP in the layout of open_clip, .* give a CLIP"),
        (["visual.blocks.0.norm1.weight", "visual.pos_embed"], "an EVA-CLIP: give a CLIP"),
        (["visual.trunk.cls_token"], "such as EVA: give a CLIP"),
        (["teacher.backbone.cls_token", "teacher.backbone.blocks.0.attn.qkv.weight"], "DINO: give"),
        (["g_ema.synthesis.b4.const"], "a StyleGAN2, which is no encoder: give it as generator"),
    ],
)
def test_other_networks_are_named(tmp_path: Path, names: list[str], what: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file({name: np.zeros(1, np.float32) for name in names}, path)
    with pytest.raises(CheckpointError, match=f"holds .*{what}"):
        clip.load(path)


def test_a_folder_of_another_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    with pytest.raises(
        CheckpointError, match="holds no CLIP or SigLIP but 'dinov2': give a folder with"
    ):
        clip.load(tmp_path)


def test_loaded_weights_are_no_views_of_their_file(folder: Path, params: Any) -> None:
    _, loaded = clip.load(folder)
    with open(folder / "model.safetensors", "r+b") as file:
        file.truncate(0)  # what is mapped would now end the process
    same(loaded, params)
