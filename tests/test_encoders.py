"""Encoders from folders: weights, tokenizers, and clear errors if files are missing."""

import base64
import dataclasses
import json
import os
import subprocess
import sys
import types
from pathlib import Path

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
SIGLIP = Path(__file__).parent / "models/siglip/tiny"
WEIGHTS = ("config.json", "model.safetensors", "preprocessor_config.json")


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


def own(**changes):
    """An encoder that reads colours, and words by their length; norms are not 1."""
    made = encoders.Encoder(
        "mine", "", 4,
        embed_images=lambda params, images: params * images.mean((1, 2)),
        embed_tokens=lambda params, tokens: np.asarray(tokens) * np.ones((1, 3)),
        tokenize=lambda texts: np.array([[len(text)] for text in texts]),
    )  # fmt: skip
    return dataclasses.replace(made, **changes), jnp.float32(3)


def test_a_function_makes_an_encoder(monkeypatch):
    module = types.ModuleType("my_models")
    module.make = own
    monkeypatch.setitem(sys.modules, "my_models", module)
    with pytest.raises(ConfigError, match="The encoder 'my_models:make' is code from outside"):
        encoders.load("my_models:make")
    with pytest.raises(ConfigError, match=r"decides its precision itself: leave .* out"):
        encoders.load("my_models:make", precision="bf16", allow_code=True)
    encoder, params = encoders.load("my_models:make", allow_code=True, gradients=True)
    images = jnp.ones((2, 4, 4, 3)) * jnp.array([0, 0.3, 0.4])[None, None, None]
    np.testing.assert_allclose(encoder.embed_images(params, images)[1], [0, 0.6, 0.8], rtol=1e-6)
    texts = encoder.embed_tokens(params, encoder.tokenize(["good", "very bad"]))
    np.testing.assert_allclose(texts, np.full((2, 3), 3**-0.5), rtol=1e-6)
    assert len(encoder.sha256) == 64
    assert encoder.unknown_words("good") == []


def fail(*_):
    raise OSError("no such thing")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image_size": 0}, "no positive whole number: correct it"),
        ({"embed_images": lambda params, x: x}, r"`embed_images\(.*\)` returns .*: let it return "),
        ({"embed_images": fail}, r"`embed_images\(.*\)` fails \(OSError: no such thing\): mend"),
        ({"tokenize": fail}, r"`tokenize\(texts\)` fails \(OSError: no such thing\): mend it"),
        ({"embed_tokens": fail}, r"`embed_tokens\(.*\)` fails \(OSError: no such thing\): mend it"),
        (
            {"embed_tokens": lambda params, tokens: tokens},
            r"returns \(2, 1\) for 2 texts: let it return \[2, 3\], as long",
        ),
    ],
)
def test_a_mistake_in_an_own_encoder_is_a_sentence(changes, sentence):
    def embed() -> None:
        encoder, params = encoders.checked(*own(**changes))
        encoder.embed_tokens(params, encoder.tokenize(["good", "bad"]))

    with pytest.raises(ConfigError, match=f"^The encoder 'mine': .*{sentence}"):
        embed()


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
        ("shapes-clp", r"no encoder 'shapes-clp' \(did you mean 'shapes-clip'\?\).* or a"),
        ("no/such/folder", "no encoder 'no/such/folder': give the path"),
    ],
)
def test_a_wrong_name_is_a_config_error(model, message):
    with pytest.raises(ConfigError, match=message):
        encoders.load(model)


def test_a_missing_tokenizer_is_told(byte_pair_folder, tmp_path):
    for name in WEIGHTS:
        (tmp_path / name).symlink_to(byte_pair_folder / name)
    encoder, _ = encoders.load(str(tmp_path))
    with pytest.raises(CheckpointError, match="has no tokenizer: put"):
        encoder.tokenize(["red"])


