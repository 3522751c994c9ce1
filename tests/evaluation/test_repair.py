"""Classifiers of anybody's folders, trained, repaired and tested by group."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qdgs_jax.cli import run_command
from qdgs_jax.evaluation.repair import AFTER, BEFORE, repair_folders
from qdgs_jax.training import classifier
from qdgs_jax.training.config import TrainConfig

SIZE = 12


def write_folder(path: Path, *, count: int, bias: float) -> Path:
    """Squares on the left (cats) or right (dogs), warm or cold by a colour bias."""
    random, lines = np.random.default_rng(count), []
    for i in range(count):
        label, red = ("cat", "dog")[i % 2], (random.random() < bias) == (i % 2 == 0)
        pixels = random.integers(220, 256, (SIZE, SIZE, 3), np.uint8)  # no image is another's copy
        left = random.integers(0, 3) + (6 if label == "dog" else 0)
        pixels[4:8, left : left + 4] = (255, 0, 0) if red else (0, 0, 255)
        name = f"{label}/{i}.png"
        (path / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path / name)
        lines.append(json.dumps({"file_name": name, "colour": "red" if red else "blue"}))
    (path / "metadata.jsonl").write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    path = tmp_path_factory.mktemp("folders")
    sizes = {"train": (24, 0.9), "repair": (16, 0.5), "test": (40, 0.5)}
    return {
        name: str(write_folder(path / name, count=count, bias=bias))
        for name, (count, bias) in sizes.items()
    }


def arguments(folders: dict[str, str], out: Path, *names: str) -> list[str]:
    named = [word for name in names for word in (f"--{name}", folders[name])]
    return ["train", *named, "--group", "colour", "--out", str(out), "--seeds", "2",
            "--classifier.channels", "3", "--classifier.hidden", "4", "--training.batch-size", "8",
            "--training.epochs", "1", "--training.repair-epochs", "3"]  # fmt: skip


def test_folders(
    folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(folders, tmp_path / "out", "train", "repair", "test")
    assert run_command(command) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["classes"] == ["cat", "dog"]
    assert [row["arm"] for row in results["rows"]] == [BEFORE, AFTER]
    assert set(results["groups"]) == {"cat, red", "cat, blue", "dog, red", "dog, blue"}
    assert sum(results["groups"].values()) == 40
    assert (tmp_path / "out/table.md").read_text() == results["table"]

    (tmp_path / "out/results/seed-1.json").unlink()
    assert run_command([*command, "--resume"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["rows"] == results["rows"]
    assert run_command([*command, "--resume", "--training.epochs", "2"]) == 2
    assert "another config" in capsys.readouterr().err


def test_test_images_that_are_trained_on_are_counted(
    folders: dict[str, str], tmp_path: Path
) -> None:
    paths = {"train": Path(folders["train"]), "test": Path(folders["test"])}
    with pytest.raises(UserWarning, match=r"^40 of the 40 test images are also in .*/test: "):
        repair_folders(
            TrainConfig(), tmp_path / "out", group="colour", repair=paths["test"], **paths
        )


def test_interruption_tells_how_to_go_on(
    folders: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    command = arguments(folders, tmp_path / "out", "train", "test")
    with monkeypatch.context() as patch:
        patch.setattr(classifier, "train", interrupt)
        assert run_command(command) == 1
    sentence = "qdgs: Interrupted: run the same command with --resume.\n"
    assert capsys.readouterr().err == sentence
    (tmp_path / "out/plan.json").unlink()  # as if it was stopped while it claimed the folder
    assert run_command(command) == 0


def test_a_classifier_larger_than_any_memory_is_refused(
    folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(folders, tmp_path / "out", "train", "test")
    assert run_command([*command, "--classifier.channels", "60000", "60000"]) == 2
    assert "lower classifier.channels or classifier.hidden" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train"], "add what is missing"),
        (["train", "--train", "a", "--test", "b"], "add what is missing"),
        (["train", "absent.toml"], "Cannot read the config absent.toml"),
    ],
)
def test_mistakes_take_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(arguments) == 2
    assert sentence in capsys.readouterr().err
