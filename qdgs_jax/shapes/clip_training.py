"""Training of the shapes CLIP; one command and seed reproduce the asset."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from qdgs_jax import encoders, folders
from qdgs_jax.models import clip
from qdgs_jax.shapes.captions import ATTRIBUTES
from qdgs_jax.shapes.drawings import COLOURS, SHAPES, as_bytes, draw_all, in_bytes
from qdgs_jax.shapes.model_cards import write_card
from qdgs_jax.shapes.scenes import Scenes, draw_plain_scenes, draw_scenes, turn
from qdgs_jax.shapes.tokenizer import (
    CONTEXT_LENGTH,
    END,
    SPECIAL,
    CaptionTable,
    make_tokenizer,
    save_tokenizer,
    tabulate_captions,
)
from qdgs_jax.training.descent import Loss, OptimiserConfig, minimise
from qdgs_jax.typing import Array, Key, Params

_OPTIMISER = OptimiserConfig(steps=8000, batch_size=96, learning_rate=2e-3)
_VISION = clip.TowerConfig(width=128, layers=3, heads=2, mlp_width=256)
_TEXT = clip.TowerConfig(width=96, layers=2, heads=2, mlp_width=192)


@dataclasses.dataclass(frozen=True)
class CLIPTrainingConfig:
    """How the shapes CLIP is trained."""

    optimiser: OptimiserConfig = _OPTIMISER
    scenes: int = 16384
    """Scenes drawn before the training, each of which is used in eight symmetric versions. Half of
    each batch is scenes, the other half is new plain drawings."""
    captions: int = 96
    """Texts that each batch of images is compared with."""
    vision: clip.TowerConfig = _VISION
    text: clip.TowerConfig = _TEXT
    embedding_size: int = 64
    image_size: int = 64
    patch_size: int = 16


def train_clip(
    out: str | Path, *, seed: int = 0, training: CLIPTrainingConfig = CLIPTrainingConfig()
) -> None:
    """Trains the shapes CLIP on scenes and captions and writes its folder.

    Each image is compared with each text of a batch by a sigmoid (Zhai et al. 2023, "Sigmoid loss
    for language image pre-training"). The attributes of all images are known, so the target is the
    probability that the text is true of the image, even if it is true of other images too.

    Raises:
        ConfigError: `out` is there already.
    """
    tokenizer = make_tokenizer()
    config = clip.CLIPConfig(
        vision=training.vision,
        text=training.text,
        embedding_size=training.embedding_size,
        image_size=training.image_size,
        patch_size=training.patch_size,
        context_length=CONTEXT_LENGTH,
        vocabulary_size=tokenizer.get_vocab_size(),
        eos_token_id=SPECIAL.index(END),
        pixel_mean=(1.0, 1.0, 1.0),
        pixel_std=(0.4, 0.4, 0.4),
    )
    with folders.creating(Path(out), again="train again") as folder:
        init_key, place_key, scene_key, train_key = jax.random.split(jax.random.key(seed), 4)
        draw = functools.partial(draw_scenes, image_size=config.image_size)
        scenes = jax.jit(functools.partial(in_bytes, draw), static_argnums=1)(
            scene_key, training.scenes
        )
        params = minimise(
            make_loss(training, config, tabulate_captions(tokenizer)),
            _init(config, init_key, place_key),
            train_key,
            training.optimiser,
            scenes,
            method=optax.contrib.muon,
        )
        clip.save(folder, config, params["clip"])
        save_tokenizer(folder, tokenizer)
        encoder, params = encoders.load(str(folder))
        right = zero_shot(encoder, params, jax.random.key(seed + 1), count=2000)
        write_card(
            folder, "clip", training.optimiser, ("accuracy", right),
            seed=seed, scenes=training.scenes, colours=len(COLOURS), shapes=", ".join(SHAPES),
            words=config.vocabulary_size - len(SPECIAL),
        )  # fmt: skip


def make_loss(training: CLIPTrainingConfig, config: clip.CLIPConfig, table: CaptionTable) -> Loss:
    """The sigmoid loss of scenes and captions, plus the loss of linear heads for attributes."""

    def loss(params: Params, key: Key, progress: Array, data: Scenes) -> Array:
        scene_key, turn_key, plain_key, caption_key = jax.random.split(key, 4)
        half = training.optimiser.batch_size // 2
        some = jax.random.randint(scene_key, (half,), 0, training.scenes)
        scenes = turn(turn_key, jax.tree.map(lambda x: x[some], data))
        plain = draw_plain_scenes(plain_key, half, image_size=training.image_size)
        scenes = jax.tree.map(lambda *both: jnp.concatenate(both), as_bytes(plain), scenes)
        rows = jax.random.choice(caption_key, len(table.ids), (training.captions,), p=table.weights)
        images = clip.embed_images(config, params["clip"], (scenes.images / 255 - 1) / 0.4)
        texts = clip.embed_tokens(config, params["clip"], table.ids[rows])
        scale = jnp.exp(params["clip"]["logit_scale"])
        logits = scale * _unit(images) @ _unit(texts).T + params["bias"]
        truth = jnp.ones(logits.shape)
        for attribute, allowed in table.allows.items():
            truth *= scenes.truth[attribute] @ allowed[rows].T
        captions = optax.sigmoid_binary_cross_entropy(logits, truth).mean()
        # With captions alone the loss stays on a plateau for long. Linear heads that predict each
        # attribute from the image's embedding avoid this; they are dropped after the training.
        attributes = sum(
            optax.softmax_cross_entropy(images @ head, scenes.truth[attribute]).mean()
            for attribute, head in params["heads"].items()
        )
        return 10 * captions + attributes

    return loss


def _init(config: clip.CLIPConfig, key: Key, place_key: Key) -> Params:
    """The CLIP, the bias of its logits, and a linear head for each attribute."""
    params = clip.init(config, key)
    # As long as a patch's embedding; CLIP's initial ones, 40 times shorter, hide the position.
    place = params["vision"]["position_embedding"]
    params["vision"]["position_embedding"] = 0.7 * jax.random.normal(place_key, place.shape)
    heads = {
        attribute: jnp.zeros((config.embedding_size, len(values)))
        for attribute, values in ATTRIBUTES.items()
    }
    return {"clip": params, "bias": jnp.array(-4.0), "heads": heads}


def zero_shot(
    encoder: encoders.Encoder, params: Params, key: Key, *, count: int = 400
) -> dict[str, float]:
    """Zero-shot accuracy over all colours x shapes, on drawings that are not used in training.

    Returns:
        Accuracy over `count` drawings: of "colour", of "shape", and of "both" together.
    """
    names = [f"A {colour} {shape}." for colour in COLOURS for shape in SHAPES]
    texts = encoder.embed_tokens(params, encoder.tokenize(names))
    embed = jax.jit(encoder.embed_images)
    drawings = draw_all(key, count, image_size=encoder.image_size)
    told = (embed(params, drawings.images) @ texts.T).argmax(axis=1)
    colour, shape = jnp.divmod(told, len(SHAPES))
    right = {"colour": colour == drawings.colour, "shape": shape == drawings.shape}
    right["both"] = right["colour"] & right["shape"]
    return {name: float(values.mean()) for name, values in right.items()}


def _unit(x: Array) -> Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
