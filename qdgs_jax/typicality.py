"""How typical latents and images are of a generator: what keeps a search in distribution.

A search finds latents that a generator never draws, and directions of latents, as probable as any
other, that lead to textures and glare. Both are detected by their distance to random ones, without
anything to tune: limits are quantiles of random latents and images. Random images are points in a
space of features, here small versions of them, the contrast of their details, and their colours.
Typical is what lies as near to one of them as other random images do (Sun et al., "Out-of-
Distribution Detection with Deep Nearest Neighbors", ICML 2022), and no further out.
"""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl  # type: ignore[import-untyped]
from flax import struct

from qdgs_jax.chunks import in_chunks
from qdgs_jax.errors import ConfigError
from qdgs_jax.generators import Generator
from qdgs_jax.typing import Array, Images, Latents, Params

LATENTS = 10_000
"""Random latents that describe a generator's."""
SAMPLES = 2048
"""Random images that describe a generator's; the last quarter sets the limits alone."""
REGION = 0.65
"""Share of random images that count as typical. A search ends near the limits that it is given: in
the region of 99 %, other features than these find many of its images outside of theirs."""
TAIL = 0.005
"""Share of random images beyond each end of a large component's range. A search that spreads evenly
goes as often to the ends as to the middle."""
SIDE = 16
"""Side of the small images, in pixels."""
BANDS = (8, 64)
"""Where principal components are divided, largest first."""
RIDGE = 1e-3
"""Share of the mean variance that is added to each variance, since some variances are zero."""

SMALLEST = 1e-8
"""Variance that is added where all random images are alike."""
NARROW = 0.1
"""Least end of a component's range, in standard deviations."""

Features = Callable[[Images], Array]  # [N, H, W, 3] -> [N, F]


class LatentRange(struct.PyTreeNode):
    """Where random latents lie: each number of them, and the norms of their blocks."""

    lower: Array  # [D], least of random latents
    upper: Array  # [D]
    least: Array  # [L], 1 % quantile of the norms of a block, such as a StyleGAN2 layer's style
    most: Array  # [L], 99 % quantile
    spread: Array  # [], standard deviation of a number


def range_of_latents(generator: Generator) -> LatentRange:
    """The range of `LATENTS` random latents."""
    latents = np.asarray(generator.sample(jax.random.key(0), LATENTS))
    norms = block_norms(latents, generator.blocks)
    least, most = np.quantile(norms, (0.01, 0.99), axis=0)
    spread = np.sqrt(latents.var(axis=0).mean())
    parts = latents.min(axis=0), latents.max(axis=0), least, most, spread
    return LatentRange(*(jnp.asarray(each, jnp.float32) for each in parts))


def block_norms(latents: np.ndarray, blocks: int) -> np.ndarray:
    """Norms of the equal parts of latents [N, D]: [N, L]."""
    return np.linalg.norm(latents.reshape(len(latents), blocks, -1), axis=-1)


def bring_into(within: LatentRange, latents: Latents) -> Latents:
    """Latents [N, D] with their numbers clipped to the range, and their blocks scaled to it."""
    clipped = jnp.clip(latents, within.lower[None], within.upper[None])
    blocks = clipped.reshape(len(latents), len(within.least), -1)
    norms = jnp.linalg.norm(blocks, axis=-1)
    scale = jnp.clip(norms, within.least[None], within.most[None]) / jnp.maximum(norms, 1e-30)
    return (blocks * scale[..., None]).reshape(latents.shape)


class Cloud(struct.PyTreeNode):
    """Random images as points, by one kind of features."""

    mean: Array  # [F]
    whitening: Array  # [F, F], (features - mean) @ whitening are principal components, variance 1
    points: Array  # [R, P], the P <= BANDS[-1] largest components of random images
    lower: Array  # [C], ends of the C <= BANDS[0] largest components of random images
    upper: Array  # [C]
    scale: Array  # [bands], limit of a band's distance if it were alone


class Typical(struct.PyTreeNode):
    """The random images of a generator, by several kinds of features."""

    features: tuple[Features, ...] = struct.field(pytree_node=False)
    clouds: tuple[Cloud, ...]
    limit: Array  # [], distance that a share of other random images do not exceed


