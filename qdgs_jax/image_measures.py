"""Functions and classifiers of images that a measure can name in place of prompts."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from qdgs_jax import faceres, plugins
from qdgs_jax.config import MeasureConfig
from qdgs_jax.errors import ConfigError, did_you_mean
from qdgs_jax.generators import sha256_of
from qdgs_jax.typing import Array, Images, Params

TONES = ("dark", "brown", "tan", "intermediate", "light", "very light")
"""Classes of the individual typology angle (Del Bino and Bernerd 2013)."""
TONE_EDGES = (-30.0, 10.0, 28.0, 41.0, 55.0)
"""Degrees between `TONES`."""

ImageMeasure = Callable[[Images], Array]  # [N, H, W, 3] -> [N]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Rec. 601."""
SRGB_TO_XYZ = np.array(
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ],
    np.float32,
)
"""Linear RGB with Rec. 709 primaries and white D65; rows add up to white."""


def brightness(images: Images) -> Array:
    """Mean luma (Rec. 601), from 0 (black) to 1 (white)."""
    return jnp.sum(jnp.mean(images, axis=(1, 2)) * LUMA[None], axis=-1)


def warmth(images: Images) -> Array:
    """Mean red minus mean blue, from -1 (blue) to 1 (red)."""
    return jnp.mean(images[..., 0] - images[..., 2], axis=(1, 2))


def coverage(images: Images) -> Array:
    """Inked share of a white page, from 0 (all white) to 1 (saturated or dark everywhere)."""
    return jnp.mean(1 - jnp.min(images, axis=-1), axis=(1, 2))


def skin_tone(images: Images) -> Array:
    """Individual typology angle of a face's skin, from about -90 (dark) to 90 (light) degrees.

    ITA = atan((L* - 50) / b*), whose classes are `TONES`. It is the angle of the skin's mean
    colour, because angles of single dark pixels are unreliable. If light makes skin bluish, b* < 0,
    the angle continues beyond +-90 without a jump.

    Skin is the most common reddish and yellowish colour in an ellipse in the middle. This excludes
    hair, glasses, mouths and highlights, unless they have the colour of skin.
    """
    lab = srgb_to_lab(images)
    lightness, _, b = jnp.moveaxis(_mean(lab, _skin(lab)), -1, 0)
    somewhere = (lightness != 50) | (b != 0)  # at the pole the slope of arctan2 is NaN
    return jnp.degrees(jnp.arctan2(lightness - 50, jnp.where(somewhere, b, 1.0)))


def background_brightness(images: Images) -> Array:
    """Mean luma (Rec. 601) around a face in the middle, from 0 (black) to 1 (white)."""
    around = jax.nn.log_sigmoid(-_ellipse(*images.shape[1:3], centre=0.5, height=1.0, width=0.84))
    return jnp.sum(_mean(images, around) * LUMA[None], axis=-1)


def srgb_to_lab(images: Images) -> Array:
    """RGB in [0, 1] -> CIELAB under D65 [..., 3]: L* in [0, 100], a* and b* (IEC 61966, CIE 15)."""
    linear = jnp.where(
        images <= 0.04045,
        images / 12.92,
        ((jnp.maximum(images, 0.04045) + 0.055) / 1.055) ** 2.4,
    )
    xyz = jnp.einsum("...c,tc->...t", linear, SRGB_TO_XYZ, precision="highest")
    white = jnp.broadcast_to(SRGB_TO_XYZ.sum(axis=1), xyz.shape)
    t = xyz / white
    d = 6 / 29
    # The inner `maximum` keeps the infinite slope of the root at black out of the backward pass.
    f = jnp.where(t > d**3, jnp.cbrt(jnp.maximum(t, d**3)), t / (3 * d**2) + 4 / 29)
    x, y, z = jnp.moveaxis(f, -1, 0)
    return jnp.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _skin(lab: Array) -> Array:
    """Logarithmic weights of pixels as skin [N, H, W]."""
    face = jax.nn.log_sigmoid(_ellipse(*lab.shape[1:3], centre=0.6, height=0.56, width=0.48))
    a, b = lab[..., 1], lab[..., 2]
    prior = face + jax.nn.log_sigmoid((a - 4) / 2) + jax.nn.log_sigmoid((b - 2) / 2)
    weights = prior
    for _ in range(3):  # mean shift (Comaniciu and Meer 2002), with a kernel of 15 units of colour
        distance = lab - _mean(lab, weights)[:, None, None]
        weights = prior - jnp.sum(distance**2, axis=-1) / (2 * 15**2)
    return weights


