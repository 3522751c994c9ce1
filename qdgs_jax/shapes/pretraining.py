"""Training of the built-in models of the shapes domain: a command and a seed give each asset."""

import contextlib
import dataclasses
import functools
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors
from tqdm import trange

from qdgs_jax import encoders, files
from qdgs_jax.errors import ConfigError
from qdgs_jax.models import clip, vae
from qdgs_jax.shapes import drawings as shapes
from qdgs_jax.typing import Array, Key, Params

Data: TypeAlias = Any  # a pytree of arrays
Loss: TypeAlias = Callable[[Params, Key, Array, Data], Array]
"""(params, key, progress in [0, 1), data) -> the loss of a batch."""

PAD, UNKNOWN, START, END = SPECIAL = ("<pad>", "<unk>", "<start>", "<end>")
CONTEXT_LENGTH = 24

_ASSETS = Path(__file__).parents[1] / "assets"
_VAE = vae.VAEConfig()
_VISION = clip.TowerConfig(width=128, layers=3, heads=2, mlp_width=256)
_TEXT = clip.TowerConfig(width=96, layers=2, heads=2, mlp_width=192)


@dataclasses.dataclass(frozen=True)
class OptimiserConfig:
    """A training's length, and its learning rate with a warm-up and a cosine decay."""

    steps: int
    batch_size: int = 32
    learning_rate: float = 3e-3


@dataclasses.dataclass(frozen=True)
class VAETrainingConfig:
    """How the shapes VAE is trained."""

    optimiser: OptimiserConfig = OptimiserConfig(steps=6000)
    model: vae.VAEConfig = _VAE
    colour_bias: float = 0.98
    beta: float = 75.0
    """Weight of the latents' divergence from a standard normal distribution. It rises from 0 over
    three quarters of the training: in full from the start, it would have rare groups forgotten."""


@dataclasses.dataclass(frozen=True)
class CLIPTrainingConfig:
    """How the shapes CLIP is trained."""

    optimiser: OptimiserConfig = OptimiserConfig(steps=8000, batch_size=96, learning_rate=2e-3)
    scenes: int = 16384
    """Scenes drawn before the training; each is met in eight symmetric versions. They are half of
    each batch, new plain drawings the other."""
    captions: int = 96
    """Texts that each batch of images is compared with."""
    vision: clip.TowerConfig = _VISION
    text: clip.TowerConfig = _TEXT
    embedding_size: int = 64
    image_size: int = 64
    patch_size: int = 16


def train_vae(
    out: str | Path, *, seed: int = 0, training: VAETrainingConfig = VAETrainingConfig()
) -> None:
    """Trains the shapes VAE on a colour-biased set and writes its folder.

    Raises:
        ConfigError: `out` is there already.
    """
    config = training.model

    def loss(params: Params, key: Key, progress: Array, data: Data) -> Array:
        draw_key, noise_key = jax.random.split(key)
        images = shapes.draw(
            draw_key,
            training.optimiser.batch_size,
            colour_bias=training.colour_bias,
            image_size=config.image_size,
        ).images
        mean, log_variance = vae.encode(config, params, images)
        noise = jax.random.normal(noise_key, mean.shape)
        decoded = vae.decode(config, params, mean + jnp.exp(log_variance / 2) * noise)
        divergence = (mean**2 + jnp.exp(log_variance) - 1 - log_variance).sum() / 2
        beta = training.beta * jnp.minimum(progress / 0.75, 1)
        cost = _cross_entropy(decoded, images).sum() + beta * divergence
        return cost / len(images)

    with _new_folder(Path(out)) as folder:
        init_key, train_key = jax.random.split(jax.random.key(seed))
        params = minimise(loss, vae.init(config, init_key), train_key, training.optimiser)
        vae.save(folder, config, params)
        errors = reconstruction_errors(config, params, jax.random.key(seed + 1))
        card = (_ASSETS / "vae_card.md").read_text().format(
            seed=seed, bias=training.colour_bias, beta=training.beta,
            quality=_table("root mean square error", errors), **_amounts(training.optimiser),
        )  # fmt: skip
        files.write(folder / "README.md", card)


