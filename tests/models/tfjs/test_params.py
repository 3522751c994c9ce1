"""Graph models are read as data; damaged and hostile files are refused in one sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdgs_jax.errors import CheckpointError
from qdgs_jax.models import tfjs

HERE = Path(__file__).parent


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], Any]], Path]:
    """The model's path, with its JSON changed by a function."""

    def change(how: Callable[[dict[str, Any]], Any]) -> Path:
        for name in ("weights.1.bin", "weights.2.bin"):
            shutil.copy(HERE / name, tmp_path)
        values = json.loads((HERE / "model.json").read_text())
        how(values)
        (tmp_path / "model.json").write_text(json.dumps(values))
        return tmp_path / "model.json"

    return change


def described(values: dict[str, Any], name: str) -> dict[str, Any]:
    (group,) = values["weightsManifest"]
    return next(weight for weight in group["weights"] if weight["name"] == name)


def node(values: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in values["modelTopology"]["node"] if each["name"] == name)


def test_quantised_weights_are_near_those_that_were_written() -> None:
    random = np.random.default_rng(0)
    params = tfjs.load(HERE / "model.json")[1]
    assert params["kernel"].dtype == np.float32
    # In the order of make_golden.py.
    for name, shape, error in (
        ("kernel", (3, 3, 3, 4), 1e-3),
        ("bias/weights", (4,), 1e-7),
        ("kernel 2", (2, 3, 3, 4), 1e-2),
        ("kernel 3", (3, 3, 3, 2), 1e-4),
    ):
        written = random.normal(size=shape) * 0.5
        np.testing.assert_allclose(params[name], written, atol=error)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        (lambda v: v.update(format="layers-model"), "is no graph model"),
        (lambda v: node(v, "Relu").update(op="ReadFile"), "operation 'ReadFile' is not supported"),
        (lambda v: node(v, "conv")["attr"].update(data_format={"s": "TkNIVw=="}), "channels first"),
        (lambda v: node(v, "Relu").update(input=["nowhere"]), "itself or no node as input"),
        (lambda v: node(v, "Relu").update(input=["Relu"]), "itself or no node as input"),
        (lambda v: described(v, "kernel").update(shape=[3, 3, 3, 400]), "too short"),
        (lambda v: described(v, "kernel").update(shape=[-3, 3, 3, 4]), "too short"),
        (lambda v: described(v, "kernel").update(shape=[3, 3, 3, 3]), "larger than its weights"),
        (lambda v: described(v, "kernel").update(dtype="string"), "unsupported type"),
        (lambda v: described(v, "kernel 2").update(name="kernel"), "two of one name"),
        (lambda v: described(v, "kernel").update(name="other"), "'kernel' has no weight"),
        (lambda v: v["weightsManifest"][0].update(paths=["../weights.1.bin"]), "outside"),
        (lambda v: v["weightsManifest"][0].update(paths=["/etc/passwd"]), "outside"),
        (lambda v: v["weightsManifest"][0].update(paths=["absent.bin"]), "absent.bin cannot be"),
        (lambda v: v["signature"]["outputs"]["probabilities"].update(name="x"), "outputs are no"),
        (lambda v: v["modelTopology"].update(node=7), "damaged"),
        (lambda v: v["modelTopology"]["node"].pop(0), "itself or no node as input"),
        (lambda v: node(v, "Relu").update(op="Placeholder"), "2 inputs instead of one"),
    ],
)  # fmt: skip
def test_what_is_no_model_is_refused(changed: Any, how: Any, sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence) as error:
        tfjs.load(changed(how))
    assert "\n" not in str(error.value)
