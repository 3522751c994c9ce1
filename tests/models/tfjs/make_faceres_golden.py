"""Makes faceres.npz: what TensorFlow.js computes with faceres, for generated faces and noise.

Run it after `make assets`, where Node and its package @tensorflow/tfjs are:
NODE_PATH=.../node_modules python tests/models/tfjs/make_faceres_golden.py
"""

from pathlib import Path

import jax
import numpy as np
from make_golden import by_tensorflow_js

from qdgs_jax import faceres, generators

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
    np.savez_compressed(
        Path(__file__).parent / "faceres.npz",
        images=images,
        **{f"node {name}": value for name, value in values.items()},
    )


if __name__ == "__main__":
    main()
