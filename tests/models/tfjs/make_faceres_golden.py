"""Makes faceres.npz: what TensorFlow.js computes with networks of faces, for faces and noise.

Run it after `make assets`, where Node and its package @tensorflow/tfjs are:
NODE_PATH=.../node_modules python tests/models/tfjs/make_faceres_golden.py
"""

from pathlib import Path

import jax
import numpy as np
from make_golden import by_tensorflow_js

from qdgs_jax import blazeface, expressions, faceres, generators
from qdgs_jax.image_measures import LUMA

DETECTED = ["Identity", "Identity_1", "Identity_2", "Identity_3"]
THINNED = 8
"""Of the detector's anchors, one in so many is kept."""
NODES = ["global_pooling/Mean", "age_pred/Softmax", "gender_pred/Sigmoid"]


def main() -> None:
    """Writes the file beside this script."""
    generator, params = generators.load(generators.DIGIFACE)
    faces = np.asarray(generator.render(params, generator.sample(jax.random.key(0), 3)))
    small = faces.reshape(3, 32, 2, 32, 2, 3).mean(axis=(2, 4))
    noise = np.random.default_rng(0).random((1, 32, 32, 3))
    images = np.round(255 * np.concatenate([small, noise])).astype(np.uint8)
    pixels = images.repeat(7, axis=1).repeat(7, axis=2).astype(np.float32)
    values = by_tensorflow_js(faceres.PATH, pixels, NODES)
    golden = {f"node {name}": value for name, value in values.items()}

    grey = (images @ LUMA)[..., None].repeat(2, axis=1).repeat(2, axis=2) / 127.5 - 1
    path = faceres.fetched(expressions.NAME)
    golden["emotion"] = by_tensorflow_js(path, grey, ["Identity"])["Identity"]

    canvases = images.repeat(8, axis=1).repeat(8, axis=2) / np.float32(127.5) - 1
    path = faceres.fetched(blazeface.NAME)
    found = [by_tensorflow_js(path, each[None], DETECTED) for each in canvases]
    for name in DETECTED:
        golden[f"blazeface {name}"] = np.concatenate([each[name][:, ::THINNED] for each in found])
    np.savez_compressed(Path(__file__).parent / "faceres.npz", images=images, **golden)


if __name__ == "__main__":
    main()
