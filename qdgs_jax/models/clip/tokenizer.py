"""CLIP's tokenizer beside its weights."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers

from qdgs_jax import files
from qdgs_jax.models.checkpoint import explained, read_json
from qdgs_jax.models.clip.modeling import LEGACY_EOS, CLIPConfig
from qdgs_jax.models.tokenizer_files import (
    MAX_FILE,
    REMEDY,
    Tokenizer,
    check_sizes,
    checked_size,
    from_parts,
    quiet,
    special_id,
    unknown_id,
)

FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
NEEDED = "its tokenizer.json, or its vocab.json and merges.txt"


def is_in(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return (folder / "tokenizer.json").exists() or (
        (folder / "vocab.json").exists() and (folder / "merges.txt").exists()
    )


def load(folder: Path, vocabulary_size: int) -> Tokenizer:
    """A folder's tokenizer.

    Args:
        folder: With tokenizer.json, or with vocab.json and merges.txt.
        vocabulary_size: Of the encoder.

    Raises:
        CheckpointError: It is damaged, hostile, or of another encoder.
    """
    values: dict[str, Any] = {"model": {}}
    if (folder / "tokenizer.json").exists():
        values = read_json(folder / "tokenizer.json", MAX_FILE)
        with explained(folder / "tokenizer.json", REMEDY), quiet():
            tokens = from_parts(values, vocabulary_size)
    else:
        vocabulary = read_json(folder / "vocab.json", MAX_FILE)
        with explained(folder / "merges.txt", REMEDY), quiet():
            with files.open_regular(folder / "merges.txt", MAX_FILE) as file:
                merges = file.read(MAX_FILE).decode("utf-8").splitlines()
            check_sizes(vocabulary, merges, vocabulary_size)
            tokens = _from_merges(vocabulary, merges)
    checked_size(tokens, folder, vocabulary_size)
    padding = special_id(folder, tokens, "pad_token")
    if padding is None:
        padding = _own_padding(values, vocabulary_size)
    return Tokenizer(tokens, padding, unknown_id(tokens, values["model"]))


def padded(config: CLIPConfig, ids: list[int], padding: int | None) -> list[int]:
    """A text's ids, of which there are not too many, as many as the encoder reads.

    Raises:
        ValueError: they are of another encoder; the message says why.
    """
    ends = config.eos_token_id in (LEGACY_EOS, *ids)
    if not ids or not ends or max(ids) >= config.vocabulary_size:
        raise ValueError(f"which does not end texts by token {config.eos_token_id}")
    # What follows the end is not read; it must not have a higher id, which may mean the end.
    filler = ids[-1] if padding is None or padding > ids[-1] else padding
    return [*ids, *[filler] * (config.context_length - len(ids))]


def _from_merges(vocabulary: dict[str, Any], lines: list[str]) -> tokenizers.Tokenizer:
    """What OpenAI's vocab.json and merges.txt describe."""
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    with _quiet_transformers():
        from transformers import CLIPTokenizer

        return CLIPTokenizer(vocab=vocabulary, merges=merges).backend_tokenizer


def _own_padding(values: dict[str, Any], vocabulary_size: int) -> int | None:
    """The padding of a tokenizer.json."""
    padding = values.get("padding")
    padding = padding.get("pad_id") if isinstance(padding, dict) else None
    return padding if type(padding) is int and padding in range(vocabulary_size) else None


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
