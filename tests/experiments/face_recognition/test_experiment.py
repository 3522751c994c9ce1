"""The experiment from its config to its tables, with tiny networks."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from qdgs_jax import files
from qdgs_jax.cli import run_command
from qdgs_jax.config import Config
from qdgs_jax.errors import ConfigError, QDGSError
from qdgs_jax.experiments.config import load_experiment_config
from qdgs_jax.experiments.face_recognition import arms, experiment, people, rehearsal, report
from qdgs_jax.experiments.face_recognition.arms import network_of
from qdgs_jax.experiments.face_recognition.config import FacePretrainingConfig, NetworkConfig
from qdgs_jax.image_measures import TONES
from qdgs_jax.models import iresnet
from qdgs_jax.training.config import AugmentationConfig, FaceRecognitionConfig

CONFIGS = Path(__file__).parents[3] / "configs/experiments"
TRAINING = FaceRecognitionConfig(
    batch_size=8, epochs=1, milestones=(),
    augmentation=AugmentationConfig(crop=0, low_resolution=0, photometric=0),
)  # fmt: skip
TINY = FacePretrainingConfig(
    seeds=2,
    identities=8,
    images=4,
    network=NetworkConfig(image_size=16),
    training=TRAINING,
    test_identities=2,
    test_pairs=120,
    tuning=TRAINING,
)


@pytest.fixture(autouse=True)
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """One block, which compiles sooner."""
    network = iresnet.IResNetConfig((1,), (4,), image_size=16, embedding_size=8)
    for module in (arms, rehearsal):
        monkeypatch.setattr(module, "network_of", lambda config: network)


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch, elites: Any) -> list[int]:
    """The seeds of searches, which find the same elites here."""
    seeds: list[int] = []

    def finished_run(search: Config, run: Path, words: str, **_: Any) -> Any:
        seeds.append(search.seed)
        return SimpleNamespace(config=search, elites=elites)

    monkeypatch.setattr(experiment, "finished_run", finished_run)
    return seeds


def comparable(results: dict[str, Any]) -> Any:
    return [
        {key: value for key, value in row.items() if key != "seconds"} for row in results["rows"]
    ]


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """Four people of four grey pictures of unequal sizes."""
    random = np.random.default_rng(1)
    for person in range(4):
        folder = tmp_path / f"real/s{person}"
        folder.mkdir(parents=True)
        rows = random.uniform(0, 200, (8, 1))
        for number in range(4):
            grey = np.broadcast_to(rows + random.uniform(0, 20, (8, 1)), (8, 8 + number))
            Image.fromarray(grey.astype(np.uint8)).save(folder / f"{number}.pgm")
    return tmp_path / "real"


@pytest.mark.slow
def test_an_interrupted_experiment_continues_to_the_same_figures(
    searched: list[int], search: Config, real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out, fit, calls = (
        dataclasses.replace(TINY, real=str(real)),
        tmp_path / "out",
        arms.fit,
        [],
    )

    def interrupted(*args: Any, **options: Any) -> Any:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(args[4])
        return fit(*args, **options)

    monkeypatch.setattr(arms, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        experiment.run_experiment(config, search, out)
    assert sorted(path.name for path in (out / "results").glob("*.json")) == ["seed-0-qdgs.json"]
    assert (out / "weights/seed-0-random/pre-training").is_dir()
    monkeypatch.setattr(arms, "fit", fit)
    found = experiment.run_experiment(config, search, out, resume=True)
    assert found == json.loads((out / "results.json").read_text())
    assert searched == [0, 1]
    assert not [*out.rglob("*-training")]

    for seed in (0, 1):
        rows = {row["arm"]: row for row in found["rows"] if row["seed"] == seed}
        assert [*rows] == ["qdgs", "random", "none"]
        assert rows["qdgs"]["identities"] == rows["random"]["identities"] > 3
        assert rows["none"]["loss"] is None
        for row in rows.values():
            assert row["synthetic"]["pairs"] == rows["none"]["synthetic"]["pairs"]
            assert row["real"]["people"] == row["tuned"]["people"] == 2
            assert row["tuned"]["loss"] > 0
    text = (out / "table.md").read_text()
    assert "\n| real, fine-tuned |" in text
    assert "\n| 1 | random | " in text
    assert (out / "weights/seed-1-random/network.safetensors").stat().st_size > 1000

    # What is there is not found again; what is missing is, with the same figures.
    for path in (out / "results").glob("*.json"):
        path.unlink()
    monkeypatch.setattr(people, "make_people", lambda *_, **__: pytest.fail("people are known"))
    again = experiment.run_experiment(config, search, out, resume=True)
    assert comparable(again) == comparable(found)

    with pytest.raises(ConfigError, match="already holds results: pass --resume"):
        experiment.run_experiment(config, search, out)
    with pytest.raises(ConfigError, match=r"another config .*images was 4, now 3"):
        experiment.run_experiment(dataclasses.replace(config, images=3), search, out, resume=True)
    Image.new("L", (8, 8), 30).save(real / "s0/0.pgm")
    with pytest.raises(ConfigError, match=r"another config .*real.sha256 was"):
        experiment.run_experiment(config, search, out, resume=True)


@pytest.mark.slow
def test_arms_differ_in_their_identities_alone(
    searched: list[int], search: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one seed, all begin with the same weights and keys, and are tested on the same faces."""
    trained, tested = [], []

    def fit(config: Any, network: Any, params: Any, key: Any, faces: Any, **_: Any) -> Any:
        trained.append((params, key, faces))
        statistics = {"network": params["batch_stats"], "loss": 1.5}
        return SimpleNamespace(params={"network": params["params"]}, statistics=statistics)

    def embed_faces(network: Any, params: Any, images: np.ndarray) -> np.ndarray:
        tested.append(images)
        return np.random.default_rng(0).normal(size=(len(images), 4))

    monkeypatch.setattr(arms, "fit", fit)
    monkeypatch.setattr(arms, "embed_faces", embed_faces)
    found = experiment.run_experiment(TINY, search, tmp_path / "out")
    assert len(trained) == 4
    for seed, (first, second) in enumerate((trained[:2], trained[2:])):
        jax.tree.map(np.testing.assert_array_equal, first[0], second[0])
        assert (first[1] == second[1]).all()
        assert first[2].images.shape == second[2].images.shape
        np.testing.assert_array_equal(first[2].labels, second[2].labels)
        assert set(np.bincount(first[2].labels)) == {TINY.images}
        assert not np.array_equal(first[2].images, second[2].images)
        for images in tested[3 * seed : 3 * seed + 3]:
            np.testing.assert_array_equal(images, tested[3 * seed])
    assert not np.array_equal(trained[0][2].images, trained[2][2].images)
    assert (trained[0][1] != trained[2][1]).any()
    assert found["rows"][0]["loss"] == 1.5
    made = [row["identities"] for row in found["rows"][:3]]
    assert f"random, seed 0: {made[0]} identities of 8." in found["sentences"]
    assert made == [made[0], made[0], 0]
    assert "qdgs, seed 0: no better than chance on synthetic people." in found["sentences"]
    (tmp_path / "out/results/seed-0-test.safetensors").write_bytes(b"half")
    with pytest.raises(QDGSError, match=r"seed-0-test.safetensors is damaged .*: remove it"):
        experiment.run_experiment(TINY, search, tmp_path / "out", resume=True)


