"""Losses and penalties of adversarial training, as functions of logits and gradients.

The non-saturating logistic loss (Goodfellow et al., arXiv 1406.2661), R1 (Mescheder et al., arXiv
1801.04406) and path length regularisation (Karras et al., arXiv 1912.04958, section 3.2).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from qdgs_jax.typing import Array, Key

PATH_LENGTH_DECAY = 0.01
"""Share of a batch in the running mean of path lengths."""


def generator_loss(fake_logits: Array) -> Array:
    """The mean of -log sigmoid(D(G(z))); logits [N], higher is more real."""
    return jax.nn.softplus(-fake_logits).mean()


def discriminator_loss(real_logits: Array, fake_logits: Array) -> Array:
    """The mean of -log sigmoid(D(x)), and that of -log(1 - sigmoid(D(G(z)))), summed; logits [N]
    and [M]."""
    return jax.nn.softplus(-real_logits).mean() + jax.nn.softplus(fake_logits).mean()


def r1_gamma(image_size: int, batch_size: int) -> float:
    """A usual weight of R1: 0.0002 side^2 / batch (StyleGAN2-ADA's automatic configuration)."""
    return 0.0002 * image_size**2 / batch_size


def r1_penalty(discriminate: Callable[[Array], Array], images: Array, gamma: float) -> Array:
    """R1: gamma / 2 times the mean squared norm of the logits' gradient at real images.

    Args:
        discriminate: real images [N, H, W, C] -> logits [N]. Differentiated twice in reverse mode.
        images: [N, H, W, C]. Those that an augmentation changes are changed within `discriminate`.
        gamma: see `r1_gamma`.
    """
    gradients = jax.grad(lambda images: discriminate(images).sum())(images)
    return gamma / 2 * jnp.square(gradients).sum(axis=(1, 2, 3)).mean()


def path_length_penalty(
    synthesize: Callable[[Array], Array], key: Key, styles: Array, running_mean: Array
) -> tuple[Array, Array]:
    """How much the lengths |J^T y| differ from their running mean a: E (|J^T y| - a)^2.

    J is the Jacobian of an image with respect to its styles, and y an image of normal noise over
    the square root of its pixels. The square of a length is the mean over layers. The mean a
    includes this batch, and is a constant to gradients.

    Args:
        synthesize: styles -> images [N, H, W, C]. Differentiated twice in reverse mode.
        key: of the noise.
        styles: [N, L, W].
        running_mean: [], 0 at first.

    Returns:
        The penalty [], without weight, and the new running mean [].
    """
    images, pull_back = jax.vjp(synthesize, styles)
    noise = jax.random.normal(key, images.shape, images.dtype)
    (gradients,) = pull_back(noise / math.sqrt(images.shape[1] * images.shape[2]))
    lengths = jnp.sqrt(jnp.square(gradients).sum(axis=2).mean(axis=1))  # [N]
    running_mean += PATH_LENGTH_DECAY * (jax.lax.stop_gradient(lengths).mean() - running_mean)
    return jnp.square(lengths - running_mean).mean(), running_mean
