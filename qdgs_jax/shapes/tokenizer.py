"""Captions as tokens, one for each word."""

import json
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from qdgs_jax import files
from qdgs_jax.shapes.captions import ATTRIBUTES, SENTENCES, captions, sentence
from qdgs_jax.typing import Array

PAD, UNKNOWN, START, END = SPECIAL = ("<pad>", "<unk>", "<start>", "<end>")
CONTEXT_LENGTH = 24


def make_tokenizer() -> tokenizers.Tokenizer:
    """One token for each known word, in lower case, and mark; one token for all unknown words."""
    split = pre_tokenizers.Whitespace()
    texts = [
        sentence(caption, template).lower()
        for family in captions()
        for caption in family
        for template in SENTENCES
    ]
    words = {word for text in texts for word, _ in split.pre_tokenize_str(text)}
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *sorted(words)))}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = split
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(token, vocabulary[token]) for token in (START, END)],
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def save_tokenizer(folder: Path, tokenizer: tokenizers.Tokenizer) -> None:
    """Writes a tokenizer in the form that Hugging Face's `transformers` reads."""
    files.write(folder / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT_LENGTH,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "bos_token": START,
        "eos_token": END,
    }
    files.write(folder / "tokenizer_config.json", json.dumps(values, indent=2) + "\n")


class CaptionTable(NamedTuple):
    """All K captions in all sentences."""

    ids: Array  # [K, T]
    weights: Array  # [K] probability of each; they sum to 1
    allows: dict[str, Array]  # attribute -> [K, V] whether the text is true of each value


def tabulate_captions(tokenizer: tokenizers.Tokenizer) -> CaptionTable:
    """All captions; families have equal weights, and so have the captions of one family."""
    texts, weights = [], []
    allows: dict[str, list[list[bool]]] = {attribute: [] for attribute in ATTRIBUTES}
    families = captions()
    sentences = (*SENTENCES, f"{{a}} {UNKNOWN} {{text}}")
    for family in families:
        for caption in family:
            for template in sentences:
                texts.append(sentence(caption, template))
                weights.append(1 / (len(families) * len(family) * len(sentences)))
                for attribute, values in ATTRIBUTES.items():
                    allowed = caption.allows.get(attribute, values)
                    allows[attribute].append([value in allowed for value in values])
    tokenizer.enable_padding(pad_id=SPECIAL.index(PAD), pad_token=PAD)
    ids = jnp.array([encoding.ids for encoding in tokenizer.encode_batch(texts)], jnp.int32)
    tokenizer.no_padding()
    tables = {attribute: jnp.array(rows, jnp.float32) for attribute, rows in allows.items()}
    return CaptionTable(ids, jnp.array(weights), tables)
