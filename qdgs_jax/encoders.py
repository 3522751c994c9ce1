"""Frozen image-text encoders: images and text -> embeddings."""

from collections.abc import Callable
from dataclasses import dataclass

from qdgs_jax.typing import Array, Embeddings, Images, Params


@dataclass(frozen=True)
class Encoder:
    """An encoder without its weights, which are arguments of `embed_...`."""

    name: str
    sha256: str
    """Of the file of weights, in hex."""
    image_size: int
    """Side of the square images that it reads, in pixels."""
    embed_images: Callable[[Params, Images], Embeddings]
    """(params, images [N, image_size, image_size, 3] in [0, 1]) -> [N, E], unit norm."""
    embed_tokens: Callable[[Params, Array], Embeddings]
    """(params, token ids [N, T]) -> [N, E], unit norm."""
    tokenize: Callable[[list[str]], Array]
    """Texts -> token ids int32 [N, T]; raises ConfigError where a text is too long."""
    unknown_words: Callable[[str], list[str]]
    """The words of a text that the tokenizer has never seen."""