def train_clip(
    out: str | Path, *, seed: int = 0, training: CLIPTrainingConfig = CLIPTrainingConfig()
) -> None:
    """Trains the shapes CLIP on scenes and captions and writes its folder.

    Each image is compared with each text of a batch by a sigmoid (Zhai et al. 2023, "Sigmoid loss
    for language image pre-training"); as all truth is known, the target is the probability that
    the text is true of the image, be it of another image as well.

    Raises:
        ConfigError: `out` is there already.
    """
    tokenizer = make_tokenizer()
    table = tabulate_captions(tokenizer)
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

    def loss(params: Params, key: Key, progress: Array, data: shapes.Scenes) -> Array:
        scene_key, turn_key, plain_key, caption_key = jax.random.split(key, 4)
        half = training.optimiser.batch_size // 2
        some = jax.random.randint(scene_key, (half,), 0, training.scenes)
        scenes = turn(turn_key, jax.tree.map(lambda x: x[some], data))
        plain = shapes.draw_plain_scenes(plain_key, half, image_size=config.image_size)
        scenes = jax.tree.map(lambda *both: jnp.concatenate(both), shapes.as_bytes(plain), scenes)
        rows = jax.random.choice(caption_key, len(table.ids), (training.captions,), p=table.weights)
        images = clip.embed_images(config, params["clip"], (scenes.images / 255 - 1) / 0.4)
        texts = clip.embed_tokens(config, params["clip"], table.ids[rows])
        scale = jnp.exp(params["clip"]["logit_scale"])
        logits = scale * _unit(images) @ _unit(texts).T + params["bias"]
        truth = jnp.ones(logits.shape)
        for attribute, allowed in table.allows.items():
            truth *= scenes.truth[attribute] @ allowed[rows].T
        captions = optax.sigmoid_binary_cross_entropy(logits, truth).mean()
        # Captions alone leave the image tower on a plateau for long. Linear heads, dropped
        # afterwards, that read each attribute off its embedding take it beyond.
        attributes = sum(
            optax.softmax_cross_entropy(images @ head, scenes.truth[attribute]).mean()
            for attribute, head in params["heads"].items()
        )
        return 10 * captions + attributes

    with _new_folder(Path(out)) as folder:
        init_key, place_key, scene_key, train_key = jax.random.split(jax.random.key(seed), 4)
        draw = functools.partial(shapes.draw_scenes, image_size=config.image_size)
        scenes = jax.jit(functools.partial(shapes.in_bytes, draw), static_argnums=1)(
            scene_key, training.scenes
        )
        params = {
            "clip": clip.init(config, init_key),
            "bias": jnp.array(-4.0),
            "heads": {
                attribute: jnp.zeros((training.embedding_size, len(values)))
                for attribute, values in shapes.ATTRIBUTES.items()
            },
        }
        # As long as a patch's own embedding; CLIP's start, 40 times shorter, hides where it lies.
        place = params["clip"]["vision"]["position_embedding"]
        params["clip"]["vision"]["position_embedding"] = 0.7 * jax.random.normal(
            place_key, place.shape
        )
        params = minimise(
            loss, params, train_key, training.optimiser, scenes, method=optax.contrib.muon
        )
        clip.save(folder, config, params["clip"])
        _save_tokenizer(folder, tokenizer)
        encoder, params = encoders.load(str(folder))
        right = zero_shot(encoder, params, jax.random.key(seed + 1), count=2000)
        card = (_ASSETS / "clip_card.md").read_text().format(
            seed=seed, scenes=training.scenes, colours=len(shapes.COLOURS),
            shapes=", ".join(shapes.SHAPES), words=config.vocabulary_size - len(SPECIAL),
            quality=_table("told right", right), **_amounts(training.optimiser),
        )  # fmt: skip
        files.write(folder / "README.md", card)


def turn(key: Key, scenes: shapes.Scenes) -> shapes.Scenes:
    """All scenes, turned and mirrored by chance into one of eight ways."""
    across, down, swap = jax.random.bernoulli(key, shape=(3,))
    images, truth = scenes.images, dict(scenes.truth)
    images = jnp.where(across, images[:, :, ::-1], images)
    truth["across"] = jnp.where(across, truth["across"][:, ::-1], truth["across"])
    images = jnp.where(down, images[:, ::-1], images)
    truth["down"] = jnp.where(down, truth["down"][:, ::-1], truth["down"])
    images = jnp.where(swap, images.swapaxes(1, 2), images)
    truth["across"], truth["down"] = (
        jnp.where(swap, truth[other], truth[one])
        for one, other in (("across", "down"), ("down", "across"))
    )
    return shapes.Scenes(images, truth)


def zero_shot(
    encoder: encoders.Encoder, params: Params, key: Key, *, count: int = 400
) -> dict[str, float]:
    """How often the right one of all colours x shapes is told, of drawings never seen before.

    Returns:
        Fractions of `count` drawings: right in "colour", in "shape", and in "both".
    """
    names = [f"A {colour} {shape}." for colour in shapes.COLOURS for shape in shapes.SHAPES]
    texts = encoder.embed_tokens(params, encoder.tokenize(names))
    embed = jax.jit(encoder.embed_images)
    drawings = shapes.draw_all(key, count, image_size=encoder.image_size)
    told = (embed(params, drawings.images) @ texts.T).argmax(axis=1)
    colour, shape = jnp.divmod(told, len(shapes.SHAPES))
    right = {"colour": colour == drawings.colour, "shape": shape == drawings.shape}
    right["both"] = right["colour"] & right["shape"]
    return {name: float(values.mean()) for name, values in right.items()}


