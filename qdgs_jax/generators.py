"""Frozen generators: key -> latents, and latents -> images."""

from collections.abc import Callable
from dataclasses import dataclass

from qdgs_jax.typing import Images, Key, Latents, Params


@dataclass(frozen=True)
class Generator:
    """A generator without its weights, which are arguments of `render`."""

    name: str
    sha256: str
    """Of the file of weights, in hex."""
    latent_size: int
    """D."""
    image_size: int
    """Side of its square images, in pixels."""
    sample: Callable[[Key, int], Latents]
    """(key, n) -> random latents [n, D]."""
    render: Callable[[Params, Latents], Images]
    """(params, latents [N, D]) -> images [N, H, W, 3], RGB in [0, 1]."""
