"""Images -> a trained generator, as StyleGAN2 is trained (arXiv 1912.04958 and 2006.06676).

    networks = DCGANs(dcgan.DCGANConfig(), dcgan_discriminator.DiscriminatorConfig())
    state = fit(config, networks, start(config, networks, key), key, images, checkpoints=folder)
    networks.save(out, state.average)

Non-saturating logistic losses, R1 and path length regularisation every few steps, a moving average
of the generator, and adaptive augmentation. On several devices each computes its part of every
batch, and the discriminator compares images of the whole batch.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from qdgs_jax import sharding
from qdgs_jax.errors import ConfigError
from qdgs_jax.models.precision import Precision, for_device
from qdgs_jax.training import ada, adversarial, loop
from qdgs_jax.training.config import GANConfig
from qdgs_jax.training.gan_networks import Networks, mix_styles
from qdgs_jax.typing import Array, Images, Key, Params


class Penalty(Protocol):
    """What is added to the generator's loss; an immutable value, as programs depend on it."""

    def __call__(self, params: Params, images: Images) -> Array:
        """Weights and a batch of generated images, about [-1, 1] -> []."""
        ...


class GANState(struct.PyTreeNode):
    """The state of a training."""

    generator: Params
    average: Params
    """The moving average of the generator's weights: those to use."""
    discriminator: Params
    generator_optimiser: optax.OptState
    discriminator_optimiser: optax.OptState
    path_length: Array  # [], its running mean
    augmentation: ada.ADAState
    step: Array  # [] int32


def start(
    config: GANConfig,
    networks: Networks,
    key: Key,
    *,
    generator: Params | None = None,
    discriminator: Params | None = None,
) -> GANState:
    """The state before a training, from random weights or from given ones."""
    random = networks.init(key)
    # Copies, since `train` donates them.
    of_generator = jax.tree.map(jnp.copy, random[0] if generator is None else generator)
    of_discriminator = jax.tree.map(jnp.copy, random[1] if discriminator is None else discriminator)
    return GANState(
        generator=of_generator,
        average=jax.tree.map(jnp.copy, of_generator),
        discriminator=of_discriminator,
        generator_optimiser=_generator_optimiser(config).init(of_generator),
        discriminator_optimiser=_discriminator_optimiser(config).init(of_discriminator),
        path_length=jnp.zeros(()),
        augmentation=ada.init_ada(),
        step=jnp.zeros((), jnp.int32),
    )


@functools.partial(
    jax.jit, static_argnames=("config", "networks", "penalty"), donate_argnames=("state",)
)
def train(
    config: GANConfig,
    networks: Networks,
    state: GANState,
    key: Key,
    batches: Array,
    *,
    penalty: Penalty | None = None,
    penalty_params: Params = None,
) -> tuple[GANState, dict[str, Array]]:
    """One step of both networks for each of several batches.

    Args:
        key: the same in each call of a training.
        batches: real images [T, N, H, W, C] uint8.
        penalty: see `Penalty`.

    Returns:
        The state, and figures [T]: the losses of both without regularisation, the mean sign of the
        discriminator's logits of real images, 1 where it knows all of them, and the probability of
        augmentations.
    """
    step = _Step(config, networks, penalty, for_device(config.precision))

    def one(state: GANState, images: Array) -> tuple[GANState, dict[str, Array]]:
        real = sharding.by_rows(images).astype(float) / 127.5 - 1  # JAX's default, float32
        return step(state, jax.random.fold_in(key, state.step), real, penalty_params)

    return sharding.replicated(jax.lax.scan(one, state, batches))


