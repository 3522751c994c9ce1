"""The evaluator of the shapes domain agrees with drawings whose content is known."""

import math

import jax
import numpy as np
import pytest
import shapes_evaluator as evaluator
from PIL import Image

from qdgs_jax.shapes import drawings as shapes

RED, BLUE = np.array([216, 27, 96]) / 255, np.array([30, 136, 229]) / 255
SIZE = 128
row, column = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2


def paint(mask: np.ndarray, colour: np.ndarray = RED, paper: float = 1.0) -> np.ndarray:
    return np.where(mask[..., None], colour, paper)


def square(side: float = 40, x: float = 0, y: float = 0, turn: float = 0) -> np.ndarray:
    u = math.cos(turn) * (column - x) + math.sin(turn) * (row - y)
    v = math.cos(turn) * (row - y) - math.sin(turn) * (column - x)
    return np.maximum(abs(u), abs(v)) < side / 2


def right_triangle(leg: float = 60) -> np.ndarray:
    return (column > -leg / 3) & (row > -leg / 3) & (column + row < leg / 3)


def disc(radius: float, x: float = 0, y: float = 0) -> np.ndarray:
    return np.hypot(column - x, row - y) < radius


def blurred(images: np.ndarray) -> np.ndarray:
    """Twice a 5 x 5 box: as soft as a small decoder's edges."""
    for axis in (1, 2, 1, 2):
        images = np.mean([np.roll(images, shift, axis) for shift in range(-2, 3)], axis=0)
    return images


@pytest.mark.parametrize("softened", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_drawings_are_recognised(softened):
    drawings = shapes.draw(jax.random.key(20_000), 200, colour_bias=0.5)
    images = np.asarray(drawings.images)
    found = [evaluator.judge(image) for image in (blurred(images) if softened else images)]
    colours, kinds = list(shapes.COLOURS), list(shapes.SHAPES)
    expected = [
        f"{colours[colour]} {kinds[shape]}"
        for shape, colour in zip(drawings.shape, drawings.colour, strict=True)
    ]
    right = [each.group == group for each, group in zip(found, expected, strict=True)]
    assert np.mean(right) >= 0.98
    assert min(each.iou for each in found) > evaluator.CLEAN_IOU + 0.04  # far from the threshold


@pytest.mark.parametrize(
    ("image", "group"),
    [
        (paint(square()), "red square"),
        (paint(square(turn=0.4), BLUE), "blue square"),
        (paint(right_triangle()), "red triangle"),
        (paint(right_triangle()[::-1], BLUE), "blue triangle"),
        (paint(square(x=-30, y=25)), "red square"),
    ],
)
def test_clean_shapes(image, group):
    assert evaluator.judge(image).group == group
    assert evaluator.judge(np.round(255 * image).astype(np.uint8)).group == group


def splatter(seed: int) -> np.ndarray:
    places = np.random.default_rng(seed).uniform(-50, 50, (12, 2))
    return np.any([disc(7, x, y) for x, y in places], axis=0)


def blob(seed: int) -> np.ndarray:
    """A wavy outline around the centre."""
    random = np.random.default_rng(seed)
    angle = np.arctan2(row, column)
    waves = [random.uniform(0.1, 0.3) * np.cos(k * angle + random.uniform(0, 6)) for k in (2, 3, 5)]
    return np.hypot(column, row) < 24 * (1 + sum(waves))


HAZE = np.random.default_rng(0).uniform(0.85, 1.0, (SIZE, SIZE))[..., None]


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(np.ones((SIZE, SIZE, 3)), id="blank"),
        pytest.param(paint(disc(24)), id="circle"),
        pytest.param(paint(disc(13), BLUE), id="small circle"),
        pytest.param(paint((abs(column) < 32) & (abs(row) < 16)), id="rectangle"),
        pytest.param(paint((abs(column) < 10 - row / 3) & (abs(row) < 30)), id="slender triangle"),
        pytest.param(paint(square(20, -20) | square(20, 20)), id="two squares"),
        pytest.param(paint(square() & ~square(20)), id="frame"),
        pytest.param(paint(square(8)), id="speck"),
        pytest.param(paint(square(), (RED + BLUE) / 2), id="purple"),
        pytest.param(paint(square(), np.array([0.0, 0.5, 0.0])), id="green"),
        pytest.param(paint(square(), np.zeros(3)), id="black"),
        pytest.param(paint(square(), 0.6 * RED + 0.4), id="pale"),
        pytest.param(paint(square()) * HAZE, id="haze"),
        pytest.param(
            np.where((column < 8)[..., None], paint(square()), paint(square(), BLUE)), id="two"
        ),
        *(pytest.param(paint(splatter(seed)), id=f"splatter {seed}") for seed in range(5)),
        *(pytest.param(paint(blob(seed)), id=f"blob {seed}") for seed in range(5)),
    ],
)
def test_what_is_not_clean(image):
    judgement = evaluator.judge(image)
    assert not judgement.clean
    assert judgement.group == "none"


def test_turning_and_moving_change_nothing():
    found = [
        evaluator.judge(paint(square(turn=turn, x=5 * turn)))
        for turn in np.linspace(0, math.pi / 2, 20)
    ]
    assert min(judgement.iou for judgement in found) > 0.96


def test_summary_of_folders(tmp_path):
    (tmp_path / "class").mkdir()
    for name, image in {
        "a": paint(square()),
        "class/b": paint(square(), BLUE),
        "class/c": paint(square(), BLUE),
        "class/d": paint(disc(20)),
    }.items():
        Image.fromarray(np.round(255 * image).astype(np.uint8)).save(tmp_path / f"{name}.png")
    found = dict(evaluator.judge_folder(tmp_path))
    assert [path.stem for path in found] == ["a", "b", "c", "d"]
    assert evaluator.summarise(found.values()) == {
        "red square": 0.25,
        "red triangle": 0.0,
        "blue square": 0.5,
        "blue triangle": 0.0,
        "clean": 0.75,
    }
