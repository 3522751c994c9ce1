"""What the discriminators of DCGAN and StyleGAN2 share: minibatch deviation, and their inputs."""

from typing import Protocol

import jax.numpy as jnp

from qdgs_jax.typing import Array

EPSILON = 1e-8


class Inputs(Protocol):
    """A discriminator's config, as far as it describes what goes in."""

    @property
    def image_size(self) -> int: ...  # pixels a side
    @property
    def image_channels(self) -> int: ...
    @property
    def label_size(self) -> int: ...  # classes, or 0


def check_inputs(config: Inputs, images: Array, labels: Array | None) -> None:
    """Compares shapes with a config's.

    Raises:
        ValueError: Images or labels have another shape, or labels are missing or superfluous.
    """
    side, channels, classes = config.image_size, config.image_channels, config.label_size
    if images.ndim != 4 or images.shape[1:] != (side, side, channels):
        raise ValueError(
            f"images are {images.shape}, this discriminator takes [N, {side}, {side}, {channels}]"
        )
    shape = None if labels is None else labels.shape
    if shape != ((len(images), classes) if classes else None):
        wanted = f"[{len(images)}, {classes}]" if classes else "none"
        raise ValueError(f"labels are {shape}, this discriminator takes {wanted}")


def append_deviation(x: Array, group_size: int) -> Array:
    """Appends one feature map: how much the images of a group differ; [N, H, W, C + 1].

    By it a discriminator notices a generator that makes few kinds of images (Karras et al., arXiv
    1710.10196, section 3). It is one number for each group: the standard deviation of every feature
    over the group's images, then the mean of all features.

    A group is `group_size` consecutive images, or the whole batch where that is smaller. A batch
    that is divided over devices in multiples of the group thus needs no communication. NVIDIA's
    code takes every (N / group_size)-th image instead: equivalent for images in random order.

    Args:
        x: [N, H, W, C].
        group_size: a divisor of N, or more than N.

    Raises:
        ValueError: N is no multiple of the group.
    """
    n, height, width, channels = x.shape
    size = min(group_size, n)
    if n % size:
        raise ValueError(f"a batch of {n} is no multiple of the discriminator's groups of {size}")
    groups = x.reshape(n // size, size, height, width, channels)
    deviations = jnp.sqrt(groups.var(axis=1) + EPSILON)  # [groups, H, W, C]
    means = jnp.repeat(deviations.mean(axis=(1, 2, 3)), size)
    maps = jnp.broadcast_to(means[:, None, None, None], (n, height, width, 1))
    return jnp.concatenate([x, maps], axis=-1)
