"""Frozen image-text encoders: images and text -> embeddings."""

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import jax.numpy as jnp

from qdgs_jax import files, folders
from qdgs_jax.errors import CheckpointError, ConfigError, did_you_mean
from qdgs_jax.models import clip
from qdgs_jax.models.precision import Precision
from qdgs_jax.typing import Array, Embeddings, Images, Params

BUILT_IN = {"shapes-clip": Path(__file__).parent / "assets" / "shapes_clip"}
"""Encoders that come with the package: name -> folder."""

OPENAI = "openai/clip-vit-base-patch32"
"""Hub id of the tokenizer of OpenAI's and most other CLIPs, for weights that come without one."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")


@dataclass(frozen=True)
class Encoder:
    """An encoder without its weights, which are arguments of `embed_...`."""

    name: str
    """Built-in name, hub id, or last part of the path."""
    sha256: str
    """SHA-256 of the file of weights, in hex."""
    image_size: int
    """Side of the square images that it reads, in pixels."""
    embed_images: Callable[[Params, Images], Embeddings]
    """(params, images [N, image_size, image_size, 3] in [0, 1]) -> [N, E], unit norm."""
    embed_tokens: Callable[[Params, Array], Embeddings]
    """(params, token ids [N, T]) -> [N, E], unit norm."""
    tokenize: Callable[[list[str]], Array]
    """Texts -> token ids int32 [N, T]; raises ConfigError where a text is too long."""
    unknown_words: Callable[[str], list[str]]
    """The words of a text that are not in the tokenizer's vocabulary."""


def load(model: str, *, precision: Precision = "highest") -> tuple[Encoder, Params]:
    """Loads a CLIP; its tokenizer only when the first text is tokenized.

    Args:
        model: built-in name, path of a file or folder of weights, or hub id.
        precision: of its matrix products; see `qdgs_jax.models.clip.embed_images`.

    Raises:
        ConfigError: there is no such name, path or hub id.
        CheckpointError: the weights cannot be read.
    """
    path = BUILT_IN.get(model, Path(model).expanduser())
    if not path.exists() and not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise ConfigError(
            f"There is no encoder '{model}'{did_you_mean(model, BUILT_IN)}: give the path of a "
            f"checkpoint, a hub id or the name of a built-in, {', '.join(BUILT_IN)}."
        )
    weights = clip.find_weights(path if path.exists() else model)
    config, params = clip.load(weights)
    mean, std = (jnp.array(values, ndmin=4) for values in (config.pixel_mean, config.pixel_std))
    tokenizer = functools.cache(
        functools.partial(_load_tokenizer, weights.parent, config.vocabulary_size)
    )

    def embed_images(params: Params, images: Images) -> Embeddings:
        pixels = (images - mean) / std
        return _unit(clip.embed_images(config, params, pixels, precision=precision))

    def embed_tokens(params: Params, ids: Array) -> Embeddings:
        return _unit(clip.embed_tokens(config, params, ids, precision=precision))

    encoder = Encoder(
        name=path.name if path.exists() and model not in BUILT_IN else model,
        sha256=files.sha256(weights),
        image_size=config.image_size,
        embed_images=embed_images,
        embed_tokens=embed_tokens,
        tokenize=lambda texts: _tokenize(tokenizer(), config.context_length, texts),
        unknown_words=lambda text: _unknown_words(tokenizer(), text),
    )
    return encoder, params


def convert(source: str, folder: Path) -> None:
    """Rewrites a CLIP of any readable layout as a Hugging Face folder of safetensors.

    The tokenizer beside the source is copied too, if there is one.

    Args:
        source: path of a file or folder of weights, or hub id.
        folder: to write; `load` takes its path.

    Raises:
        CheckpointError: the weights cannot be read.
        QDGSError: the folder cannot be written.
    """
    weights = clip.find_weights(Path(source) if Path(source).exists() else source)
    config, params = clip.load(weights)
    with folders.interruptions_explained(folder, again="run the same command again"):
        clip.save(folder, config, params)
        for name in _TOKENIZER_FILES:
            if (weights.parent / name).is_file():
                files.write(folder / name, (weights.parent / name).read_bytes())


def _unit(embeddings: Array) -> Embeddings:
    return embeddings / jnp.linalg.norm(embeddings, axis=-1, keepdims=True)


def _tokenize(tokenizer: Any, length: int, texts: list[str]) -> Array:
    ids = tokenizer(texts, padding="max_length", max_length=length, verbose=False)["input_ids"]
    for text, row in zip(texts, ids, strict=True):
        if len(row) > length:
            raise ConfigError(
                f"The text '{text}' has {len(row)} tokens, but the encoder reads {length}: "
                "shorten it, or separate it by `|` into several texts."
            )
    return jnp.array(ids, jnp.int32)


def _unknown_words(tokenizer: Any, text: str) -> list[str]:
    # A vocabulary of words has one token for all other words; one of byte pairs spells them.
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [
        text[start:end]
        for token, (start, end) in zip(tokens["input_ids"], tokens["offset_mapping"], strict=True)
        if token == tokenizer.unk_token_id
    ]


def _load_tokenizer(folder: Path, vocabulary_size: int) -> Any:
    """The tokenizer beside the weights, or OpenAI's if there is none and its size fits."""
    if not _has_tokenizer(folder) and vocabulary_size == clip.CLIPConfig.vocabulary_size:
        folder = _download_tokenizer(folder)
    if not _has_tokenizer(folder):
        raise CheckpointError(
            f"The encoder in {folder} has no tokenizer: put its tokenizer.json, or its vocab.json "
            "and merges.txt, beside the weights."
        )
    with _quiet_transformers():
        from transformers import AutoTokenizer, CLIPTokenizer

        names_its_class = (folder / "tokenizer_config.json").is_file()
        kind = AutoTokenizer if names_its_class else CLIPTokenizer
        try:
            tokenizer = kind.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # damaged files raise many kinds
            raise CheckpointError(
                f"The tokenizer in {folder} cannot be read ({type(error).__name__}): fetch its "
                "files again."
            ) from error
    if len(tokenizer) != vocabulary_size:
        raise CheckpointError(
            f"The tokenizer in {folder} has {len(tokenizer)} tokens, but the encoder knows "
            f"{vocabulary_size}: put the tokenizer of these weights there."
        )
    return tokenizer


def _has_tokenizer(folder: Path) -> bool:
    # Checked here, because transformers reads absent files as empty vocabularies.
    return (folder / "tokenizer.json").is_file() or (
        (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    )


def _download_tokenizer(folder: Path) -> Path:
    patterns = ["tokenizer*.json", "vocab.json", "merges.txt"]
    try:
        return Path(huggingface_hub.snapshot_download(OPENAI, allow_patterns=patterns))
    except Exception:  # network, proxy and hub raise many kinds
        raise CheckpointError(
            f"The encoder in {folder} has no tokenizer and {OPENAI} cannot be reached: put "
            "vocab.json and merges.txt from there beside the weights."
        ) from None


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