def reconstruction_errors(
    config: vae.VAEConfig, params: Params, key: Key, *, count: int = 400
) -> dict[str, float]:
    """Root mean square error of pixels of decoded means, by colour and shape, over new drawings."""
    drawings = shapes.draw(key, count, colour_bias=0.5, image_size=config.image_size)
    mean, _ = vae.encode(config, params, drawings.images)
    squares = (vae.decode(config, params, mean) - drawings.images) ** 2
    errors = {}
    for colour, shape in itertools.product(range(2), range(2)):
        group = (drawings.colour == colour) & (drawings.shape == shape)
        name = f"{list(shapes.COLOURS)[colour]} {shapes.SHAPES[shape]}"
        errors[name] = float(jnp.sqrt(squares[group].mean()))
    return errors


class CaptionTable(NamedTuple):
    """All captions in all sentences, K in number."""

    ids: Array  # [K, T]
    weights: Array  # [K] how often each is drawn; sums to 1
    allows: dict[str, Array]  # attribute -> [K, V] whether the text is true of each value


def tabulate_captions(tokenizer: tokenizers.Tokenizer) -> CaptionTable:
    """Families of captions are alike in weight, and so are the members of each."""
    texts, weights = [], []
    allows: dict[str, list[list[bool]]] = {attribute: [] for attribute in shapes.ATTRIBUTES}
    families = shapes.captions()
    sentences = (*shapes.SENTENCES, f"{{a}} {UNKNOWN} {{text}}")
    for family in families:
        for caption in family:
            for template in sentences:
                texts.append(shapes.sentence(caption, template))
                weights.append(1 / (len(families) * len(family) * len(sentences)))
                for attribute, values in shapes.ATTRIBUTES.items():
                    allowed = caption.allows.get(attribute, values)
                    allows[attribute].append([value in allowed for value in values])
    tokenizer.enable_padding(pad_id=SPECIAL.index(PAD), pad_token=PAD)
    ids = jnp.array([encoding.ids for encoding in tokenizer.encode_batch(texts)], jnp.int32)
    tokenizer.no_padding()
    tables = {attribute: jnp.array(rows, jnp.float32) for attribute, rows in allows.items()}
    return CaptionTable(ids, jnp.array(weights), tables)


def make_tokenizer() -> tokenizers.Tokenizer:
    """Lower-case words and punctuation, each a token; all other words are one, unknown."""
    split = pre_tokenizers.Whitespace()
    texts = [
        shapes.sentence(caption, template).lower()
        for family in shapes.captions()
        for caption in family
        for template in shapes.SENTENCES
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


def _save_tokenizer(folder: Path, tokenizer: tokenizers.Tokenizer) -> None:
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


def minimise(
    loss: Loss,
    params: Params,
    key: Key,
    config: OptimiserConfig,
    data: Data = None,
    *,
    method: Callable[[optax.Schedule], optax.GradientTransformation] = optax.adam,
) -> Params:
    """Descends on losses of fresh batches; a bar shows the progress on terminals."""
    warmup = min(100, config.steps // 10)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warmup, config.steps, config.learning_rate / 100
    )
    optimiser = method(schedule)

    def step(data: Data, carry: Any, index: Array) -> tuple[Any, Array]:
        params, state = carry
        step_key = jax.random.fold_in(key, index)
        progress = index / config.steps
        value, gradient = jax.value_and_grad(loss)(params, step_key, progress, data)
        updates, state = optimiser.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    @functools.partial(jax.jit, donate_argnums=0)
    def scan(carry: Any, indices: Array, data: Data) -> tuple[Any, Array]:
        return jax.lax.scan(functools.partial(step, data), carry, indices)

    carry = params, optimiser.init(params)
    block = max(1, min(50, config.steps))
    with trange(config.steps, disable=None, unit="step") as bar:
        for start in range(0, config.steps, block):
            indices = jnp.arange(start, min(start + block, config.steps))
            carry, values = scan(carry, indices, data)
            bar.set_postfix(loss=f"{values.mean():.4g}", refresh=False)
            bar.update(len(indices))
    return carry[0]


def _cross_entropy(decoded: Array, images: Array) -> Array:
    p = jnp.clip(decoded, 1e-6, 1 - 1e-6)
    return -(images * jnp.log(p) + (1 - images) * jnp.log1p(-p))


def _unit(x: Array) -> Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def _amounts(config: OptimiserConfig) -> dict[str, str]:
    return {
        "steps": f"{config.steps:,}",
        "batch": f"{config.batch_size}",
        "rate": f"{config.learning_rate:g}",
    }


def _table(heading: str, values: dict[str, float]) -> str:
    rows = [f"| {name} | {value:.4f} |" for name, value in values.items()]
    return "\n".join([f"| | {heading} |", "|---|---:|", *rows])


@contextlib.contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` once all is written, and not before."""
    if out.exists():
        raise ConfigError(f"{out} is there already: choose another folder, or remove it.")
    partial = out.with_name(f".{out.name}.partial")
    with files.interruptions_explained(out, again="train again"):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
