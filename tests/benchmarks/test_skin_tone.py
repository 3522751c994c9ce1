"""The evaluator of faces finds the angle of skin of a known colour."""

import importlib.util

import jax
import numpy as np
import pytest
import skin_tone
from skimage import color

from qdgs_jax import generators, image_measures
from qdgs_jax.config import load_config


def face(skin, side=64):
    """An oval of skin with hair, glasses and beard on blue."""
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    image = np.full((side, side, 3), (40, 90, 200), np.uint8)
    head = np.hypot((x - 0.5) / 0.35, (y - 0.55) / 0.42) < 1
    image[head] = skin
    image[head & ((y < 0.38) | (abs(y - 0.45) < 0.03))] = (20, 18, 18)
    return image


@pytest.mark.parametrize(
    ("skin", "expected"),
    [
        ((250, 224, 208), "very light"),
        ((228, 184, 155), "light"),
        ((205, 158, 125), "intermediate"),
        ((180, 132, 98), "tan"),
        ((135, 92, 66), "brown"),
        ((75, 47, 35), "dark"),
    ],
)
def test_classes_of_skin(skin, expected):
    lightness, _, b = color.rgb2lab(np.array(skin, np.uint8))
    angle = skin_tone.skin_tone(face(skin))
    np.testing.assert_allclose(angle, np.degrees(np.arctan((lightness - 50) / b)), atol=0.1)
    assert skin_tone.classify(angle) == expected


def test_no_skin():
    assert skin_tone.classify(skin_tone.skin_tone(face((40, 90, 200)))) == "no skin"


def test_bins_of_the_recipe_are_the_classes():
    bins = load_config(skin_tone.CONFIG).export.bins
    assert tuple(bin.name for bin in bins) == skin_tone.CLASSES
    assert tuple(bin.where["skin_tone"][0] for bin in bins[1:]) == skin_tone.EDGES


@pytest.mark.skipif(
    importlib.util.find_spec("gan_face_generate") is None, reason="needs `make assets`"
)
def test_the_searchs_rule_agrees_on_random_faces():
    generator, params = generators.load("digiface-dcgan")
    images = generator.render(params, generator.sample(jax.random.key(0), 64))
    found = np.asarray(image_measures.skin_tone(images))
    pictures = np.round(255 * np.asarray(images)).astype(np.uint8)
    expected = np.array([skin_tone.skin_tone(picture) for picture in pictures])
    judged = np.isfinite(expected)
    assert judged.mean() > 0.9
    difference = abs(found - expected)[judged]
    assert np.median(difference) < 4  # of classes 11 degrees wide or wider
    classes = [[skin_tone.classify(angle) for angle in each[judged]] for each in (found, expected)]
    assert np.mean([one == other for one, other in zip(*classes, strict=True)]) > 0.8
    overlaps = [skin_tone.overlap(skin_tone.skin(picture)) for picture in pictures]
    assert np.mean(overlaps) < 0.5  # the judge looks elsewhere
    faces = [skin_tone.shows_face(picture) for picture in pictures]
    assert 0.5 < np.mean(faces) < 1


def test_noise_shows_no_face():
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (8, 64, 64, 3), np.uint8)
    assert not any(skin_tone.shows_face(image) for image in noise)
