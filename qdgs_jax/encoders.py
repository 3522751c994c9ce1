"""Frozen image-text encoders: images and text -> embeddings."""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import huggingface_hub
import jax
import jax.numpy as jnp

from qdgs_jax import files, folders, plugins
from qdgs_jax.errors import CheckpointError, ConfigError, did_you_mean
from qdgs_jax.generators import sha256_of
from qdgs_jax.models import clip, hugging_face, siglip
from qdgs_jax.models.checkpoint import existing, explained, fingerprint, shown
from qdgs_jax.models.precision import Precision
from qdgs_jax.models.tokenizer_files import MAX_FILE, REMEDY, Tokenizer, quiet
from qdgs_jax.typing import Array, Embeddings, Images, Params

BUILT_IN = {"shapes-clip": Path(__file__).parent / "assets" / "shapes_clip"}
"""Encoders that come with the package: name -> folder."""

OPENAI = "openai/clip-vit-base-patch32"
"""Hub id of the tokenizer of OpenAI's and most other CLIPs, for weights that come without one."""

MAX_TEXT = 1 << 12  # characters; 77 tokens have some hundred

Port: TypeAlias = ModuleType
"""`clip` or `siglip`, which have functions and a tokenizer of the same names."""


@dataclass(frozen=True)
class Encoder:
    """An encoder without its weights, which are arguments of `embed_...`."""

    name: str
    """Built-in name, hub id, or last part of the path."""
    sha256: str
    """SHA-256 of the file of weights, in hex; empty where a function makes the encoder: it becomes
    that of the weights themselves."""
    image_size: int
    """Side of the square images that it reads, in pixels."""
    embed_images: Callable[[Params, Images], Embeddings]
    """(params, images [N, image_size, image_size, 3] in [0, 1]) -> [N, E], unit norm."""
    embed_tokens: Callable[[Params, Array], Embeddings]
    """(params, token ids [N, T]) -> [N, E], unit norm."""
    tokenize: Callable[[list[str]], Array]
    """Texts -> token ids int32 [N, T]; raises ConfigError where a text is too long."""
    unknown_words: Callable[[str], list[str]] = lambda text: []
    """The words of a text that are not in the tokenizer's vocabulary."""


def load(
    model: str,
    *,
    precision: Precision = "highest",
    allow_code: bool = False,
    gradients: bool = False,
) -> tuple[Encoder, Params]:
    """Loads a CLIP or SigLIP, or calls a function `package.module:function` that returns an
    `Encoder` and its weights. A tokenizer is loaded only when the first text is tokenized.

    Args:
        model: built-in name, path of a file or folder of weights, hub id, or function. A path that
            exists is no function.
        precision: of a network's matrix products; see `qdgs_jax.models.clip.embed_images`.
        allow_code: whether it may be a function, of which the module is imported.
        gradients: whether a function's encoder must be differentiable.

    Raises:
        ConfigError: there is no such name, path or hub id, or a function that is not allowed,
            fails, or returns something else.
        CheckpointError: the weights cannot be read.
    """
    path = BUILT_IN.get(model) or existing(model)
    if path is None and plugins.is_function(model):
        if precision != "highest":
            raise ConfigError(
                f"The encoder '{model}' is a function of another package, which decides its "
                "precision itself: leave encoder.precision out."
            )
        subject = f"The encoder '{model}'"
        made = plugins.make(model, subject, Encoder, allow_code=allow_code)
        return checked(*made, gradients=gradients)
    if path is None and not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", model):
        raise ConfigError(
            f"There is no encoder '{shown(model)}'{did_you_mean(shown(model), BUILT_IN)}: give the "
            f"path of a checkpoint, a hub id, the name of a built-in, {', '.join(BUILT_IN)}, or a "
            "function 'package.module:function'."
        )
    weights = hugging_face.find_weights(path or model)
    port = _port(weights)
    config, params = port.load(weights)
    mean, std = (jnp.array(values, ndmin=4) for values in (config.pixel_mean, config.pixel_std))
    tokenizer = functools.cache(
        functools.partial(_load_tokenizer, port, weights.parent, config.vocabulary_size)
    )

    def embed_images(params: Params, images: Images) -> Embeddings:
        pixels = (images - mean) / std
        return _unit(port.embed_images(config, params, pixels, precision=precision))

    def embed_tokens(params: Params, ids: Array) -> Embeddings:
        return _unit(port.embed_tokens(config, params, ids, precision=precision))

    encoder = Encoder(
        name=path.name if path and model not in BUILT_IN else model,
        sha256=fingerprint(weights),
        image_size=config.image_size,
        embed_images=embed_images,
        embed_tokens=embed_tokens,
        tokenize=lambda texts: _tokenize(port, weights.parent, tokenizer(), config, texts),
        unknown_words=lambda text: _unknown_words(weights.parent, tokenizer(), text),
    )
    return encoder, params


