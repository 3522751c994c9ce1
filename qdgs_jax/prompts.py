"""Prompts in words -> prompt embeddings, once, before the loop."""

import warnings

import jax.numpy as jnp
from flax import struct

from qdgs_jax.config import Config
from qdgs_jax.encoders import Encoder
from qdgs_jax.typing import Embeddings, Params


class UnknownWordsWarning(UserWarning):
    """A prompt has words outside the encoder's vocabulary, which have no meaning for it."""


class PromptPair(struct.PyTreeNode):
    """Two opposite prompts; a prompt of several texts (`|`) has several rows."""

    near: Embeddings  # [T, E], the objective's `positive`, a measure's `low`
    far: Embeddings  # [T, E], the objective's `negative`, a measure's `high`


class PromptEmbeddings(struct.PyTreeNode):
    """All prompts of a config; an argument of the score, like weights."""

    objective: PromptPair | None  # None without prompts of good images
    measures: tuple[PromptPair | None, ...]  # None for functions and classifiers


def embed_prompts(
    config: Config, encoder: Encoder | None, encoder_params: Params
) -> PromptEmbeddings:
    """Embeds each text of the config's prompts once, to unit norm.

    Without prompts, no encoder is needed, and nothing is embedded.

    Warns with `UnknownWordsWarning` about words outside the encoder's vocabulary.

    Raises:
        ConfigError: a text is longer than the encoder can read.
    """
    if encoder is None:
        return PromptEmbeddings(None, (None,) * len(config.measures))
    objective = config.objective
    pairs = [(objective.positive, objective.negative)] if objective.positive else []
    pairs += [(measure.low, measure.high) for measure in config.measures if measure.has_prompts]
    texts = list(
        dict.fromkeys(text for pair in pairs for prompt in pair for text in _texts(prompt))
    )
    _warn_of_unknown_words(encoder, texts)
    embeddings = encoder.embed_tokens(encoder_params, encoder.tokenize(texts))
    rows = {text: row for row, text in enumerate(texts)}

    def embed(prompt: str) -> Embeddings:
        return embeddings[jnp.array([rows[text] for text in _texts(prompt)])]

    return PromptEmbeddings(
        objective=(
            PromptPair(embed(objective.positive), embed(objective.negative))
            if objective.positive
            else None
        ),
        measures=tuple(
            PromptPair(embed(measure.low), embed(measure.high)) if measure.has_prompts else None
            for measure in config.measures
        ),
    )


def _texts(prompt: str) -> list[str]:
    return [text.strip() for text in prompt.split("|")]


def _warn_of_unknown_words(encoder: Encoder, texts: list[str]) -> None:
    words = dict.fromkeys(word for text in texts for word in encoder.unknown_words(text))
    if words:
        quoted = ", ".join(f"'{word}'" for word in words)
        warnings.warn(
            f"The encoder {encoder.name} does not know {quoted}: rephrase the prompts, "
            "or use an encoder trained on more text.",
            UnknownWordsWarning,
            stacklevel=3,
        )
