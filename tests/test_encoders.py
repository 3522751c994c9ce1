"""Encoders from folders: weights, tokenizers, and clear errors if files are missing."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from qdgs_jax import encoders, files
from qdgs_jax.errors import CheckpointError, ConfigError
from qdgs_jax.models import clip

TOWER = clip.TowerConfig(width=16, layers=1, heads=2, mlp_width=32)
WORDS = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", "a", "red", "blue", "shape", "."]
EOS = WORDS.index("[EOS]")


def make_config(vocabulary_size, eos_token_id):
    return clip.CLIPConfig(
        vision=TOWER,
        text=TOWER,
        embedding_size=8,
        image_size=8,
        patch_size=4,
        context_length=10,
        vocabulary_size=vocabulary_size,
        eos_token_id=eos_token_id,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny encoder that knows whole words."""
    folder = tmp_path_factory.mktemp("words")
    config = make_config(len(WORDS), EOS)
    clip.save(folder, config, clip.init(config, jax.random.key(0)))
    tokenizer = tokenizers.Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", EOS)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[EOS]"}
    tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return folder


@pytest.fixture(scope="module")
def byte_pair_folder(tmp_path_factory):
    """A tiny encoder with the two vocabulary files that OpenAI distributes."""
    folder = tmp_path_factory.mktemp("pairs")
    symbols = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = [*sorted(symbols), *(symbol + "</w>" for symbol in sorted(symbols))]
    vocabulary += ["re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({key: i for i, key in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    config = make_config(len(vocabulary), 2)
    clip.save(folder, config, clip.init(config, jax.random.key(0)))
    return folder


def test_embeddings_have_unit_norm_and_follow_clip(folder):
    encoder, params = encoders.load(str(folder))
    config, _ = clip.load(folder)
    assert encoder.image_size == 8
    assert encoder.sha256 == files.sha256(folder / "model.safetensors")

    images = jax.random.uniform(jax.random.key(0), (3, 8, 8, 3))
    embeddings = jax.jit(encoder.embed_images)(params, images)
    mean, std = (np.array(values, ndmin=4) for values in (config.pixel_mean, config.pixel_std))
    pixels = (images - mean) / std
    expected = jax.jit(clip.embed_images, static_argnums=0)(config, params, pixels)
    expected = expected / np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(embeddings, expected, atol=1e-6)

    texts = jax.jit(encoder.embed_tokens)(
        params, encoder.tokenize(["a red shape", "a blue shape."])
    )
    np.testing.assert_allclose(jnp.linalg.norm(texts, axis=-1), [1, 1], rtol=1e-6)
    assert np.abs(texts[0] - texts[1]).max() > 1e-3


def test_bfloat16_is_coarser_and_float32_comes_out(folder):
    images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
    exact, coarse = (
        jax.jit(encoder.embed_images)(params, images)
        for encoder, params in (
            encoders.load(str(folder), precision=precision) for precision in ("highest", "bf16")
        )
    )
    assert coarse.dtype == jnp.float32
    assert 0 < np.abs(exact - coarse).max() < 0.05


def test_words_are_tokenized_and_unknown_ones_named(folder):
    encoder, _ = encoders.load(str(folder))
    ids = encoder.tokenize(["A red shape.", "blue"])
    assert ids.dtype == jnp.int32
    np.testing.assert_array_equal(
        ids, [[2, 4, 5, 7, 8, EOS, 0, 0, 0, 0], [2, 6, EOS, 0, 0, 0, 0, 0, 0, 0]]
    )
    assert encoder.unknown_words("A red zebra, or a Unicorn.") == ["zebra", ",", "or", "Unicorn"]
    assert encoder.unknown_words("a blue shape") == []


def test_byte_pairs_know_every_word(byte_pair_folder):
    encoder, params = encoders.load(str(byte_pair_folder))
    ids = encoder.tokenize(["Red é", "x"])
    start, end, red = 514, 515, 513
    assert ids.shape == (2, 10)
    assert [ids[0, 0], ids[0, 1], ids[0, 4], ids[1, 2]] == [start, red, end, end]
    assert encoder.unknown_words("Red zebra 你") == []
    assert jax.eval_shape(encoder.embed_tokens, params, ids).shape == (2, 8)


@pytest.mark.parametrize("kind", ["folder", "byte_pair_folder"])
def test_a_long_text_is_refused_not_cut(kind, request):
    encoder, _ = encoders.load(str(request.getfixturevalue(kind)))
    encoder.tokenize(["red " * 8])
    with pytest.raises(ConfigError, match="has 11 tokens, but the encoder reads 10: shorten"):
        encoder.tokenize(["red", "red " * 9])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("shapes-clp", r"no encoder 'shapes-clp' \(did you mean 'shapes-clip'\?\).* shapes-clip\."),
        ("no/such/folder", "no encoder 'no/such/folder': give the path"),
    ],
)
def test_a_wrong_name_is_a_config_error(model, message):
    with pytest.raises(ConfigError, match=message):
        encoders.load(model)