def checked(encoder: Encoder, params: Params, *, gradients: bool = False) -> tuple[Encoder, Params]:
    """An encoder of the user's own, with embeddings of unit norm, whatever their norm was.

    Its embeddings of images are checked by shapes, without computing any.

    Args:
        gradients: whether `embed_images` must be differentiable.

    Raises:
        ConfigError: a part of the interface is impossible, fails, or does not fit another.
    """
    subject, side = f"The encoder '{shown(str(encoder.name))}'", encoder.image_size
    if not (isinstance(side, Integral) and side > 0):
        raise ConfigError(f"{subject}: `image_size` is no positive whole number: correct it.")
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    _, size = plugins.shape_of(
        f"{subject}: `embed_images(params, images)`",
        encoder.embed_images,
        params,
        images,
        wanted=lambda shape: len(shape) == 2 and shape[0] == 2,
        remedy=f"let it return embeddings [2, E] of two images [2, {side}, {side}, 3], or correct "
        "`image_size`",
    )
    if gradients:
        embed = encoder.embed_images
        plugins.require_gradients(f"{subject}: `embed_images`", embed, params, images)

    def tokenize(texts: list[str]) -> Array:
        with plugins.failures_told(f"{subject}: `tokenize(texts)`"):
            return encoder.tokenize(texts)

    def embed_tokens(params: Params, tokens: Array) -> Embeddings:
        with plugins.failures_told(f"{subject}: `embed_tokens(params, tokens)`"):
            embeddings = jnp.asarray(encoder.embed_tokens(params, tokens))
        if embeddings.shape != (len(tokens), size):
            raise ConfigError(
                f"{subject}: `embed_tokens` returns {embeddings.shape} for {len(tokens)} texts: "
                f"let it return [{len(tokens)}, {size}], as long as embeddings of images."
            )
        return _unit(embeddings)

    return replace(
        encoder,
        sha256=encoder.sha256 or sha256_of(params),
        embed_images=lambda params, images: _unit(encoder.embed_images(params, images)),
        embed_tokens=embed_tokens,
        tokenize=tokenize,
    ), params


def convert(source: str, folder: Path) -> None:
    """Rewrites a CLIP of any readable layout as a Hugging Face folder of safetensors.

    The tokenizer beside the source is copied too, if there is one.

    Args:
        source: path of a file or folder of weights, or hub id.
        folder: to write; `load` takes its path.

    Raises:
        CheckpointError: the weights cannot be read, or are no CLIP's.
        QDGSError: the folder cannot be written.
    """
    weights = hugging_face.find_weights(existing(source) or source)
    if _port(weights) is siglip:
        raise CheckpointError(f"{weights} is a SigLIP, not a CLIP: give it as it is to searches.")
    config, params = clip.load(weights)
    with folders.interruptions_explained(folder, again="run the same command again"):
        clip.save(folder, config, params)
        for name in clip.tokenizer.FILES:
            if (weights.parent / name).exists():
                with (
                    explained(weights.parent / name, "fetch it again"),
                    files.open_regular(weights.parent / name, MAX_FILE) as file,
                ):
                    content = file.read()
                files.write(folder / name, content)


def _unit(embeddings: Array) -> Embeddings:
    return embeddings / jnp.linalg.norm(embeddings, axis=-1, keepdims=True)


def _port(weights: Path) -> Port:
    """What reads a file of weights, by the config.json beside it."""
    kind = hugging_face.model_type(weights.parent)
    return siglip if kind in ("siglip", "siglip2") else clip


def _tokenize(
    port: Port, folder: Path, tokenizer: Tokenizer, config: Any, texts: list[str]
) -> Array:
    length, rows = config.context_length, []
    for text in texts:
        if len(text) > MAX_TEXT:
            raise ConfigError(
                f"The text '{text[:40]} ...' has {len(text)} characters, but the encoder reads "
                f"{length} tokens: shorten it, or separate it by `|` into several texts."
            )
        ids = _encode(folder, tokenizer, text).ids
        if len(ids) > length:
            raise ConfigError(
                f"The text '{text}' has {len(ids)} tokens, but the encoder reads {length}: "
                "shorten it, or separate it by `|` into several texts."
            )
        try:
            rows.append(port.tokenizer.padded(config, ids, tokenizer.padding))
        except ValueError as error:
            raise CheckpointError(
                f"The tokenizer in {folder} is of another encoder, {error}: {REMEDY}."
            ) from error
    return jnp.array(rows, jnp.int32)


def _unknown_words(folder: Path, tokenizer: Tokenizer, text: str) -> list[str]:
    # A vocabulary of words has one token for all other words; one of byte pairs spells them.
    encoding = _encode(folder, tokenizer, text[:MAX_TEXT], special=False)
    return [
        text[start:end]
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
        if token == tokenizer.unknown
    ]


def _encode(folder: Path, tokenizer: Tokenizer, text: str, *, special: bool = True) -> Any:
    with explained(f"The tokenizer in {folder}", REMEDY), quiet():
        return tokenizer.tokens.encode(text, add_special_tokens=special)


def _load_tokenizer(port: Port, folder: Path, vocabulary_size: int) -> Tokenizer:
    """The tokenizer beside the weights, or OpenAI's if there is none and its size fits."""
    own, openai = port.tokenizer.is_in(folder), clip.CLIPConfig.vocabulary_size
    if not own and port is clip and vocabulary_size == openai:
        folder = _download_tokenizer(folder)
    if not port.tokenizer.is_in(folder):
        raise CheckpointError(
            f"The encoder in {folder} has no tokenizer: put beside the weights "
            f"{port.tokenizer.NEEDED}."
        )
    return port.tokenizer.load(folder, vocabulary_size)


def _download_tokenizer(folder: Path) -> Path:
    patterns = ["tokenizer*.json", "vocab.json", "merges.txt"]
    try:
        return Path(huggingface_hub.snapshot_download(OPENAI, allow_patterns=patterns))
    except Exception:  # network, proxy and hub raise many kinds
        raise CheckpointError(
            f"The encoder in {folder} has no tokenizer and {OPENAI} cannot be reached: put "
            "vocab.json and merges.txt from there beside the weights."
        ) from None