def row(seed: int, arm: str, accuracy: float, **other: Any) -> dict[str, Any]:
    classes = dict.fromkeys(TONES[1:], accuracy)
    synthetic = {
        "pairs": 50, "people": 10, "asked": 12, "accuracy": accuracy,
        "interval": [accuracy - 0.1, 1], "true_matches": None, "classes": classes,
    }  # fmt: skip
    return {
        "seed": seed, "arm": arm, "asked": 9, "identities": 9, "loss": 2.0,
        "tones": {"dark": 9}, "seconds": 1.0, "synthetic": synthetic, **other,
    }  # fmt: skip


def test_figures_over_seeds() -> None:
    rows = [
        row(0, "qdgs", 0.9, identities=8), row(0, "random", 0.7), row(0, "none", 0.75, loss=None),
        row(1, "qdgs", 0.8), row(1, "random", 0.5), row(1, "none", 0.45, loss=None),
    ]  # fmt: skip
    found = report.summarise(rows)
    assert found["arms"]["qdgs"]["synthetic"]["mean"] == pytest.approx(0.85)
    assert "loss" not in found["arms"]["none"]
    difference = found["differences"]["synthetic, brown"]
    assert difference["seeds"] == pytest.approx([0.2, 0.3])
    t = stats.ttest_1samp([0.2, 0.3], 0).confidence_interval()
    assert difference["interval"] == pytest.approx([t.low, t.high])
    assert found["sentences"] == [
        "qdgs, seed 0: 8 identities of 9.",
        "Seed 0: 10 people to test on of 12, none of them dark.",
        "Seed 1: 10 people to test on of 12, none of them dark.",
        "random, seed 1: no better than chance on synthetic people.",
        "none, seed 1: no better than chance on synthetic people.",
        "random, seed 0: worse than random weights.",
    ]
    text = report.table({**found, "rows": rows})
    assert "| synthetic | 85.0 ± 7.1 % | 60.0 ± 14.1 % | 60.0 ± 21.2 % | +25.0 ± 7.1 % |" in text
    assert "\n| 0 | none | 9 | 9 |" in text
    assert report.summarise(rows[:3])["differences"]["synthetic"]["interval"] is None
    assert report.summarise(rows[1:3])["differences"] == {}


