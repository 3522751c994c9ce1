"""A CLIP's tokenizer beside its weights, held to parts that cost no more than their text."""

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers

from qdgs_jax import files
from qdgs_jax.errors import CheckpointError
from qdgs_jax.models.checkpoint import explained, read_json
from qdgs_jax.models.pickles import UnreadableError

FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")

MAX_FILE = 16 << 20  # bytes; OpenAI's has 4 MB
MAX_PARTS = 64
MAX_GROWTH = 1 << 12
"""By how much all parts together may lengthen a text; OpenAI's count as 216."""
MAX_ADDED = 1 << 12  # tokens beside the vocabulary
MAX_PATTERN = 1 << 10  # characters of a regular expression

_MODELS = ("BPE", "WordLevel", "WordPiece")
_LISTS = {"normalizers", "pretokenizers", "processors"}
_GROWTH = {
    # normalizers
    "BertNormalizer": 12, "Lowercase": 3, "NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Strip": 1,
    "StripAccents": 1,
    # pre-tokenizers
    "BertPreTokenizer": 1, "ByteLevel": 4, "CharDelimiterSplit": 1, "Digits": 1, "Metaspace": 4,
    "Punctuation": 1, "Split": 1, "Whitespace": 1, "WhitespaceSplit": 1,
    # post-processors
    "BertProcessing": 3, "RobertaProcessing": 3,
}  # fmt: skip
"""Parts that are read -> how often they lengthen a text at most; others are computed or refused."""


def is_in(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return (folder / "tokenizer.json").exists() or (
        (folder / "vocab.json").exists() and (folder / "merges.txt").exists()
    )


def load(folder: Path, vocabulary_size: int) -> tuple[tokenizers.Tokenizer, int | None]:
    """A folder's tokenizer, which neither cuts nor pads.

    Args:
        folder: With tokenizer.json, or with vocab.json and merges.txt.
        vocabulary_size: Of the encoder.

    Returns:
        The tokenizer, and the id that pads texts, where the folder says so.

    Raises:
        CheckpointError: It is damaged, hostile, or of another encoder.
    """
    remedy = "put the tokenizer of these weights there"
    values: dict[str, Any] = {}
    if (folder / "tokenizer.json").exists():
        values = read_json(folder / "tokenizer.json", MAX_FILE)
        with explained(folder / "tokenizer.json", remedy), quiet():
            tokenizer = _from_parts(values, vocabulary_size)
    else:
        vocabulary = read_json(folder / "vocab.json", MAX_FILE)
        with explained(folder / "merges.txt", remedy), quiet():
            with files.open_regular(folder / "merges.txt", MAX_FILE) as file:
                merges = file.read(MAX_FILE).decode("utf-8").splitlines()
            _check_sizes(vocabulary, merges, vocabulary_size)
            tokenizer = _from_merges(vocabulary, merges)
    size = tokenizer.get_vocab_size()
    if size != vocabulary_size:
        raise CheckpointError(
            f"The tokenizer in {folder} has {size} tokens, but the encoder knows "
            f"{vocabulary_size}: {remedy}."
        )
    return tokenizer, _padding(folder, tokenizer, values)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what Rust writes to the terminal about its panics, which become exceptions."""
    try:
        terminal, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # there is no terminal
        yield
        return
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nothing)


def _from_parts(values: dict[str, Any], vocabulary_size: int) -> tokenizers.Tokenizer:
    """What a tokenizer.json describes."""
    model = values["model"]
    if model.get("type", "BPE") not in _MODELS:
        raise UnreadableError(f"its model is none of {', '.join(_MODELS)}")
    _check_sizes(model["vocab"], model.get("merges") or [], vocabulary_size)
    added = values.get("added_tokens") or []
    if len(added) > MAX_ADDED:
        raise UnreadableError(f"it adds more than {MAX_ADDED} tokens")
    growth = [
        _growth(part)
        for key in ("normalizer", "pre_tokenizer", "post_processor")
        for part in _parts(values.get(key))
    ]
    if len(growth) > MAX_PARTS or math.prod(growth) > MAX_GROWTH:
        raise UnreadableError("its parts lengthen texts without bounds")
    kept = ("version", "normalizer", "pre_tokenizer", "post_processor")
    parts = {key: values.get(key) for key in kept}
    # Dropout is for training; one without it has the text's own tokens.
    own = {**model, "dropout": None} if "merges" in model else model
    unused = {"truncation": None, "padding": None, "decoder": None}
    return tokenizers.Tokenizer.from_str(
        json.dumps({**unused, **parts, "added_tokens": added, "model": own})
    )


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    """A part of a tokenizer, or the parts of a sequence of parts."""
    if part is None:
        return
    lists = [value for key, value in part.items() if key in _LISTS]
    if part["type"] == "Sequence" and len(lists) == 1:
        for inner in lists[0]:
            yield from _parts(inner)
    else:
        yield part


def _growth(part: dict[str, Any]) -> int:
    """How often a part lengthens a text at most."""
    pattern = part.get("pattern")
    if isinstance(pattern, dict) and len(str(pattern.get("Regex", ""))) > MAX_PATTERN:
        raise UnreadableError("one of its regular expressions is too long")
    kind = part["type"]
    match kind:
        case "Replace":
            return 1 + len(part["content"])
        case "Prepend":
            return 1 + len(part["prepend"])
        case "TemplateProcessing":
            ids = [len(token["ids"]) for token in part["special_tokens"].values()]
            return len(part["single"]) * max(1, *ids, 1)
    if kind not in _GROWTH:
        raise UnreadableError(f"its part {ascii(kind)[:40]} is none that a CLIP's tokenizer has")
    return _GROWTH[kind]


def _check_sizes(vocabulary: Any, merges: Any, vocabulary_size: int) -> None:
    if not isinstance(vocabulary, dict) or not isinstance(merges, list):
        raise UnreadableError("its vocabulary is malformed")
    if len(vocabulary) > vocabulary_size:
        raise UnreadableError(
            f"it has {len(vocabulary)} tokens, but the encoder knows {vocabulary_size}"
        )
    if len(merges) > len(vocabulary) + 1:  # the first line is a comment
        raise UnreadableError("it has more merges than tokens")


def _from_merges(vocabulary: dict[str, Any], lines: list[str]) -> tokenizers.Tokenizer:
    """What OpenAI's vocab.json and merges.txt describe."""
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    with _quiet_transformers():
        from transformers import CLIPTokenizer

        return CLIPTokenizer(vocab=vocabulary, merges=merges).backend_tokenizer


def _padding(folder: Path, tokenizer: tokenizers.Tokenizer, values: dict[str, Any]) -> int | None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            token = read_json(folder / name).get("pad_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str) and tokenizer.token_to_id(token) is not None:
                return tokenizer.token_to_id(token)
    padding = values.get("padding")
    padding = padding.get("pad_id") if isinstance(padding, dict) else None
    return (
        padding if type(padding) is int and padding in range(tokenizer.get_vocab_size()) else None
    )


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Suppresses its notice, on import, that PyTorch is missing; nothing here needs PyTorch."""
    name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
