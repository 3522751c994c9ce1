"""Frozen generators: key -> latents, and latents -> images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax

from qdgs_jax.errors import CheckpointError, ConfigError, did_you_mean
from qdgs_jax.models import stylegan2, vae
from qdgs_jax.models.checkpoint import read_tensors, sha256
from qdgs_jax.typing import Images, Key, Latents, Params

BUILT_IN = {"shapes-vae": Path(__file__).parent / "assets" / "shapes_vae"}
"""Generators that come with the package: name -> folder."""

WEIGHTS = "model.safetensors"

FAMILIES = {
    "shapes VAE": "decoder.fc1.weight",
    "StyleGAN2": "synthesis.b4.const",
}
"""Family of networks -> a tensor that all its files have and no other family's."""


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
    """Loads a generator of any family: a built-in name, or the path of a file or folder of weights.

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
    name = model if model in BUILT_IN else path.name
    match family_of(path):
        case "StyleGAN2":
            return _stylegan2(name, path)
        case _:
            return _shapes_vae(name, path)


def family_of(path: Path) -> str:
    """The key of FAMILIES that a file or folder of weights belongs to, told by its content.

    Raises:
        CheckpointError: the weights cannot be read or belong to none.
    """
    weights = _weights(path)
    if stylegan2.is_pickle(weights):
        return "StyleGAN2"
    tensors = read_tensors(weights)
    for family, tensor in FAMILIES.items():
        if tensor in tensors:
            return family
    raise CheckpointError(
        f"{path} holds no generator that is known: give the weights of a {' or a '.join(FAMILIES)}."
    )


def _weights(path: Path) -> Path:
    return path / WEIGHTS if path.is_dir() else path


def _shapes_vae(name: str, path: Path) -> tuple[Generator, Params]:
    config, params = vae.load(path)

    def render(params: Params, latents: Latents) -> Images:
        # On GPUs and TPUs the default is TF32 or bfloat16; measures live in +-0.1.
        with jax.default_matmul_precision("highest"):
            return vae.decode(config, params, latents)

    generator = Generator(
        name=name,
        sha256=sha256(_weights(path)),
        latent_size=config.latent_size,
        image_size=config.image_size,
        sample=lambda key, n: jax.random.normal(key, (n, config.latent_size)),
        render=render,
    )
    return generator, params


def _stylegan2(name: str, path: Path) -> tuple[Generator, Params]:
    config, params = stylegan2.load(path)

    def render(params: Params, latents: Latents) -> Images:
        ws = stylegan2.map_latents(config, params, latents)
        images = stylegan2.synthesize(config, params, ws)
        return jax.numpy.clip((images + 1) / 2, 0, 1)

    generator = Generator(
        name=name,
        sha256=sha256(_weights(path)),
        latent_size=config.latent_size,
        image_size=config.image_size,
        sample=lambda key, n: jax.random.normal(key, (n, config.latent_size)),
        render=render,
    )
    return generator, params