@pytest.mark.slow
def test_a_rehearsal_writes_nothing(search: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "write", lambda *_: pytest.fail("nothing is written"))
    config = dataclasses.replace(TINY, arms=("random", "none"))
    found = rehearsal.rehearse(config, search)
    assert found.search is None
    assert found.steps == 8 * 4 // 8
    assert found.as_dict()["seconds_run"] == found.seconds_run > 2 * found.seconds_seed > 0
    assert found.memory_step > 4 * 3 * found.weights  # weights, gradients and momenta
    assert "IR-18 of" in str(found)


def test_the_network_is_the_configs() -> None:
    config = NetworkConfig(depth=50, channels=(4, 5, 6, 7), image_size=32, embedding_size=9)
    network = network_of(dataclasses.replace(TINY, network=config))
    assert network == iresnet.IResNetConfig((3, 4, 14, 3), (4, 5, 6, 7), 32, 9)


def test_configs_can_be_read() -> None:
    for name in ("face_recognition", "face_recognition_paper"):
        config = load_experiment_config(FacePretrainingConfig, CONFIGS / f"{name}.toml")
        assert Path(config.search).is_file()
        assert not config.real
    assert config.network == NetworkConfig(depth=101, image_size=112)
    assert config.training == config.tuning == FaceRecognitionConfig()
    with pytest.raises(ConfigError, match="do not fill a batch of 64"):
        FacePretrainingConfig(identities=3)


def test_the_notice_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = tmp_path / "search.toml"
    search.write_text(
        '[objective]\npositive = "a"\nnegative = "b"\n'
        '[[measures]]\nname = "m"\nlow = "c"\nhigh = "d"\n'
    )
    config = tmp_path / "mine.toml"
    config.write_text('search = "search.toml"\nidentities = 100\n[network]\ndepth = 18\n')
    for more in ([], ["--dry-run"]):
        command = ["experiment", "face_recognition", str(config), *more]
        assert run_command([*command, "--out", str(tmp_path / "out")]) == 2
        told = capsys.readouterr().err.replace("\n", " ")
        assert "do not use images made with theirs for it" in told
    assert not (tmp_path / "out").exists()