def test_a_missing_tokenizer_is_told(byte_pair_folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(byte_pair_folder / name)
    encoder, _ = encoders.load(str(tmp_path))
    with pytest.raises(CheckpointError, match="has no tokenizer: put"):
        encoder.tokenize(["red"])


def test_a_damaged_tokenizer_is_told(folder, tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "tokenizer.json").write_text("{")
    encoder, _ = encoders.load(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"cannot be read .*: fetch its files again"):
        encoder.tokenize(["red"])


@pytest.fixture
def openai_sized(tmp_path):
    """Weights of one layer with OpenAI's vocabulary, and no tokenizer."""
    config = make_config(clip.CLIPConfig.vocabulary_size, 2)
    shapes = jax.eval_shape(lambda: clip.init(config, jax.random.key(0)))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    clip.save(tmp_path, config, zeros)
    return encoders.load(str(tmp_path))[0]


def test_openais_tokenizer_is_fetched_where_it_may_be_meant(
    openai_sized, byte_pair_folder, monkeypatch
):
    asked = []

    def download(repository, **_):
        asked.append(repository)
        return str(byte_pair_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(CheckpointError, match="has 516 tokens, but the encoder knows 49408"):
        openai_sized.tokenize(["red"])
    assert asked == ["openai/clip-vit-base-patch32"]


def test_openais_tokenizer_offline_is_one_sentence(openai_sized, monkeypatch):
    def download(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(CheckpointError, match="patch32 cannot be reached: put vocab"):
        openai_sized.tokenize(["red"])


def test_a_tokenizer_of_other_weights_is_told(folder, byte_pair_folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(folder / name)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).symlink_to(byte_pair_folder / name)
    encoder, _ = encoders.load(str(tmp_path))
    with pytest.raises(CheckpointError, match="has 516 tokens, but the encoder knows 9"):
        encoder.tokenize(["red"])


def test_transformers_is_imported_late_and_quietly(folder):
    program = """
import sys
from qdgs_jax import encoders, files
encoder, _ = encoders.load(sys.argv[1])
assert "transformers" not in sys.modules
encoder.tokenize(["a red shape"])
import os
assert "TRANSFORMERS_NO_ADVISORY_WARNINGS" not in os.environ
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRANSFORMERS")}
    result = subprocess.run(
        [sys.executable, "-c", program, folder], env=environment, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_converted_encoder_embeds_alike(folder, tmp_path):
    encoders.convert(str(folder), tmp_path / "converted")
    before, before_params = encoders.load(str(folder))
    after, after_params = encoders.load(str(tmp_path / "converted"))
    ids = after.tokenize(["a red shape"])
    np.testing.assert_array_equal(ids, before.tokenize(["a red shape"]))
    np.testing.assert_array_equal(
        after.embed_tokens(after_params, ids), before.embed_tokens(before_params, ids)
    )
