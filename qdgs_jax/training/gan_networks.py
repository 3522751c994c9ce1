"""A generator and its discriminator, as a GAN's training sees them."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp

from qdgs_jax.models import dcgan, stylegan2
from qdgs_jax.models.dcgan import discriminator as dcgan_discriminator
from qdgs_jax.models.precision import Precision, activation_dtype, matmul_precision, widen
from qdgs_jax.models.stylegan2 import discriminator as stylegan2_discriminator
from qdgs_jax.typing import Array, Images, Key, Latents, Params

STYLE_MOMENTUM = 0.998
"""Of the mean style, in each step (StyleGAN2's `w_avg`)."""


class Networks(Protocol):
    """What `training.gan` needs of two networks; an immutable value, as programs depend on it."""

    @property
    def latent_size(self) -> int:
        """Numbers of a latent, standard normal a priori."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        ...

    @property
    def layers(self) -> int:
        """Styles that an image takes; 0: there are none, and latents become images directly."""
        ...

    @property
    def group_size(self) -> int:
        """A batch is a multiple of it."""
        ...

    def init(self, key: Key) -> tuple[Params, Params]:
        """Random weights of generator and discriminator."""
        ...

    def styles(self, params: Params, latents: Latents, precision: Precision) -> Array:
        """Latents [N, D] -> styles [N, L, W], or the latents."""
        ...

    def synthesize(self, params: Params, key: Key, styles: Array, precision: Precision) -> Images:
        """Styles -> images [N, H, W, C], about [-1, 1]; `key` draws noise."""
        ...

    def discriminate(self, params: Params, images: Images, precision: Precision) -> Array:
        """Logits [N], high where an image in [-1, 1] looks real."""
        ...

    def with_mean_style(self, params: Params, styles: Array) -> Params:
        """The generator's weights, its mean style moved towards that of a batch."""
        ...

    def save(self, folder: Path, params: Params) -> Path:
        """Writes the generator's weights; returns what `generators.load` reads."""
        ...


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """Those that follow from two configs."""

    generator: Any
    discriminator: Any

    @property
    def latent_size(self) -> int:
        return self.generator.latent_size

    @property
    def image_shape(self) -> tuple[int, int, int]:
        side = self.generator.image_size
        return side, side, self.generator.image_channels

    @property
    def group_size(self) -> int:
        return self.discriminator.group_size


@dataclasses.dataclass(frozen=True)
class DCGANs(_Sizes):
    """A DCGAN."""

    generator: dcgan.DCGANConfig
    discriminator: dcgan_discriminator.DiscriminatorConfig
    layers: ClassVar[int] = 0

    def init(self, key: Key) -> tuple[Params, Params]:
        one, other = jax.random.split(key)
        return dcgan.init(self.generator, one), dcgan_discriminator.init(self.discriminator, other)

    def styles(self, params: Params, latents: Latents, precision: Precision) -> Array:
        return latents

    def synthesize(self, params: Params, key: Key, styles: Array, precision: Precision) -> Images:
        if dtype := activation_dtype(precision):
            params, styles = jax.tree.map(lambda leaf: leaf.astype(dtype), (params, styles))
        with matmul_precision(precision):
            return 2 * widen(dcgan.generate(self.generator, params, styles)) - 1

    def discriminate(self, params: Params, images: Images, precision: Precision) -> Array:
        return dcgan_discriminator.discriminate(
            self.discriminator, params, images, precision=precision
        )

    def with_mean_style(self, params: Params, styles: Array) -> Params:
        return params

    def save(self, folder: Path, params: Params) -> Path:
        return dcgan.save(folder, self.generator, params)


@dataclasses.dataclass(frozen=True)
class StyleGAN2s(_Sizes):
    """An unconditional StyleGAN2."""

    generator: stylegan2.StyleGAN2Config
    discriminator: stylegan2_discriminator.DiscriminatorConfig

    @property
    def layers(self) -> int:
        return self.generator.layers

    def init(self, key: Key) -> tuple[Params, Params]:
        one, other = jax.random.split(key)
        discriminator = stylegan2_discriminator.init(self.discriminator, other)
        return stylegan2.init(self.generator, one), discriminator

    def styles(self, params: Params, latents: Latents, precision: Precision) -> Array:
        return stylegan2.map_latents(self.generator, params, latents, precision=precision)

    def synthesize(self, params: Params, key: Key, styles: Array, precision: Precision) -> Images:
        random = self.generator.noise
        return stylegan2.synthesize(
            self.generator, params, styles,
            noise="random" if random else "none", key=key if random else None, precision=precision,
        )  # fmt: skip

    def discriminate(self, params: Params, images: Images, precision: Precision) -> Array:
        return stylegan2_discriminator.discriminate(
            self.discriminator, params, images, precision=precision
        )

    def with_mean_style(self, params: Params, styles: Array) -> Params:
        mean = params["mean_style"]
        batch = jax.lax.stop_gradient(styles[:, 0].mean(axis=0))
        return {**params, "mean_style": batch + STYLE_MOMENTUM * (mean - batch)}

    def save(self, folder: Path, params: Params) -> Path:
        stylegan2.save(folder, self.generator, params)
        return folder


def mix_styles(key: Key, share: float, styles: Array, others: Array) -> Array:
    """Style mixing (arXiv 1812.04948): with probability `share`, an image takes the `others` from a
    random layer on.

    Args:
        styles: [N, L, W].
        others: the same of other latents.
    """
    count, layers = styles.shape[:2]
    one, other = jax.random.split(key)
    first = jax.random.randint(one, (count,), 1, layers)
    first = jnp.where(jax.random.uniform(other, (count,)) < share, first, layers)
    return jnp.where((jnp.arange(layers)[None] < first[:, None])[..., None], styles, others)
