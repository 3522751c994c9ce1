"""Lists of what a config can name."""

import importlib.util
import json

import pytest

from qdgs_jax import catalogue, generators
from qdgs_jax.cli import run_command


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["models"]) == 0
    found = json.loads(capsys.readouterr().out)
    vae, faces = found["generators"]
    assert vae == {
        "generator": "shapes-vae", "installed": True, "latents": 6, "height": 128, "width": 128,
        "licence": "apache-2.0", "notice": "",
    }  # fmt: skip
    installed = importlib.util.find_spec("gan_face_generate") is not None
    assert faces["installed"] is installed
    assert ("Images of faces" if installed else "make assets") in faces["notice"]
    assert found["encoders"][0]["encoder"] == "shapes-clip"
    assert {each["family"] for each in found["files"]} >= set(generators.FAMILIES)


def test_every_measure_says_its_range(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["measures"]) == 0
    found = json.loads(capsys.readouterr().out)["measures"]
    assert found == catalogue.measures()
    assert "brightness" in {each["function"] for each in found}
    for each in found:
        assert " from " in each["value"]
        assert " to " in each["value"]
