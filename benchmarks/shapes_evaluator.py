"""An evaluator of the shapes domain that is independent of the search.

Question: which colour and which shape does an image show, and is it a clean drawing?
Method: plain geometry in numpy, with nothing trained, and without the encoder of the search.
    * Foreground: pixels with at least half the ink of the two colours. Ink is one minus the
      smallest channel: 0 on white paper, 0.89 for either colour.
    * Colour: pixels vote by their hue, (1 - rgb) / ink, which mixing with white does not change.
      The colour of an image is that of at least 90 % of its foreground; else "neither".
    * Shape: a square and two triangles (equilateral, as in the built-in drawings, and with a right
      angle at the apex, as in the paper's) are placed over the foreground with its centroid and
      area, and rotated in steps of 2 degrees. The best intersection over union (IoU) decides.
    * Clean: one colour, an IoU of at least `CLEAN_IOU`, the expected ink for that foreground
      (neither pale nor hazy), and at least a tenth of the image's side.
Command: python benchmarks/shapes_evaluator.py FOLDER...    (any folders of PNG images)
"""

import argparse
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (216, 27, 96), "blue": (30, 136, 229)}
SHAPES = ("square", "triangle")
INK = 0.89  # of both colours
HUE_TOLERANCE = 0.25  # the two hues are 1.1 apart, an even mixture is 0.6 from either
ONE_COLOUR = 0.9
CLEAN_IOU = 0.9  # drawings have 0.96 and more, even blurred; circles and pentagons 0.88 at most
INK_RATIO = (0.85, 1.2)
STEP = 2  # degrees


@dataclass(frozen=True)
class Judgement:
    """Colour and shape of one image."""

    colour: str  # "red", "blue" or "neither"
    shape: str  # "square" or "triangle", whichever fits better
    iou: float  # of that shape, in [0, 1]
    clean: bool

    @property
    def group(self) -> str:
        """Colour and shape of a clean image, else "none"."""
        return f"{self.colour} {self.shape}" if self.clean else "none"


def polygon(*corners: tuple[float, float]) -> np.ndarray:
    """Corners [E, 2] of a convex polygon, counter-clockwise, moved to centroid 0 and area 1."""
    p = np.array(corners)
    q = np.roll(p, -1, axis=0)
    cross = p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]
    centroid = ((p + q) * cross[:, None]).sum(0) / (3 * cross.sum())
    return (p - centroid) / math.sqrt(cross.sum() / 2)


def turned_edges(corners: np.ndarray, symmetry: int) -> tuple[np.ndarray, np.ndarray]:
    """Outward normals [E, 2, K] in K rotations, and the edges' distances from the centroid [E]."""
    edges = np.roll(corners, -1, axis=0) - corners
    normals = np.stack([edges[:, 1], -edges[:, 0]], axis=-1)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    turns = np.radians(np.arange(0, 360 // symmetry, STEP))
    cos, sin = np.cos(turns), np.sin(turns)
    rotations = np.array([[cos, -sin], [sin, cos]], np.float32)
    turned = np.einsum("ijk,ej->eik", rotations, normals.astype(np.float32))
    return turned, (normals * corners).sum(-1)


TEMPLATES = (
    ("square", turned_edges(polygon((0, 0), (1, 0), (1, 1), (0, 1)), symmetry=4)),
    ("triangle", turned_edges(polygon((0, 0), (2, 0), (1, math.sqrt(3))), symmetry=3)),
    ("triangle", turned_edges(polygon((0, 0), (1, 0), (0, 1)), symmetry=1)),
)


def judge(image: np.ndarray) -> Judgement:
    """Evaluates one image [H, W, 3], RGB, uint8 or in [0, 1]."""
    rgb = image.astype(np.float32) / (255 if image.dtype == np.uint8 else 1)
    ink = 1 - rgb.min(axis=-1)
    rows, columns = np.nonzero(ink > INK / 2)
    area = len(rows)
    if not area:
        return Judgement("neither", "square", 0.0, False)
    colour = _colour(rgb[rows, columns])
    points = np.stack([columns, rows], axis=-1).astype(np.float32)
    overlaps = _overlaps((points - points.mean(0)) / math.sqrt(area))
    shape = max(overlaps, key=overlaps.__getitem__)
    ink_ratio = ink.sum() / (INK * area)
    clean = (
        colour != "neither"
        and overlaps[shape] >= CLEAN_IOU
        and INK_RATIO[0] <= ink_ratio <= INK_RATIO[1]
        and area >= (0.1 * len(image)) ** 2
    )
    return Judgement(colour, shape, overlaps[shape], bool(clean))


def _colour(pixels: np.ndarray) -> str:
    """The colour of nearly all foreground pixels [P, 3], else "neither"."""
    hues = (1 - pixels) / (1 - pixels.min(axis=-1, keepdims=True))
    for name, rgb in COLOURS.items():
        wanted = 1 - np.array(rgb) / 255
        near = np.linalg.norm(hues - wanted / wanted.max(), axis=-1) < HUE_TOLERANCE
        if near.mean() >= ONE_COLOUR:
            return name
    return "neither"


def _overlaps(points: np.ndarray) -> dict[str, float]:
    """Best IoU of each shape with the foreground [P, 2], scaled to centroid 0 and area 1."""
    best = dict.fromkeys(SHAPES, 0.0)
    for name, (normals, distances) in TEMPLATES:
        inside = [
            points @ normal <= distance for normal, distance in zip(normals, distances, strict=True)
        ]
        shared = np.logical_and.reduce(inside).mean(axis=0).max()  # of two areas of 1
        best[name] = max(best[name], float(shared / (2 - shared)))
    return best


def judge_folder(folder: Path) -> Iterator[tuple[Path, Judgement]]:
    """Evaluates every PNG below a folder, in the order of their paths."""
    for path in sorted(folder.rglob("*.png")):
        with Image.open(path, formats=["PNG"]) as image:
            yield path, judge(np.asarray(image.convert("RGB")))


def summarise(judgements: Iterable[Judgement]) -> dict[str, float]:
    """Shares of all images: the four groups of clean images, and all clean images."""
    groups = [judgement.group for judgement in judgements]
    names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    shares = {name: groups.count(name) / len(groups) for name in names}
    return {**shares, "clean": sum(shares.values())}


def main() -> None:
    """Prints a line of JSON for each folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    for folder in parser.parse_args().folders:
        found = summarise(judgement for _, judgement in judge_folder(folder))
        print(json.dumps({"folder": str(folder), **found}))


if __name__ == "__main__":
    main()
