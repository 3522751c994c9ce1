"""Texts become the tokens that SigLIP was trained with, from either file."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from qdgs_jax.errors import CheckpointError
from qdgs_jax.models import siglip

SPIECE = Path(__file__).parent / "tiny/spiece.model"
GEMMA = [
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "\u2581",
    "a",
    "d",
    "e",
    "r",
    "red",
    "re",
    ",",
    "\u2581red",
]


def encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.tokens.encode(text).ids


def test_sentencepiece_as_transformers_reads_it(loaded: Any, golden: Any) -> None:
    config, _ = loaded
    tokenizer = siglip.tokenizer.load(SPIECE.parent, config.vocabulary_size)
    rows = [
        siglip.tokenizer.padded(config, encode(tokenizer, str(text)), tokenizer.padding)
        for text in golden["texts"]
    ]
    np.testing.assert_array_equal(rows, golden["ids"])
    assert len(set(map(len, rows))) == 1
    assert tokenizer.unknown in rows[3]
    assert tokenizer.unknown not in rows[0]


def test_a_tokenizer_json_of_sentencepiece(loaded: Any, golden: Any, tmp_path: Path) -> None:
    """With normalizers and an end of its own, as converters write it."""
    config, _ = loaded
    values = siglip.tokenizer.as_tokenizer_json(SPIECE.read_bytes())
    own = [{"type": "Lowercase"}, *values["normalizer"]["normalizers"]]
    template = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    changes = {
        "normalizer": {"type": "Sequence", "normalizers": own},
        "post_processor": json.loads(template.__getstate__()),
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps({**values, **changes}))
    tokenizer = siglip.tokenizer.load(tmp_path, config.vocabulary_size)
    for text, ids in zip(golden["texts"], golden["ids"], strict=True):
        found = encode(tokenizer, str(text))
        assert found == ids[: len(found)].tolist()


@pytest.fixture
def gemma(tmp_path: Path) -> Path:
    """A tokenizer like that of SigLIP 2, of which the file says what training did not do."""
    merges = [("r", "e"), ("re", "d"), ("\u2581", "red")]
    vocabulary = {token: i for i, token in enumerate(GEMMA)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_siglip_2_has_lowercase_texts_with_an_end_alone(gemma: Path) -> None:
    tokenizer = siglip.tokenizer.load(gemma, len(GEMMA))
    tokens = tokenizer.tokens.encode("A, Red").tokens
    assert tokens == ["a", ",", "\u2581red", "<eos>"]
    assert (tokenizer.padding, tokenizer.unknown) == (0, 3)
    config = siglip.SigLIPConfig(context_length=5, vocabulary_size=len(GEMMA))
    assert siglip.tokenizer.padded(config, [5, 1], 0) == [5, 1, 0, 0, 0]
    with pytest.raises(ValueError, match="has tokens beyond 13"):
        siglip.tokenizer.padded(config, [13, 1], 0)


def test_files_beside_it_name_end_and_padding(gemma: Path) -> None:
    special = {"eos_token": "<bos>", "pad_token": {"content": "<eos>"}}
    (gemma / "tokenizer_config.json").write_text(json.dumps(special))
    tokenizer = siglip.tokenizer.load(gemma, len(GEMMA))
    assert (encode(tokenizer, "a"), tokenizer.padding) == ([5, 2], 1)


def test_a_tokenizer_without_an_end(gemma: Path) -> None:
    path = gemma / "tokenizer.json"
    path.write_text(path.read_text().replace("<eos>", "<end>"))
    with pytest.raises(CheckpointError, match="no eos_token: put its tokenizer_config"):
        siglip.tokenizer.load(gemma, len(GEMMA))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"type": "WordLevel", "vocab": {}}, "none of Unigram, BPE"),
        ({"type": "Unigram", "vocab": [["a", 0]] * 99, "unk_id": 0}, "has 99 tokens, but"),
        ({"type": "Unigram", "vocab": [["a", None]], "unk_id": 0}, "damaged: put the tokenizer"),
    ],
)
def test_models_that_are_refused(gemma: Path, model: Any, reason: str) -> None:
    values = json.loads((gemma / "tokenizer.json").read_text())
    (gemma / "tokenizer.json").write_text(json.dumps({**values, "model": model}))
    with pytest.raises(CheckpointError, match=reason):
        siglip.tokenizer.load(gemma, len(GEMMA))


def test_every_damaged_sentencepiece_is_told(loaded: Any, golden: Any, tmp_path: Path) -> None:
    """Mutations are refused in one sentence, or are tokenizers of the same size."""
    size, content = loaded[0].vocabulary_size, SPIECE.read_bytes()
    random, path = np.random.default_rng(0), tmp_path / "spiece.model"
    refused = accepted = 0
    shutil.copy(SPIECE, path)
    for _ in range(100):
        data = bytearray(content)
        for _ in range(random.integers(1, 4)):
            data[random.integers(min(len(data), 400))] = random.integers(256)
        path.write_bytes(data[: random.integers(len(data))] if random.integers(2) else data)
        try:
            tokenizer = siglip.tokenizer.load(tmp_path, size)
        except CheckpointError as error:
            refused += "\n" not in str(error)
        else:
            accepted += tokenizer.tokens.get_vocab_size() == size
    assert refused + accepted == 100
    assert refused > 50