def _ellipse(rows: int, columns: int, *, centre: float, height: float, width: float) -> Array:
    """A ramp [1, rows, columns], positive inside an ellipse; lengths are in heights or widths of
    the image."""
    y = ((jnp.arange(rows) + 0.5) / rows - centre) / (height / 2)
    x = ((jnp.arange(columns) + 0.5) / columns - 0.5) / (width / 2)
    return (1 - jnp.hypot(y[None, :, None], x[None, None])) / 0.15


def _mean(colours: Array, weights: Array) -> Array:
    """Mean colour [N, 3] of pixels [N, H, W, 3], with logarithmic weights [N or 1, H, W]."""
    shares = jax.nn.softmax(weights, axis=(-2, -1))
    return jnp.sum(shares[..., None] * colours, axis=(-3, -2))


IMAGE_MEASURES: dict[str, ImageMeasure] = {
    "brightness": brightness,
    "warmth": warmth,
    "coverage": coverage,
    "skin_tone": skin_tone,
    "background_brightness": background_brightness,
}


@dataclass(frozen=True)
class Classifier:
    """A classifier of images without its weights, which are arguments of `logits`."""

    name: str
    classes: tuple[str, ...]
    """Names of its C classes."""
    logits: Callable[[Params, Images], Array]
    """(params, images [N, H, W, 3] in [0, 1]) -> [N, C], of which softmax gives probabilities."""
    values: tuple[float, ...] = ()
    """Numbers that the classes stand for, such as years of age, for the expected value."""
    sha256: str = ""
    """SHA-256 of its weights, in hex; computed if it is empty."""


def load_classifiers(
    measures: Sequence[MeasureConfig], *, allow_code: bool = False
) -> tuple[dict[str, Classifier], dict[str, Params]]:
    """The classifiers that measures name, by `measure.classifier`, and their weights, each once, by
    `weights_of` it.

    Raises:
        ConfigError: one does not exist, is not allowed, or fails.
        CheckpointError: a file of faceres cannot be read.
    """
    found, weights = {}, {}
    for measure in measures:
        name = measure.classifier
        if name and name not in found:
            subject = f"The classifier '{name}' of measure '{measure.name}'"
            if name == weights_of(name):
                made, params = plugins.make(name, subject, Classifier, allow_code=allow_code)
            else:
                made, params = _reader_of_faces(name, subject)
            found[name] = replace(made, sha256=made.sha256 or sha256_of(params))
            weights[weights_of(name)] = params
    return found, weights


def by_classifier(measure: MeasureConfig) -> MeasureConfig:
    """A measure whose `function` reads faces, as the expected value of that classifier; any other
    as it is."""
    if measure.function == weights_of(measure.function):
        return measure
    return replace(measure, function="", classifier=measure.function, output="expected")


def weights_of(classifier: str) -> str:
    """Key of a classifier's weights: its own name, or `faceres` for all that this reads."""
    model, _, _ = classifier.rpartition(":")
    return model if faceres.find(model) else classifier


