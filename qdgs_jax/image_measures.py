"""Plain functions of images that a measure can name in place of prompts."""

import importlib
from collections.abc import Callable

import jax
import jax.numpy as jnp

from qdgs_jax.config import MeasureConfig
from qdgs_jax.errors import ConfigError, did_you_mean
from qdgs_jax.typing import Array, Images

ImageMeasure = Callable[[Images], Array]  # [N, H, W, 3] -> [N]


def brightness(images: Images) -> Array:
    """Mean luma (Rec. 601), from 0 (black) to 1 (white)."""
    red, green, blue = jnp.moveaxis(images, -1, 0)
    return jnp.mean(0.299 * red + 0.587 * green + 0.114 * blue, axis=(1, 2))


def warmth(images: Images) -> Array:
    """Mean red minus mean blue, from -1 (blue) to 1 (red)."""
    return jnp.mean(images[..., 0] - images[..., 2], axis=(1, 2))


def coverage(images: Images) -> Array:
    """How much of a white page is inked, from 0 (all white) to 1 (saturated or dark throughout)."""
    return jnp.mean(1 - jnp.min(images, axis=-1), axis=(1, 2))


IMAGE_MEASURES: dict[str, ImageMeasure] = {
    "brightness": brightness,
    "warmth": warmth,
    "coverage": coverage,
}


def load(measure: MeasureConfig, image_size: int) -> ImageMeasure:
    """The function that a measure names, tried on shapes alone.

    Raises:
        ConfigError: it does not exist or does not give one number an image.
    """
    function = IMAGE_MEASURES.get(measure.function) or _import(measure)
    images = jax.ShapeDtypeStruct((2, image_size, image_size, 3), jnp.float32)
    shape = getattr(jax.eval_shape(function, images), "shape", None)
    if shape != (2,):
        raise ConfigError(
            f"The function '{measure.function}' of measure '{measure.name}' gives the shape "
            f"{shape} for images {images.shape}: let it return one number an image, [N]."
        )
    return function


def _import(measure: MeasureConfig) -> ImageMeasure:
    subject = f"The function '{measure.function}' of measure '{measure.name}'"
    module_name, colon, name = measure.function.partition(":")
    if not colon:
        raise ConfigError(
            f"{subject} is none of {', '.join(IMAGE_MEASURES)}"
            f"{did_you_mean(measure.function, list(IMAGE_MEASURES))}: name one of them, "
            "or write 'package.module:function'."
        )
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{subject} cannot be imported ({error}): install its package or mend the name."
        ) from None
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise ConfigError(
            f"{subject} does not exist in the module {module_name}"
            f"{did_you_mean(name, known)}: mend the name."
        )
    return function
