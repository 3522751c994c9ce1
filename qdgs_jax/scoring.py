"""Latents -> images -> embeddings -> objective and measures, with or without their Jacobian."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import jax
import jax.numpy as jnp
from flax import struct

from qdgs_jax import image_measures, typicality
from qdgs_jax.config import Config, MeasureConfig
from qdgs_jax.encoders import Encoder
from qdgs_jax.generators import Generator
from qdgs_jax.image_measures import Classifier
from qdgs_jax.jacobian import Memory, Score, Scores, with_jacobian
from qdgs_jax.prompts import PromptPair
from qdgs_jax.sharding import rowwise
from qdgs_jax.typing import Array, Embeddings, Images, Key, Latents, Objective, Params

REMEMBERED = 100
"""Embeddings that a memory holds."""


def angular_distance(x: Embeddings, y: Embeddings) -> Array:
    """Angle between unit vectors along the last axis: d = 2 arcsin(||x - y|| / 2), in [0, pi].

    The gradient is set to zero at equal and opposite points, where the angle is not smooth.
    """
    squared = jnp.sum((x - y) ** 2, axis=-1)
    smooth = (squared > 0) & (squared < 4)
    # The inner `where` keeps the infinite slopes of sqrt and arcsin out of the backward pass.
    distance = 2 * jnp.arcsin(jnp.sqrt(jnp.where(smooth, squared, 1.0)) / 2)
    return jnp.where(smooth, distance, jnp.where(squared > 0, jnp.pi, 0.0))


def prompt_difference(embeddings: Embeddings, pair: PromptPair) -> Array:
    """d(image, near) - d(image, far) [N], summed over texts; negative is closer to `near`.

    For the objective's pair it is the prompt loss L_p, for a measure's pair the measure m_j (Chang
    et al. 2024).
    """

    def distance(texts: Embeddings) -> Array:
        return jnp.sum(angular_distance(embeddings[:, None], texts[None]), axis=-1)

    return distance(pair.near) - distance(pair.far)


def distance_to_ball(latents: Latents, radius: float) -> Array:
    """max(||latent||, r) - r [N]; its gradient inside the ball is zero."""
    squared = jnp.sum(latents**2, axis=-1)
    outside = squared > radius**2
    # The inner `where` keeps the infinite slope of sqrt at the origin out of the backward pass.
    return jnp.where(outside, jnp.sqrt(jnp.where(outside, squared, 1.0)) - radius, 0.0)


def cutout(keys: Key, images: Images, size: int, *, random: bool = True) -> Images:
    """The encoder's input: a random square of each image, average-pooled to `size`.

    Squares have a side of int(sqrt(U) (S - size) + size) pixels, S = min(H, W), U uniform in
    [0, 1), and a uniform position. Images with a side below `size` are used whole, without
    randomness, and so are squares of this size.

    Args:
        keys: [N], one for each image.
        images: [N, H, W, 3]; whole ones that are not square are squeezed.
        size: side of the result in pixels.
        random: False: all images are used whole.
    """
    height, width = images.shape[1:3]
    side = min(height, width)
    if height == width == size:
        return images
    if side < size or not random:
        rows, columns = (
            _pooling(jnp.int32(length), jnp.int32(0), size, length) for length in (height, width)
        )
        return _pool(images, rows, columns)

    def cut(key: Key, image: Array) -> Array:
        side_key, corner_key = jax.random.split(key)
        scale = jnp.sqrt(jax.random.uniform(side_key))
        crop = (scale * (side - size) + size).astype(jnp.int32)
        ends = jnp.array([height, width]) - crop[None] + 1
        top, left = jax.random.randint(corner_key, (2,), 0, ends)
        rows = _pooling(crop, top, size, height)
        columns = _pooling(crop, left, size, width)
        return _pool(image, rows, columns)

    return jax.vmap(cut)(keys, images)


def _pooling(crop: Array, start: Array, size: int, length: int) -> Array:
    """Adaptive average pooling of [start, start + crop) to `size` bins as a matrix [size, length].

    A banded matrix rather than a slice: it lets `crop` and `start` be traced.
    """
    bins = jnp.arange(size)[:, None]
    first = bins * crop // size
    end = ((bins + 1) * crop + size - 1) // size
    pixel = jnp.arange(length)[None] - start
    return jnp.where((first <= pixel) & (pixel < end), 1.0 / (end - first), 0.0)


def _pool(images: Array, rows: Array, columns: Array) -> Array:
    # Measures are within +-0.1: pixels must not pass through TF32 or bfloat16 products.
    return jnp.einsum("ih,...hwc,jw->...ijc", rows, images, columns, precision="highest")


class SeenImages(struct.PyTreeNode):
    """Embeddings of recent good images; a new one replaces the oldest."""

    embeddings: Array  # [REMEMBERED, E] unit norm
    count: Array  # [] int32, images added so far, replaced ones included


def uniqueness(memory: SeenImages, embeddings: Embeddings) -> Array:
    """u = 100 / |M| times the distance to the nearest remembered image [N]; 1 while M is empty."""
    known = jnp.minimum(memory.count, REMEMBERED)
    distance = angular_distance(embeddings[:, None], memory.embeddings[None])
    nearest = jnp.min(distance, axis=1, where=jnp.arange(REMEMBERED) < known, initial=jnp.pi)
    return jnp.where(known > 0, REMEMBERED / jnp.maximum(known, 1) * nearest, 1.0)


def remember(
    memory: SeenImages, key: Key, embeddings: Embeddings, objective: Objective
) -> SeenImages:
    """Adds a random one of the images [N, E] whose loss is below 1, if there is any."""
    good = objective > 50  # it is 100 - 50 L
    chosen = jnp.argmax(jnp.where(good, jax.random.uniform(key, good.shape), -1.0))
    place = memory.count % REMEMBERED
    # A sum sends only the chosen one between devices; an index would send all of them.
    is_chosen = (jnp.arange(len(good)) == chosen)[:, None]
    embedding = jnp.where(is_chosen, embeddings, 0).sum(axis=0)
    added = SeenImages(memory.embeddings.at[place].set(embedding), memory.count + 1)
    return jax.tree.map(lambda new, old: jnp.where(good.any(), new, old), added, memory)


@dataclass(frozen=True)
class ImageScore:
    """score(params, key, latents [N, D], memory) -> (Scores, memory).

    `params` is a dict of the weights "generator" and "encoder", of "prompts"
    (`qdgs_jax.prompts.PromptEmbeddings`) and, if the objective has typicality, of "typical"
    (`qdgs_jax.typicality.Typical`). Each latent's crop depends only on the key and on its place in
    the batch, so that another `chunk_size` changes the scores of a call by rounding alone. A search
    amplifies rounding: with another chunk size it finds other elites.

    The memory of an objective with uniqueness is `SeenImages`. Without uniqueness, or for `()`, all
    images count as unique and none is added.
    """

    score_rows: Score
    """(params, keys [N], latents [N, D], memory) -> Scores, and embeddings [N, E]; row by row."""
    measures: int
    """M."""
    chunk_size: int
    """Latents that a device renders and embeds at once."""
    init_memory: Callable[[Params], Memory]
    """params -> the memory of a first call."""

    def __call__(
        self, params: Params, key: Key, latents: Latents, memory: Memory
    ) -> tuple[Scores, Memory]:
        keys = jax.random.split(key, len(latents))
        scores, embeddings = rowwise(
            lambda shared, keys, latents: self.score_rows(shared[0], keys, latents, shared[1]),
            self.chunk_size,
        )((params, memory), keys, latents)
        if isinstance(memory, SeenImages):
            choice_key = jax.random.fold_in(key, len(latents))  # none of split(key, N)
            memory = remember(memory, choice_key, embeddings, scores.objective)
        return scores, memory

    def with_jacobian(self) -> "ImageScore":
        """The same score, with the Jacobian in its scores.

        1 + M pull-backs need 1 + M times the memory, so chunks are smaller by that factor.
        """
        return replace(
            self,
            score_rows=with_jacobian(self.score_rows),
            chunk_size=max(1, self.chunk_size // (1 + self.measures)),
        )


def make_score(
    config: Config,
    generator: Generator,
    encoder: Encoder | None,
    *,
    classifiers: Mapping[str, tuple[Classifier, Params]] = MappingProxyType({}),
    allow_code: bool = False,
) -> ImageScore:
    """The score of a config: f = 100 - 50 L, and one measure for each of `config.measures`.

    L = L_p + w (max(||latent||, r) - r)^2 + v (1 - u) + t d: the prompt loss, a penalty for latents
    outside of a ball, a penalty for similarity to recent good images (all Chang et al. 2024), and
    the distance of the image to random ones (`typicality.distance`). The ball's radius r is a
    multiple of the mean norm of 10,000 random latents. Without prompts there is no L_p, and no
    encoder. Only with `search.constraint` "typical" there is d, and images with d > 1 are atypical:
    see `Scores`.

    The reference renders and crops again for the objective and for each measure. Here all of them
    use one image and one crop, which is cheaper and less noisy. Functions of the image read the
    whole image.

    Args:
        classifiers: those of measures; of their weights, which are taken from "classifiers" of the
            score's params, only shapes are used.
        allow_code: whether measures may be functions of other packages; see `image_measures.load`.

    Raises:
        ConfigError: a measure's function does not exist or does not return one number for each
            image, or has no gradients although the search's algorithm uses them.
    """
    gradients = config.search.uses_gradients

    def reading(measure: MeasureConfig) -> Callable[[Params, Images], Array] | None:
        if measure.classifier:
            name, shape = measure.classifier, generator.image_shape
            read = image_measures.of_classifier(measure, *classifiers[name], shape)
            key = image_measures.weights_of(name)
            return lambda params, images: read(params["classifiers"][key], images)
        if not measure.function:
            return None
        function = image_measures.load(
            measure, generator.image_shape, gradients=gradients, allow_code=allow_code
        )
        return lambda params, images: function(images)

    functions = [reading(measure) for measure in config.measures]

    render, floor = generator.render, config.search.threshold_min
    if config.search.rematerialise:
        render = jax.checkpoint(render)
    pull, push = config.objective.regularisation, config.objective.uniqueness
    if pull:
        norms = jnp.linalg.norm(generator.sample(jax.random.key(0), 10_000), axis=-1)
        radius = config.objective.radius * float(norms.mean())

    def score_rows(
        params: Params, keys: Key, latents: Latents, memory: Memory
    ) -> tuple[Scores, Embeddings]:
        images = render(params["generator"], latents)
        prompts, loss = params["prompts"], jnp.zeros(len(images))
        embeddings = jnp.zeros((len(images), 0))
        if encoder:
            cutouts = cutout(keys, images, encoder.image_size, random=config.encoder.random_crops)
            embeddings = encoder.embed_images(params["encoder"], cutouts)
        if prompts.objective:
            loss += prompt_difference(embeddings, prompts.objective)
        if pull:
            loss += pull * distance_to_ball(latents, radius) ** 2
        if isinstance(memory, SeenImages):
            loss += push * (1 - uniqueness(memory, embeddings))
        if config.search.constraint == "typical":
            distance = typicality.distance(params["typical"], images)
            loss += config.objective.typicality * distance
        measures = [
            function(params, images) if function else prompt_difference(embeddings, pair)
            for function, pair in zip(functions, prompts.measures, strict=True)
        ]
        objective, atypical = 100 - 50 * loss, None
        if config.search.constraint == "typical":
            atypical = distance > 1
            if floor != "auto":
                # Images out of distribution are worse than all others, by their distance alone (the
                # feasibility rule of Deb 2000), so that gradients lead back.
                objective = jnp.where(atypical, floor - 50 * (distance - 1), objective)
        return Scores(objective, jnp.stack(measures, axis=-1), atypical=atypical), embeddings

    def init_memory(params: Params) -> Memory:
        if not push:
            return ()
        texts = params["prompts"].objective.near
        embeddings = jnp.zeros((REMEMBERED, texts.shape[-1]), texts.dtype)
        return SeenImages(embeddings, count=jnp.zeros((), jnp.int32))

    return ImageScore(score_rows, len(functions), config.search.chunk, init_memory)