def fit_images(generator: Generator, params: Params, chunk_size: int = 64) -> Typical:
    """Fits the features `KINDS` of `SAMPLES` random images, of which `chunk_size` are rendered at
    once.

    Raises:
        ConfigError: colours are not in [0, 1].
    """
    features = features_of(generator, KINDS, chunk_size)
    found = features(params, generator.sample(jax.random.key(0), SAMPLES))
    pixels = np.asarray(found[0])
    least, most = pixels.min(), pixels.max()
    if not (least > -0.05 and most < 1.05):
        raise ConfigError(
            f"The generator '{generator.name}' renders colours from {least:.3g} to {most:.3g} "
            "instead of 0 to 1: let `render` return (images + 1) / 2 if they end in a tanh."
        )
    return fit(KINDS, found)


def features_of(
    generator: Generator, kinds: tuple[Features, ...], chunk_size: int
) -> Callable[[Params, Latents], list[Array]]:
    """(params, latents [N, D]) -> kinds of features of their images, each [N, F]."""

    @jax.jit
    def features(params: Params, latents: Latents) -> list[Array]:
        def of_some(latents: Latents) -> list[Array]:
            images = generator.render(params, latents)
            return [kind(images) for kind in kinds]

        return in_chunks(of_some, chunk_size)(latents)

    return features