def _reader_of_faces(name: str, subject: str) -> tuple[Classifier, Params]:
    """`faceres:READING`, or `PATH.json:READING`.

    Raises:
        ConfigError: it reads no such thing, or has not been fetched.
        CheckpointError: its file cannot be read.
    """
    model, _, kind = name.rpartition(":")
    if kind not in faceres.READINGS:
        raise ConfigError(
            f"{subject} does not exist{did_you_mean(kind, faceres.READINGS)}: of faces, "
            f"{' and '.join(faceres.READINGS)} are read."
        )
    graph, params = faceres.load(faceres.find(model))
    reading = faceres.READINGS[kind]
    logits = functools.partial(reading.logits, graph)
    return Classifier(name, reading.classes, logits, reading.values, graph.sha256), params


def of_classifier(
    measure: MeasureConfig, classifier: Classifier, params: Params, image_shape: tuple[int, int]
) -> Callable[[Params, Images], Array]:
    """(params of the classifier, images) -> the measure [N]: its `output`; the shape is checked.

    Raises:
        ConfigError: it has no such class or no values, fails, or returns something else.
    """
    subject, C = f"The classifier '{measure.classifier}' of measure '{measure.name}'", classifier
    plugins.shape_of(
        f"{subject}: `logits(params, images)`",
        C.logits,
        params,
        jax.ShapeDtypeStruct((2, *image_shape, 3), jnp.float32),
        wanted=lambda shape: shape == (2, len(C.classes)),
        remedy=f"let it return [2, {len(C.classes)}] for two images, as it has "
        f"{len(C.classes)} `classes`",
    )
    if measure.target and measure.target not in C.classes:
        raise ConfigError(
            f"{subject} has no class '{measure.target}'{did_you_mean(measure.target, C.classes)}: "
            "correct `target`."
        )
    if measure.output == "expected" and len(C.values) != len(C.classes):
        raise ConfigError(
            f"{subject} has {len(C.values)} `values` for {len(C.classes)} classes: give one for "
            "each, or choose another `output`."
        )

    def read(params: Params, images: Images) -> Array:
        logits = C.logits(params, images)
        match measure.output:
            case "logit":
                return logits[:, C.classes.index(measure.target)]
            case "probability":
                return jax.nn.softmax(logits)[:, C.classes.index(measure.target)]
            case "expected":
                return jax.nn.softmax(logits) @ jnp.asarray(C.values, logits.dtype)
            case _:
                return jnp.argmax(logits, axis=-1).astype(logits.dtype)

    return read


def load(
    measure: MeasureConfig,
    image_shape: tuple[int, int],
    *,
    gradients: bool = False,
    allow_code: bool = False,
) -> ImageMeasure:
    """The function that a measure names; the shape of its result is checked.

    Args:
        image_shape: height and width of the images, in pixels.
        gradients: whether it must be differentiable.
        allow_code: whether it may be another than `IMAGE_MEASURES`: its module is imported then,
            from the working folder as well. A config is code in that case.

    Raises:
        ConfigError: it does not exist, is not allowed, fails, or does not return one real number
            for each image, or has no gradients where they are needed.
    """
    subject = f"The function '{measure.function}' of measure '{measure.name}'"
    name = measure.function.removeprefix(f"{__name__}:")
    function = IMAGE_MEASURES.get(name)
    if not function and ":" not in measure.function:
        raise ConfigError(
            f"{subject} is none of {', '.join(IMAGE_MEASURES)}"
            f"{did_you_mean(measure.function, list(IMAGE_MEASURES))}: name one of them, "
            "or write 'package.module:function'."
        )
    function = function or plugins.load(measure.function, subject, allow_code=allow_code)

    def checked(images: Images) -> Array:
        with plugins.failures_told(subject):
            values = function(images)
            shape, real = jnp.shape(values), jnp.isrealobj(values)
        if shape != (len(images),) or not real:
            raise ConfigError(
                f"{subject} returns the shape {shape} for images {images.shape}: let it return one "
                "real number an image, [N]."
            )
        return values

    images = jax.ShapeDtypeStruct((2, *image_shape, 3), jnp.float32)
    jax.eval_shape(checked, images)
    if gradients:
        plugins.require_gradients(subject, function, images)
    return checked
