"""Functions of images: values on plain colours, and how they are named in a config."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import color

from qdgs_jax import image_measures
from qdgs_jax.config import MeasureConfig
from qdgs_jax.errors import ConfigError


def test_plain_colours():
    colours = jnp.array([[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1]], jnp.float32)
    images = jnp.broadcast_to(colours[:, None, None], (4, 3, 5, 3))
    np.testing.assert_allclose(image_measures.brightness(images), [1, 0, 0.299, 0.114], atol=1e-6)
    np.testing.assert_allclose(image_measures.warmth(images), [0, 0, 1, -1])
    np.testing.assert_allclose(image_measures.coverage(images), [0, 1, 1, 1])


@pytest.fixture
def module(monkeypatch):
    module = types.ModuleType("my_measures")
    module.redness = lambda images: images[..., 0].mean((1, 2))
    module.flat = lambda images: images.mean()
    monkeypatch.setitem(sys.modules, "my_measures", module)
    return module


def load(function, **options):
    return image_measures.load(MeasureConfig(name="m", function=function), (4, 4), **options)


IMAGES = jnp.linspace(0, 1, 3 * 4 * 4 * 3).reshape(3, 4, 4, 3)


def test_a_measure_can_be_imported(module):
    found = load("my_measures:redness", allow_code=True)
    np.testing.assert_array_equal(found(IMAGES), module.redness(IMAGES))


@pytest.mark.parametrize(
    "function", ["os:getcwd", "qdgs_jax.cli:main", "my_measures:redness", "planted:f"]
)
def test_code_is_not_even_imported_unless_allowed(function, module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "planted.py").write_text("raise SystemExit(3)")
    with pytest.raises(ConfigError, match=r"is code from outside .* pass --allow-code"):
        load(function)
    assert "planted" not in sys.modules


@pytest.mark.parametrize("function", ["brightness", "qdgs_jax.image_measures:brightness"])
def test_the_packages_own_measures_need_no_leave(function):
    np.testing.assert_array_equal(load(function)(IMAGES), image_measures.brightness(IMAGES))


def test_the_working_folder_is_importable_once_allowed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "measures_of_mine.py").write_text("def half(images): return images[:, 0, 0, 0] / 2")
    half = load("measures_of_mine:half", allow_code=True)
    np.testing.assert_array_equal(half(IMAGES), IMAGES[:, 0, 0, 0] / 2)
    assert sys.path[-1] == str(tmp_path)


def fail(images):
    raise RuntimeError("no such thing\nand more")


def leave(images):
    sys.exit("bye")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("brightnes", "did you mean 'brightness'"),
        ("my_measures:rednes", "did you mean 'redness'"),
        ("no_such_package:f", "No module named 'no_such_package'"),
        (":f", "cannot be imported"),
        ("my_measures:flat", r"returns the shape \(\)"),
        ("my_measures:complex", "one real number an image"),
        ("my_measures:fail", r"fails \(RuntimeError: no such thing\): mend it"),
        ("my_measures:leave", r"fails \(SystemExit: bye\): mend it"),
        ("os:getcwd", r"fails \(TypeError: .*\): mend it"),
        ("numpy:array", r"fails \(TracerArrayConversionError: "),
    ],
)
def test_a_wrong_function_is_a_config_error(function, message, module):
    module.fail, module.leave = fail, leave
    module.complex = lambda images: images[:, 0, 0, 0] * 1j
    with pytest.raises(ConfigError, match=message) as caught:
        load(function, allow_code=True)
    assert "\n" not in str(caught.value)


def face(skin, *, hair=(0.1, 0.07, 0.05), background=(0.2, 0.4, 0.7), side=64):
    """A disc of skin with hair above, glasses and a mouth, on a plain background [1, S, S, 3]."""
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    image = np.full((side, side, 3), background, np.float64)
    head = ((x - 0.5) / 0.33) ** 2 + ((y - 0.55) / 0.42) ** 2 < 1
    image[head] = skin
    image[head & (y < 0.4)] = hair
    image[head & (abs(y - 0.47) < 0.03)] = 0.05
    image[head & (abs(y - 0.78) < 0.02) & (abs(x - 0.5) < 0.1)] = (0.6, 0.1, 0.15)
    return jnp.array(image, jnp.float32)[None]


SKINS = ((0.95, 0.85, 0.78), (0.85, 0.67, 0.55), (0.62, 0.44, 0.33), (0.35, 0.22, 0.15))


@pytest.mark.parametrize("skin", SKINS)
@pytest.mark.parametrize("hair", [(0.1, 0.07, 0.05), (0.9, 0.8, 0.5), (0.2, 0.8, 0.3)])
def test_skin_tone_is_the_angle_of_the_skin_alone(skin, hair):
    lightness, _, b = color.rgb2lab(np.array(skin))
    expected = np.degrees(np.arctan2(lightness - 50, b))
    for background in ((0.2, 0.4, 0.7), (1, 1, 1), (0, 0, 0)):
        found = image_measures.skin_tone(face(skin, hair=hair, background=background))
        np.testing.assert_allclose(found, expected, atol=3)


def test_lab_is_that_of_scikit_image():
    images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    images[0, 0, :2] = [[0, 0, 0], [0.03, 0.01, 0]]
    np.testing.assert_allclose(image_measures.srgb_to_lab(images), color.rgb2lab(images), atol=1e-2)


@pytest.mark.parametrize(
    "name", [pytest.param("skin_tone", marks=pytest.mark.slow), "background_brightness"]
)
def test_gradients_are_finite_everywhere(name):
    colours = jnp.array([*np.ndindex(2, 2, 2), (0.5, 0.5, 0.5), (0.0031, 0, 0)], jnp.float32)
    plain = jnp.broadcast_to(colours[:, None, None], (len(colours), 8, 8, 3))
    mixed = jnp.concatenate([plain[:, :4], plain[::-1, 4:]], axis=1)
    measure = image_measures.IMAGE_MEASURES[name]
    for images in (plain, mixed):
        assert np.isfinite(measure(images)).all()
        assert np.isfinite(jax.grad(lambda x: measure(x).sum())(images)).all()


@pytest.mark.slow
def test_skin_tone_has_no_slope_where_it_is_undefined(monkeypatch):
    monkeypatch.setattr(image_measures, "srgb_to_lab", lambda x: x)
    pole = jnp.broadcast_to(jnp.array([50.0, 0.0, 0.0]), (1, 4, 4, 3))
    assert np.isfinite(jax.grad(lambda x: image_measures.skin_tone(x).sum())(pole)).all()


@pytest.mark.slow
def test_skin_tone_follows_its_gradient():
    image = face(SKINS[2])
    ascent = jax.grad(lambda x: image_measures.skin_tone(x).sum())(image)
    low, high = (
        image_measures.skin_tone(image + sign * 0.02 * jnp.sign(ascent)) for sign in (-1, 1)
    )
    assert high - low > 3


def test_background_brightness_ignores_the_face():
    values = [
        image_measures.background_brightness(face(skin, background=(level,) * 3))[0]
        for level in (0.2, 0.7)
        for skin in (SKINS[0], SKINS[3])
    ]
    np.testing.assert_allclose(values, [0.2, 0.2, 0.7, 0.7], atol=0.06)