def test_a_damaged_tokenizer_is_told(folder, tmp_path):
    for name in (*WEIGHTS, "tokenizer_config.json"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "tokenizer.json").write_text("{")
    encoder, _ = encoders.load(str(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"tokenizer\.json cannot be read, it is not JSON: fetch"
    ):
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
    for name in WEIGHTS:
        (tmp_path / name).symlink_to(folder / name)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).symlink_to(byte_pair_folder / name)
    encoder, _ = encoders.load(str(tmp_path))
    with pytest.raises(CheckpointError, match="has 516 tokens, but the encoder knows 9"):
        encoder.tokenize(["red"])


@pytest.mark.parametrize(("kind", "imported"), [("folder", False), ("byte_pair_folder", True)])
def test_transformers_is_imported_late_and_quietly(kind, imported, request):
    program = f"""
import sys
from qdgs_jax import encoders, files
encoder, _ = encoders.load(sys.argv[1])
assert "transformers" not in sys.modules
encoder.tokenize(["a red shape"])
assert ("transformers" in sys.modules) is {imported}
import os
assert "TRANSFORMERS_NO_ADVISORY_WARNINGS" not in os.environ
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRANSFORMERS")}
    result = subprocess.run(
        [sys.executable, "-c", program, request.getfixturevalue(kind)],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.fixture
def changed(folder, tmp_path):
    """Loads the encoder with another tokenizer.json, and tokenizes a text."""

    def change(text="a red shape", **parts):
        for name in (*WEIGHTS, "tokenizer_config.json"):
            (tmp_path / name).symlink_to(folder / name)
        values = json.loads((folder / "tokenizer.json").read_text())
        (tmp_path / "tokenizer.json").write_text(json.dumps({**values, **parts}))
        return encoders.load(str(tmp_path))[0].tokenize([text])

    return change


def replacing(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


def in_sequence(kind, *parts):
    return {"type": "Sequence", kind: list(parts)}


DOUBLED = replacing({"String": "a"}, "aa")
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 30,
    "pair": [{"Sequence": {"id": part, "type_id": 0}} for part in "AB"],
    "special_tokens": {},
}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
LONG_RULES = {
    "type": "Precompiled",
    "precompiled_charsmap": base64.b64encode(bytes(4) + b"x" * 5000 + b"\0").decode(),
}
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"normalizer": in_sequence("normalizers", *[DOUBLED] * 60)}, "without bounds"),
        ({"normalizer": replacing({"Regex": ""}, "x" * 5000)}, "without bounds"),
        ({"normalizer": {"type": "Prepend", "prepend": "x" * 5000}}, "without bounds"),
        ({"normalizer": in_sequence("normalizers", *[{"type": "Strip"}] * 99)}, "without bounds"),
        ({"pre_tokenizer": in_sequence("pretokenizers", *[BYTES] * 40)}, "without bounds"),
        ({"post_processor": in_sequence("processors", *[TEMPLATE] * 4)}, "without bounds"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "damaged"),
        ({"normalizer": LONG_RULES}, "without bounds"),
        ({"normalizer": {"type": "\n" * 99}}, "is none that is known"),
        ({"pre_tokenizer": {**SPLIT, "pattern": {"Regex": "a" * 5000}}}, "too long"),
        ({"pre_tokenizer": {**SPLIT, "pattern": {"Regex": "("}}}, "damaged"),
        ({"pre_tokenizer": {**SPLIT, "pattern": {"Regex": r"(\w+)+$"}}}, "damaged"),  # for ever
        ({"model": {"type": "Rules", "vocab": []}}, "model is none of BPE"),
        ({"model": {"type": "Unigram", "vocab": []}}, "damaged|of another|has 0"),
        ({"model": {"type": "WordLevel", "vocab": {f"{i}": i for i in range(99)}}}, "knows 9"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a"]] * 99}}, "than 4 merges"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 2**32 - 1}}}, "damaged|of another"),
        ({"added_tokens": [{}] * 5000}, "adds more"),
        ({"post_processor": None}, r"does not end texts by token 3: put"),
        ({"model": 3}, "damaged"),
    ],
)  # fmt: skip
def test_a_hostile_tokenizer_is_told(changed, capfd, parts, reason):
    with pytest.raises(CheckpointError, match=reason) as caught:
        changed("a " + "red" * 30 + "!", **parts)
    assert str(caught.value).isprintable()
    assert capfd.readouterr() == ("", "")  # Rust does not write of its panics


def test_padding_and_truncation_of_a_tokenizer_are_left_out(changed):
    padding = {"strategy": {"Fixed": 10**9}, "direction": "Left", "pad_to_multiple_of": None,
               "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}  # fmt: skip
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    ids = changed("a red shape", padding=padding, truncation=truncation)
    np.testing.assert_array_equal(ids, [[2, 4, 5, 7, EOS, 0, 0, 0, 0, 0]])


def test_a_very_long_text_is_not_tokenized(folder):
    encoder, _ = encoders.load(str(folder))
    with pytest.raises(ConfigError, match=r"'red red .* has 40000 characters, but the encoder"):
        encoder.tokenize(["red " * 10_000])


@pytest.mark.parametrize("model", ["a\0b", "~nobody/x", "x" * 100_000, "a\nb", "\ud800"])
def test_a_name_that_is_no_path_is_a_config_error(model):
    with pytest.raises(ConfigError, match="no encoder") as caught:
        encoders.load(model)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_pipes_are_refused_at_once(folder, tmp_path):
    (tmp_path / "a").mkdir()
    for name in WEIGHTS[1:]:
        (tmp_path / "a" / name).symlink_to(folder / name)
    for name in ("a/config.json", "weights"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(CheckpointError, match="a named pipe, not a regular file"):
            encoders.load(str(tmp_path / name.removesuffix("/config.json")))


def test_a_converted_encoder_embeds_alike(folder, tmp_path):
    encoders.convert(str(folder), tmp_path / "converted")
    before, before_params = encoders.load(str(folder))
    after, after_params = encoders.load(str(tmp_path / "converted"))
    ids = after.tokenize(["a red shape"])
    np.testing.assert_array_equal(ids, before.tokenize(["a red shape"]))
    np.testing.assert_array_equal(
        after.embed_tokens(after_params, ids), before.embed_tokens(before_params, ids)
    )


def test_a_siglip_is_an_encoder_too():
    golden = np.load(SIGLIP / "golden.npz")
    encoder, params = encoders.load(str(SIGLIP))
    assert encoder.image_size == 18
    images = golden["images"].astype(np.float32) / 255
    ids = encoder.tokenize([str(text) for text in golden["texts"]])
    np.testing.assert_array_equal(ids, golden["ids"])
    for name, found in (
        ("image_embeddings", jax.jit(encoder.embed_images)(params, images)),
        ("text_embeddings", jax.jit(encoder.embed_tokens)(params, ids)),
    ):
        unit = golden[name] / np.linalg.norm(golden[name], axis=-1, keepdims=True)
        np.testing.assert_allclose(found, unit, atol=1e-5)
    assert encoder.unknown_words("A red, \u4f60\u597d shape!") == ["\u4f60\u597d"]
    with pytest.raises(ConfigError, match="tokens, but the encoder reads 24: shorten"):
        encoder.tokenize(["red " * 24])


def test_a_siglip_without_tokenizer_and_its_conversion(tmp_path):
    for name in WEIGHTS:
        (tmp_path / name).symlink_to(SIGLIP / name)
    encoder, _ = encoders.load(str(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"no tokenizer: put .* its tokenizer\.json or spiece"
    ):
        encoder.tokenize(["red"])
    with pytest.raises(CheckpointError, match="is a SigLIP, not a CLIP"):
        encoders.convert(str(tmp_path), tmp_path / "converted")