@dataclasses.dataclass(frozen=True)
class _Step:
    """One step; a phase each for losses and regularisations, with their own random numbers."""

    config: GANConfig
    networks: Networks
    penalty: Penalty | None
    precision: Precision

    def __call__(
        self, state: GANState, key: Key, real: Images, penalty_params: Params
    ) -> tuple[GANState, dict[str, Array]]:
        config = self.config
        keys = jax.random.split(key, 4)
        state, generator_loss = self.generator_phase(state, keys[0], len(real), penalty_params)
        if config.path_weight:
            due = state.step % config.path_interval == 0
            regularise = functools.partial(self.path_phase, key=keys[1], count=len(real))
            state = jax.lax.cond(due, regularise, lambda state: state, state)
        state, discriminator_loss, logits = self.discriminator_phase(state, keys[2], real)
        if config.r1_gamma != 0:
            due = state.step % config.r1_interval == 0
            regularise = functools.partial(self.r1_phase, key=keys[3], real=real)
            state = jax.lax.cond(due, regularise, lambda state: state, state)
        if config.ada:
            adapted = ada.update_ada(config.ada, state.augmentation, logits)
            state = state.replace(augmentation=adapted)
        average = _averaged(config, state, len(real))
        state = state.replace(average=average, step=state.step + 1)
        figures = {
            "generator": generator_loss,
            "discriminator": discriminator_loss,
            "sign": jnp.sign(logits).mean(),
            "augmented": state.augmentation.probability,
        }
        return state, figures

    def render(self, params: Params, key: Key, count: int) -> tuple[Array, Images]:
        """Styles and images of random latents."""
        networks = self.networks
        latent_key, mix_key, noise_key = jax.random.split(key, 3)
        mixed = self.config.style_mixing > 0
        latents = jax.random.normal(latent_key, ((1 + mixed) * count, networks.latent_size))
        styles = networks.styles(params, sharding.by_rows(latents), self.precision)
        if mixed:
            styles = mix_styles(mix_key, self.config.style_mixing, styles[:count], styles[count:])
        images = networks.synthesize(params, noise_key, styles, self.precision)
        return styles, sharding.by_rows(images)

    def judge(self, params: Params, key: Key, state: GANState, images: Images) -> Array:
        """Logits of images, which are changed at random before."""
        if self.config.ada:
            images = ada.augment(self.config.ada, key, state.augmentation.probability, images)
        return self.networks.discriminate(params, images, self.precision)

    def generator_phase(
        self, state: GANState, key: Key, count: int, penalty_params: Params
    ) -> tuple[GANState, Array]:
        render_key, judge_key = jax.random.split(key)

        def loss(params: Params) -> tuple[Array, tuple[Array, Array]]:
            styles, images = self.render(params, render_key, count)
            logits = self.judge(state.discriminator, judge_key, state, images)
            value = adversarial.generator_loss(logits)
            added = self.penalty(penalty_params, images) if self.penalty else 0.0
            return value + added, (value, styles)

        gradient, (value, styles) = jax.grad(loss, has_aux=True)(state.generator)
        state = self.moved_generator(state, gradient)
        moved = self.networks.with_mean_style(state.generator, styles)
        return state.replace(generator=moved), value

    def path_phase(self, state: GANState, key: Key, count: int) -> GANState:
        config, networks = self.config, self.networks
        style_key, noise_key, length_key = jax.random.split(key, 3)
        latents = jax.random.normal(style_key, (max(1, count // 2), networks.latent_size))

        def loss(params: Params) -> tuple[Array, Array]:
            styles = networks.styles(params, latents, self.precision)

            def synthesize(styles: Array) -> Images:
                return networks.synthesize(params, noise_key, styles, self.precision)

            value, mean = adversarial.path_length_penalty(
                synthesize, length_key, styles, state.path_length
            )
            return config.path_interval * config.path_weight * value, mean

        gradient, mean = jax.grad(loss, has_aux=True)(state.generator)
        return self.moved_generator(state, gradient).replace(path_length=mean)

    def discriminator_phase(
        self, state: GANState, key: Key, real: Images
    ) -> tuple[GANState, Array, Array]:
        """The state, the loss, and the logits of real images."""
        render_key, fake_key, real_key = jax.random.split(key, 3)
        _, fake = self.render(state.generator, render_key, len(real))

        def loss(params: Params) -> tuple[Array, Array]:
            of_fake = self.judge(params, fake_key, state, fake)
            of_real = self.judge(params, real_key, state, real)
            return adversarial.discriminator_loss(of_real, of_fake), of_real

        (value, logits), gradient = jax.value_and_grad(loss, has_aux=True)(state.discriminator)
        return self.moved_discriminator(state, gradient), value, logits

    def r1_phase(self, state: GANState, key: Key, real: Images) -> GANState:
        def loss(params: Params) -> Array:
            judge = functools.partial(self.judge, params, key, state)
            penalty = adversarial.r1_penalty(judge, real, self.gamma(real))
            return self.config.r1_interval * penalty

        return self.moved_discriminator(state, jax.grad(loss)(state.discriminator))

    def gamma(self, real: Images) -> float:
        gamma = self.config.r1_gamma
        if gamma == "auto":
            return adversarial.r1_gamma(real.shape[1], len(real))
        return gamma

    def moved_generator(self, state: GANState, gradient: Params) -> GANState:
        updates, optimiser = _generator_optimiser(self.config).update(
            gradient, state.generator_optimiser
        )
        moved = optax.apply_updates(state.generator, updates)
        return state.replace(generator=moved, generator_optimiser=optimiser)

    def moved_discriminator(self, state: GANState, gradient: Params) -> GANState:
        updates, optimiser = _discriminator_optimiser(self.config).update(
            gradient, state.discriminator_optimiser
        )
        moved = optax.apply_updates(state.discriminator, updates)
        return state.replace(discriminator=moved, discriminator_optimiser=optimiser)


def fit(
    config: GANConfig,
    networks: Networks,
    state: GANState,
    key: Key,
    images: np.ndarray,
    *,
    penalty: Penalty | None = None,
    penalty_params: Params = None,
    checkpoints: Path | None = None,
) -> GANState:
    """Trains until the discriminator has seen `config.images` real images.

    Args:
        state: of `start`.
        images: [N, H, W, C] uint8, in memory or in a memory-mapped file; each epoch uses each at
            most once, in random order.
        checkpoints: folder of states, from which an interrupted training continues, see
            `training.loop`.

    Raises:
        ConfigError: there are fewer images than a batch has, they are of another size than the
            networks', or an option has no effect on these networks.
        CheckpointError: there are checkpoints, but none can be read.
        OSError: a checkpoint cannot be written.
    """
    _require_fit(config, networks, images)
    order_key, train_key = jax.random.split(key)
    state, train_key, penalty_params = sharding.on_all_devices((state, train_key, penalty_params))

    def batches(some: range) -> np.ndarray:
        return images[loop.batch_rows(order_key, len(images), config.batch_size, some)]

    def train_some(state: GANState, some: np.ndarray) -> tuple[GANState, dict[str, Array]]:
        return train(
            config, networks, state, train_key, jnp.asarray(some),
            penalty=penalty, penalty_params=penalty_params,
        )  # fmt: skip

    steps = max(1, config.images // config.batch_size)
    return loop.train_all(train_some, state, batches, steps=steps, checkpoints=checkpoints)


def _require_fit(config: GANConfig, networks: Networks, images: np.ndarray) -> None:
    if images.shape[1:] != networks.image_shape:
        shapes = [" x ".join(map(str, shape)) for shape in (images.shape[1:], networks.image_shape)]
        raise ConfigError(
            f"The images are {shapes[0]} (height, width, channels), the generator's {shapes[1]}: "
            "resize the images, or choose another generator."
        )
    if len(images) < config.batch_size:
        raise ConfigError(
            f"There are {len(images)} images, fewer than a batch of {config.batch_size}: lower "
            "batch_size."
        )
    if config.batch_size % networks.group_size:
        raise ConfigError(
            f"A batch of {config.batch_size} is no multiple of the discriminator's groups of "
            f"{networks.group_size} images: change batch_size."
        )
    if not networks.layers and (config.path_weight or config.style_mixing):
        raise ConfigError(
            "path_weight and style_mixing have no effect on a DCGAN, which has no styles: leave "
            "them out."
        )


def _averaged(config: GANConfig, state: GANState, batch_size: int) -> Params:
    """The moving average, whose half-life grows with the training up to the config's.

    StyleGAN2's code averages with a half-life in images; its ramp makes early averages of small
    trainings forget their random start.
    """
    seen = (state.step + 1) * batch_size
    half_life = jnp.minimum(config.average_half_life, 0.05 * seen)
    kept = 0.5 ** (batch_size / half_life)
    return jax.tree.map(
        lambda average, new: new + kept * (average - new), state.average, state.generator
    )


def _generator_optimiser(config: GANConfig) -> optax.GradientTransformation:
    interval = config.path_interval if config.path_weight else None
    return _adam(config, config.generator_rate, interval)


def _discriminator_optimiser(config: GANConfig) -> optax.GradientTransformation:
    interval = config.r1_interval if config.r1_gamma != 0 else None
    return _adam(config, config.discriminator_rate, interval)


def _adam(config: GANConfig, rate: float, interval: int | None) -> optax.GradientTransformation:
    """Adam; with one more step for each `interval`, rates and momenta are those of fewer (arXiv
    1912.04958, appendix B)."""
    share = interval / (interval + 1) if interval else 1.0
    return optax.adam(rate * share, config.momentum**share, 0.99**share)
