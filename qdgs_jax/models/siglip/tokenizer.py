"""SigLIP's tokenizer beside its weights, with the changes to texts that its training made."""

import re
import string
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from qdgs_jax import files
from qdgs_jax.models.checkpoint import explained, read_json
from qdgs_jax.models.pickles import UnreadableError
from qdgs_jax.models.sentencepiece import as_tokenizer_json
from qdgs_jax.models.siglip.modeling import SigLIPConfig
from qdgs_jax.models.tokenizer_files import (
    MAX_FILE,
    REMEDY,
    Tokenizer,
    checked_size,
    from_parts,
    quiet,
    special_id,
    unknown_id,
)

NEEDED = "its tokenizer.json or spiece.model"

_LOWERCASE = {"type": "Lowercase"}
_NO_PUNCTUATION = {
    "type": "Replace", "pattern": {"Regex": f"[{re.escape(string.punctuation)}]"}, "content": "",
}  # fmt: skip
_SINGLE_SPACES = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
_STRIP = {"type": "Strip", "strip_left": True, "strip_right": True}
_CHANGES: dict[str, list[dict[str, Any]]] = {
    "Unigram": [_LOWERCASE, _NO_PUNCTUATION, _SINGLE_SPACES, _STRIP],
    "BPE": [_LOWERCASE],
}
"""Model of the tokenizer -> what training did with texts. SigLIP has SentencePiece's Unigram,
SigLIP 2 has Gemma's BPE, whose files do not say that texts are in lowercase and begin without
<bos>."""
_SPECIAL = {
    "Unigram": {"eos_token": "</s>", "pad_token": "</s>"},
    "BPE": {"eos_token": "<eos>", "pad_token": "<pad>"},
}
"""The same -> tokens, unless files beside it name others."""


def is_in(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return (folder / "tokenizer.json").exists() or (folder / "spiece.model").exists()


def load(folder: Path, vocabulary_size: int) -> Tokenizer:
    """A folder's tokenizer, which ends texts.

    Args:
        folder: With tokenizer.json, or with spiece.model, and tokenizer_config.json if it has one.
        vocabulary_size: Of the encoder.

    Raises:
        CheckpointError: It is damaged, hostile, or of another encoder.
    """
    name = "tokenizer.json" if (folder / "tokenizer.json").exists() else "spiece.model"
    with explained(folder / name, REMEDY), quiet():
        if name == "spiece.model":
            with files.open_regular(folder / name, MAX_FILE) as file:
                values = as_tokenizer_json(file.read(MAX_FILE))
        else:
            values = read_json(folder / name, MAX_FILE)
        kind = values["model"].get("type", "BPE")
        if kind not in _CHANGES:
            raise UnreadableError(f"its model is none of {', '.join(_CHANGES)}")
        values["post_processor"] = None  # texts end as in training instead
        tokens = from_parts(values, vocabulary_size, first=_CHANGES[kind])
        checked_size(tokens, folder, vocabulary_size)
        end, number = _special(folder, tokens, kind, "eos_token")
        tokens.post_processor = processors.TemplateProcessing(
            single=["$A", end], special_tokens=[(end, number)]
        )
        _, padding = _special(folder, tokens, kind, "pad_token")
        return Tokenizer(tokens, padding, unknown_id(tokens, values["model"]))


def padded(config: SigLIPConfig, ids: list[int], padding: int | None) -> list[int]:
    """A text's ids, of which there are not too many, as many as the encoder reads.

    Raises:
        ValueError: they are of another encoder; the message says why.
    """
    assert padding is not None, "`load` finds one"
    row = [*ids, *[padding] * (config.context_length - len(ids))]
    if max(row) >= config.vocabulary_size:
        raise ValueError(f"which has tokens beyond {config.vocabulary_size}")
    return row


def _special(folder: Path, tokens: tokenizers.Tokenizer, kind: str, name: str) -> tuple[str, int]:
    """The token of a name such as "eos_token", and its id."""
    number = special_id(folder, tokens, name)
    number = tokens.token_to_id(_SPECIAL[kind][name]) if number is None else number
    if number is None:
        raise UnreadableError(f"it has no {name}", "put its tokenizer_config.json there")
    return str(tokens.id_to_token(number)), number