def fit(
    kinds: tuple[Features, ...],
    values: Sequence[Array],
    *,
    region: float = REGION,
    tail: float = TAIL,
) -> Typical:
    """Fits kinds of features.

    Args:
        values: of each kind, those of the same random images, [N, F].
        region: share of random images that is within the limit of distances.
        tail: share of random images that is beyond each end of a component's range.
    """
    clouds, distances = [], []
    for each in values:
        fitted, others = np.split(np.asarray(each, np.float64), [len(each) * 3 // 4])
        mean = fitted.mean(axis=0)
        with threadpoolctl.threadpool_limits(1, user_api="blas"):  # same sums on any core count
            variances, basis = np.linalg.eigh(np.cov(fitted, rowvar=False))
            whitening = basis / np.sqrt(variances.clip(0) + RIDGE * variances.mean() + SMALLEST)
            whitening = whitening[:, ::-1]  # largest variance first
            points = (fitted - mean) @ whitening[:, : BANDS[-1]]
        lower, upper = np.quantile(points[:, : BANDS[0]], (tail, 1 - tail), axis=0)
        # Images that are all alike have a range of 0.
        ends = lower.clip(max=-NARROW), upper.clip(min=NARROW)
        parts = mean, whitening, points, *ends, np.ones(())
        cloud = Cloud(*(jnp.asarray(x, jnp.float32) for x in parts))
        components = _components(cloud, jnp.asarray(others, jnp.float32))
        bands = np.asarray(jax.jit(_band_distances)(cloud, components))
        scale = np.quantile(bands, region, axis=0).clip(SMALLEST)
        clouds.append(cloud.replace(scale=jnp.asarray(scale, jnp.float32)))
        distances.append((bands / scale).max(axis=1))
    limit = max(np.quantile(np.max(distances, axis=0), region), SMALLEST)
    return Typical(kinds, tuple(clouds), jnp.asarray(limit, jnp.float32))


def distance(typical: Typical, images: Images) -> Array:
    """Distance of images to random ones [N], relative to the limit: typical ones have at most 1.

    It is the largest of several: of each kind of features, in each band of principal components,
    and along each of the largest components. All components together would hide that one of them,
    such as brightness, is far from any random image's.
    """
    return distance_of(typical, [features(images) for features in typical.features])


def distance_of(typical: Typical, values: Sequence[Array]) -> Array:
    """The same of the images' features, each kind [N, F]."""
    found = []
    for some, cloud in zip(values, typical.clouds, strict=True):
        components = _components(cloud, some)
        bands = _band_distances(cloud, components) / (cloud.scale[None] * typical.limit)
        found += [jnp.max(bands, axis=1), _reach(cloud, components)]
    return jnp.max(jnp.stack(found), axis=0)


def _components(cloud: Cloud, values: Array) -> Array:
    """Principal components of features [N, F], largest first."""
    return jnp.matmul(values - cloud.mean[None], cloud.whitening, precision="highest")


def _band_distances(cloud: Cloud, components: Array) -> Array:
    """Squared distances [N, bands] of components [N, F] in each band that they have.

    Of the large components to the nearest random image, because a rare kind of images is as typical
    as a common one; of the small ones to the mean.
    """
    count = components.shape[1]
    distances = [
        jnp.min(_squared_distances(components[:, a:b], cloud.points[:, a:b]), axis=1) / (b - a)
        for a, b in itertools.pairwise((0, *(min(end, count) for end in BANDS)))
        if b > a
    ]
    if count > BANDS[-1]:
        distances.append(jnp.mean(components[:, BANDS[-1] :] ** 2, axis=1))
    return jnp.stack(distances, axis=1)


def _reach(cloud: Cloud, components: Array) -> Array:
    """Squared ratio [N] of components to the ends of random images' range, of the largest ratio.

    Where random images are diverse, their nearest neighbours are so far that a blank image is near
    enough; but it is brighter and has less contrast than any.
    """
    large = components[:, : BANDS[0]]
    ends = jnp.where(large < 0, cloud.lower[None], cloud.upper[None])
    return jnp.max((large / ends) ** 2, axis=1)


def _squared_distances(x: Array, y: Array) -> Array:
    """Between rows of x [N, F] and y [R, F]: [N, R]."""
    squares = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)[None]
    return jnp.maximum(squares - 2 * jnp.matmul(x, y.T, precision="highest"), 0)


def small(images: Images) -> Array:
    """Small versions of images as rows [N, F]."""
    return _resized(images, SIDE).reshape(len(images), -1)


def details(images: Images) -> Array:
    """Contrast of details of three sizes in 4 x 4 regions, each colour alone: rows [N, F]."""
    side = int(2 ** np.clip(np.ceil(np.log2(min(images.shape[1:3]))), 5, 7))
    images, rows = _resized(images, side), []
    for _ in range(3):
        half = _pooled(images, 2)
        blurred = jnp.repeat(jnp.repeat(half, 2, axis=1), 2, axis=2)
        contrast = _pooled((images - blurred) ** 2, images.shape[1] // 4)
        rows.append(jnp.log(contrast + 1e-4).reshape(len(images), -1))
        images = half
    return jnp.hstack(rows)


def colours(images: Images) -> Array:
    """Mean and standard deviation of each colour: rows [N, 6]."""
    images = _resized(images, SIDE)
    means, variances = (f(images, axis=(1, 2)) for f in (jnp.mean, jnp.var))
    return jnp.hstack([means, jnp.sqrt(variances + 1e-6)])  # a root of 0 has no gradient


def _resized(images: Images, side: int) -> Array:
    if images.shape[1:3] == (side, side):
        return images
    shape = (len(images), side, side, 3)
    return jax.image.resize(images, shape, "linear", precision=jax.lax.Precision.HIGHEST)


def _pooled(images: Array, size: int) -> Array:
    """Means of squares of `size` pixels."""
    N, H, W, C = images.shape
    return images.reshape(N, H // size, size, W // size, size, C).mean(axis=(2, 4))


def untrained(images: Images) -> Array:
    """Features of a convolutional network with random weights [N, 512]: a second opinion, which no
    search sees."""
    x = _resized(images, 64)
    random = np.random.default_rng(0)
    for channels in (16, 32, 32):
        kernel = random.normal(size=(5, 5, x.shape[-1], channels)) / np.sqrt(25 * x.shape[-1])
        x = jax.lax.conv_general_dilated(
            x, jnp.asarray(kernel, x.dtype), (2, 2), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest",
        )  # fmt: skip
        x = jax.nn.relu(x)
    return _pooled(x, 2).reshape(len(x), -1)


KINDS: tuple[Features, ...] = (small, details, colours)
"""The features that a search sees."""
