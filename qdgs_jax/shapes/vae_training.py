"""Training of the shapes VAE; one command and seed reproduce the asset."""

import dataclasses
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp

from qdgs_jax import folders
from qdgs_jax.models import vae
from qdgs_jax.shapes.drawings import COLOURS, SHAPES, draw
from qdgs_jax.shapes.model_cards import write_card
from qdgs_jax.training.descent import Data, Loss, OptimiserConfig, minimise
from qdgs_jax.typing import Array, Key, Params

_OPTIMISER = OptimiserConfig(steps=6000)
_VAE = vae.VAEConfig()


@dataclasses.dataclass(frozen=True)
class VAETrainingConfig:
    """How the shapes VAE is trained."""

    optimiser: OptimiserConfig = _OPTIMISER
    model: vae.VAEConfig = _VAE
    colour_bias: float = 0.98
    beta: float = 75.0
    """Weight of the latents' KL divergence from a standard normal distribution. It rises from 0
    over three quarters of the training: the full weight from the start loses rare groups."""


def train_vae(
    out: str | Path, *, seed: int = 0, training: VAETrainingConfig = VAETrainingConfig()
) -> None:
    """Trains the shapes VAE on a colour-biased set and writes its folder.

    Raises:
        ConfigError: `out` is there already.
    """
    config = training.model
    with folders.creating(Path(out), again="train again") as folder:
        init_key, train_key = jax.random.split(jax.random.key(seed))
        params = minimise(
            make_loss(training), vae.init(config, init_key), train_key, training.optimiser
        )
        vae.save(folder, config, params)
        errors = reconstruction_errors(config, params, jax.random.key(seed + 1))
        quality = "root mean square error", errors
        write_card(
            folder, "vae", training.optimiser, quality,
            seed=seed, bias=training.colour_bias, beta=training.beta,
        )  # fmt: skip


def make_loss(training: VAETrainingConfig) -> Loss:
    """Reconstruction loss of new drawings, plus the weighted KL divergence of their latents."""
    config = training.model

    def loss(params: Params, key: Key, progress: Array, data: Data) -> Array:
        draw_key, noise_key = jax.random.split(key)
        images = draw(
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

    return loss


def reconstruction_errors(
    config: vae.VAEConfig, params: Params, key: Key, *, count: int = 400
) -> dict[str, float]:
    """Root mean square error of pixels of decoded means, by colour and shape, over new drawings."""
    drawings = draw(key, count, colour_bias=0.5, image_size=config.image_size)
    mean, _ = vae.encode(config, params, drawings.images)
    squares = (vae.decode(config, params, mean) - drawings.images) ** 2
    errors = {}
    for colour, shape in itertools.product(range(2), range(2)):
        group = (drawings.colour == colour) & (drawings.shape == shape)
        name = f"{list(COLOURS)[colour]} {SHAPES[shape]}"
        errors[name] = float(jnp.sqrt(squares[group].mean()))
    return errors


def _cross_entropy(decoded: Array, images: Array) -> Array:
    p = jnp.clip(decoded, 1e-6, 1 - 1e-6)
    return -(images * jnp.log(p) + (1 - images) * jnp.log1p(-p))
