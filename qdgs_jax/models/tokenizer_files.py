"""An encoder's tokenizer beside its weights, held to parts that cost no more than their text."""

import base64
import contextlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from qdgs_jax.errors import CheckpointError
from qdgs_jax.models.checkpoint import read_json
from qdgs_jax.models.pickles import UnreadableError

REMEDY = "put the tokenizer of these weights there"

MAX_FILE = 40 << 20  # bytes; OpenAI's has 4 MB, that of SigLIP 2 has 34
MAX_PARTS = 64
MAX_GROWTH = 1 << 12
"""By how much all parts together may lengthen a text; OpenAI's count as 216."""
MAX_ADDED = 1 << 12  # tokens beside the vocabulary
MAX_MERGES = 4  # for each token; SigLIP 2 has 2.3
MAX_PATTERN = 1 << 10  # characters of a regular expression

_MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")
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


class Tokenizer(NamedTuple):
    """A tokenizer, which neither cuts nor pads, and ids of two of its tokens where it has them."""

    tokens: tokenizers.Tokenizer
    padding: int | None
    unknown: int | None  # of all words and letters outside of the vocabulary


def from_parts(
    values: dict[str, Any], vocabulary_size: int, *, first: Sequence[dict[str, Any]] = ()
) -> tokenizers.Tokenizer:
    """What a tokenizer.json describes.

    Args:
        values: its content.
        vocabulary_size: of the encoder.
        first: normalizers that a text passes before those of the file.

    Raises:
        UnreadableError: a part is unknown, or costs too much.
        Exception: any, where the content is malformed.
    """
    model = values["model"]
    if model.get("type", "BPE") not in _MODELS:
        raise UnreadableError(f"its model is none of {', '.join(_MODELS)}")
    check_sizes(model["vocab"], model.get("merges") or [], vocabulary_size)
    added = values.get("added_tokens") or []
    if len(added) > MAX_ADDED:
        raise UnreadableError(f"it adds more than {MAX_ADDED} tokens")
    keys = ("normalizer", "pre_tokenizer", "post_processor")
    growth = [_growth(part) for key in keys for part in _parts(values.get(key))]
    if len(growth) > MAX_PARTS or math.prod(growth) > MAX_GROWTH:
        raise UnreadableError("its parts lengthen texts without bounds")
    parts = {key: values.get(key) for key in ("version", *keys)}
    if first:
        normalizers = [*first, *_parts(values.get("normalizer"))]
        parts["normalizer"] = {"type": "Sequence", "normalizers": normalizers}
    # Dropout is for training; one without it has the text's own tokens.
    own = {**model, "dropout": None} if "merges" in model else model
    unused = {"truncation": None, "padding": None, "decoder": None}
    return tokenizers.Tokenizer.from_str(
        json.dumps({**unused, **parts, "added_tokens": added, "model": own})
    )


def check_sizes(vocabulary: Any, merges: Any, vocabulary_size: int) -> None:
    """Raises UnreadableError if an encoder of this vocabulary cannot have such a tokenizer."""
    if not isinstance(vocabulary, dict | list) or not isinstance(merges, list):
        raise UnreadableError("its vocabulary is malformed")
    if len(vocabulary) > vocabulary_size:
        raise UnreadableError(
            f"it has {len(vocabulary)} tokens, but the encoder knows {vocabulary_size}"
        )
    if len(merges) > MAX_MERGES * len(vocabulary) + 1:  # the first line is a comment
        raise UnreadableError(f"it has more than {MAX_MERGES} merges for each token")


def checked_size(tokens: tokenizers.Tokenizer, folder: Path, vocabulary_size: int) -> None:
    """Raises CheckpointError if a tokenizer is not that of an encoder of this vocabulary."""
    size = tokens.get_vocab_size()
    if size != vocabulary_size:
        raise CheckpointError(
            f"The tokenizer in {folder} has {size} tokens, but the encoder knows "
            f"{vocabulary_size}: {REMEDY}."
        )


def special_id(folder: Path, tokens: tokenizers.Tokenizer, name: str) -> int | None:
    """The id of the token that files beside a tokenizer name as, for example, "pad_token"."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / file).exists():
            token = read_json(folder / file).get(name)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str) and tokens.token_to_id(token) is not None:
                return tokens.token_to_id(token)
    return None


def unknown_id(tokens: tokenizers.Tokenizer, model: dict[str, Any]) -> int | None:
    """The id of all words and letters outside of the vocabulary of a model in a tokenizer.json."""
    name, number = getattr(tokens.model, "unk_token", None), model.get("unk_id")
    if name is not None:
        return tokens.token_to_id(name)
    return number if type(number) is int else None


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
        case "Precompiled":
            # The size of a trie of what is replaced, the trie, and replacements that end in NULs.
            rules = base64.b64decode(part["precompiled_charsmap"])
            texts = rules[4 + int.from_bytes(rules[:4], "little") :].split(b"\0")
            return 1 + max(len(text.decode()) for text in texts)
        case "TemplateProcessing":
            ids = [len(token["ids"]) for token in part["special_tokens"].values()]
            return len(part["single"]) * max(1, *ids, 1)
    if kind not in _GROWTH:
        raise UnreadableError(f"its part {ascii(kind)[:40]} is none that is known here")
    return _GROWTH[kind]
