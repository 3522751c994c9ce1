"""Frozen generators: key -> latents, and latents -> images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax

from qdgs_jax.errors import ConfigError, did_you_mean
from qdgs_jax.models import vae
from qdgs_jax.models.checkpoint import sha256
from qdgs_jax.models.vae.params import WEIGHTS
from qdgs_jax.typing import Images, Key, Latents, Params

BUILT_IN = {"shapes-vae": Path(__file__).parent / "assets" / "shapes_vae"}
"""Generators that come with the package: name -> folder."""


@dataclass(frozen=True)
class Generator:
    """A generator without its weights, which are arguments of `render`."""

    name: str
    """Built-in name, or last part of the path."""
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


def load(model: str) -> tuple[Generator, Params]:
    """Loads a shapes VAE: a built-in name, or the path of a file or folder of weights.

    Raises:
        ConfigError: there is no such name or path.
        CheckpointError: the file cannot be read or holds something else.
    """
    path = BUILT_IN.get(model, Path(model).expanduser())
    if not path.exists():
        raise ConfigError(
            f"There is no generator '{model}'{did_you_mean(model, BUILT_IN)}: give the path of a "
            f"checkpoint or the name of a built-in, {', '.join(BUILT_IN)}."
        )
    config, params = vae.load(path)

    def render(params: Params, latents: Latents) -> Images:
        # On GPUs and TPUs the default is TF32 or bfloat16; measures live in +-0.1.
        with jax.default_matmul_precision("highest"):
            return vae.decode(config, params, latents)

    generator = Generator(
        name=model if model in BUILT_IN else path.name,
        sha256=sha256(path / WEIGHTS if path.is_dir() else path),
        latent_size=config.latent_size,
        image_size=config.image_size,
        sample=lambda key, n: jax.random.normal(key, (n, config.latent_size)),
        render=render,
    )
    return generator, params
