"""The experiment, with a generator of plain colours and a network that reads colours as faces."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax import faceres, generators
from qdgs_jax.cli import run_command
from qdgs_jax.config import Config, parse_config
from qdgs_jax.errors import ConfigError, QDGSError
from qdgs_jax.experiments.annotated_faces import arms, experiment, guidance
from qdgs_jax.experiments.annotated_faces.config import AnnotatedFacesConfig, AttributeConfig
from qdgs_jax.generators import Generator
from qdgs_jax.image_measures import IMAGE_MEASURES
from qdgs_jax.runs.results import Elites

CONFIG = AnnotatedFacesConfig(
    attributes=(
        AttributeConfig(measure="presentation", values=("female", "male")),
        AttributeConfig(measure="red", values=("pale", "red"), limits=(0.8,), error=0.02),
    ),
    calls=500,
    images_a_group=40,
    same_person=0.999,
)


def render(params: Any, latents: Any) -> Any:
    """Colours by the first three latents."""
    colours = jax.nn.sigmoid(params * latents[:, :3])
    return jnp.broadcast_to(colours[:, None, None], (len(latents), 4, 4, 3))


def read(graph: Any, weights: Any, images: Any, node: str) -> Any:
    """Embeddings are colours; green faces are male, and many are."""
    colours = images.mean(axis=(1, 2))
    return colours if "Mean" in node else weights * (colours[:, 1:2] - 0.2)


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    def sample(key: Any, n: int) -> Any:
        return jax.random.normal(key, (n, 5))

    generator = Generator("colours", 5, 4, sample, render, "a" * 64)
    graph = SimpleNamespace(sha256="c" * 64)
    monkeypatch.setattr(generators, "load", lambda model, **_: (generator, jnp.float32(1)))
    monkeypatch.setattr(faceres, "load", lambda path=None: (graph, jnp.float32(10)))
    monkeypatch.setattr(faceres, "_apply", read)
    monkeypatch.setitem(IMAGE_MEASURES, "red", lambda images: images[..., 0].mean(axis=(1, 2)))
    monkeypatch.setattr(experiment, "find_judge", lambda: None)


def make_search(**options: Any) -> Config:
    values: dict[str, Any] = {
        "notice": "faces",
        "objective": {"regularisation": 1.0},
        "measures": [
            {"name": "red", "function": "red", "range": [0, 1], "cells": 8},
            {
                "name": "presentation", "function": "faceres:presentation", "range": [0, 1],
                "cells": 8,
            },
        ],
        "search": {
            "algorithm": "map_elites", "emitters": 2, "batch_size": 8, "initial_samples": 32,
            "constraint": "none", "chunk_size": 16, "threshold_min": -1000,
        },
        "run": {"log_every": 4, "checkpoint_every": 20},
    }  # fmt: skip
    return parse_config({**values, **options}, source="test")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faces") / "out"


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configs of searches, which are random here."""
    found: list[Config] = []

    def finished_run(config: Config, *_: Any, **__: Any) -> SimpleNamespace:
        found.append(config)
        return SimpleNamespace(elites=elites, summary={"seconds_run": 2.0, "coverage": 0.5})

    latents = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)
    red, green, _ = 1 / (1 + np.exp(-latents[:, :3].T))
    measures = np.stack([red, 1 / (1 + np.exp(-10 * (green - 0.2)))], axis=1)
    elites = Elites(latents, np.zeros(400), measures, np.arange(400))
    monkeypatch.setattr(arms, "finished_run", finished_run)
    return found


def test_experiment(out: Path, searches: list[Config], monkeypatch: pytest.MonkeyPatch) -> None:
    found = experiment.run_experiment(CONFIG, make_search(), out)
    assert found == json.loads((out / "results.json").read_text())
    rows = {row["arm"]: row for row in found["rows"]}
    for arm, row in rows.items():
        # The search begins with 32 and has generations of 16, 4 of them in a line of metrics;
        # guidance by readings works in batches of 16.
        assert row["calls"] == {"qdgs": 32 + 28 * 16, "improved": 250 + 15 * 16}.get(arm, 500)
        assert row["images"] == sum(row["groups"].values())
        assert row["drawn"] == sum(min(n, 40) for n in row["groups"].values())
        assert row["classifier_agrees"] == 1 or arm == "unfiltered"
        assert 0 < row["people"] <= row["drawn"]
        assert (out / f"{arm}.png").stat().st_size > 2000
    assert [each.search.generations for each in searches] == [28]
    assert 0.6 < rows["unfiltered"]["classifier_agrees"] < 1  # guided to where it was asked to
    assert rows["plain"]["rarest_group"] < 5
    assert rows["improved"]["rarest_group"] > 20
    assert rows["plain"]["unreached"] == ["female red"]
    directions = rows["published"]["accuracy_of_directions"]
    assert all(0.5 < share <= 1 for share in directions.values())
    text = (out / "table.md").read_text()
    assert "\n| improved | 490 |" in text
    assert "Judge: no second opinion: `pip install" in text

    # What is there is not found again; what is missing is, with the same result.
    (out / "results/improved.safetensors").unlink()
    monkeypatch.setattr(arms, "read_random", lambda *_: pytest.fail("random faces are known"))
    monkeypatch.setattr(arms, "search", lambda *_, **__: pytest.fail("the search is finished"))
    monkeypatch.setattr(experiment, "find_judge", lambda: judge)
    again = experiment.run_experiment(CONFIG, make_search(), out, resume=True)
    for before, now in zip(found["rows"], again["rows"], strict=True):
        assert before["groups"] == now["groups"]
        assert now["judge_agrees"]["presentation"] == 1 or now["arm"] == "unfiltered"
    assert again["judge"]["rank_correlation"]["presentation"] == pytest.approx(1, abs=1e-2)
    assert "judge: presentation" in (out / "table.md").read_text()


def judge(images: np.ndarray) -> dict[str, np.ndarray]:
    """It reads presentations as the classifier does, and ages that nobody asked for."""
    green = images[..., 1].mean(axis=(1, 2)) / 255
    return {"presentation": 1 / (1 + np.exp(-10 * (green - 0.2))), "age": green}


@pytest.mark.slow
def test_the_search_stays_within_its_calls(tmp_path: Path) -> None:
    search = make_search()
    problem = experiment.load_problem(search)
    groups = experiment.make_groups(CONFIG.attributes, [each.name for each in search.measures])
    found = arms.search(problem, groups, CONFIG, search, tmp_path / "run")
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["evaluations"] == found.calls == 32 + 28 * 16
    measures, _ = arms.Reader(problem)(found.latents)
    np.testing.assert_array_equal(groups.assign(measures, CONFIG.confidence), found.groups)
    assert set(found.groups) == {0, 1, 2, 3}


def test_folders_of_other_results_are_refused(out: Path) -> None:
    assert (out / "plan.json").exists()  # of the test before
    with pytest.raises(ConfigError, match="already holds results: pass --resume"):
        experiment.run_experiment(CONFIG, make_search(), out)
    other = dataclasses.replace(CONFIG, confidence=0.8)
    with pytest.raises(ConfigError, match=r"another config .*confidence was 0.7, now 0.8"):
        experiment.run_experiment(other, make_search(), out, resume=True)
    (out / "results/plain.safetensors").write_bytes(b"half")
    with pytest.raises(QDGSError, match=r"plain.safetensors is damaged .*: remove it"):
        experiment.run_experiment(CONFIG, make_search(), out, resume=True)


def test_one_program_reads_any_number_of_latents() -> None:
    problem = experiment.load_problem(make_search())
    reader = arms.Reader(problem)
    latents = np.asarray(problem.generator.sample(jax.random.key(3), 37))
    measures, embeddings = reader(latents)
    colours = 1 / (1 + np.exp(-latents[:, :3]))
    np.testing.assert_allclose(measures[:, 0], colours[:, 0], rtol=1e-5)
    unit = colours / np.linalg.norm(colours, axis=1, keepdims=True)
    np.testing.assert_allclose(embeddings, unit, atol=1e-3)
    assert len(reader(latents[:0])[0]) == 0
    assert reader._read.func._cache_size() == 1


def test_directions_change_one_attribute_and_identity_least() -> None:
    random = np.random.default_rng(0)
    latents, (G, J) = random.normal(size=(4000, 6)), (random.normal(size=(n, 6)) for n in (2, 9))
    found = guidance.least_change(latents, latents @ G.T + 3, latents @ J.T)
    np.testing.assert_allclose(G @ found.T, np.eye(2), atol=0.01)

    def change(directions: np.ndarray) -> np.ndarray:
        scale = np.trace(J.T @ J) / 6
        squares = ((J @ directions.T) ** 2).sum(axis=0), (directions**2).sum(axis=1)
        return squares[0] / scale + squares[1]

    free = np.linalg.svd(G)[2][2:]  # directions that change no attribute
    for sideways in (*free, *-free):
        assert (change(found + 0.05 * sideways) > change(found)).all()


def test_the_search_counts_gradients_and_random_images() -> None:
    options = {"algorithm": "cma_maega", "emitters": 2, "batch_size": 4, "initial_samples": 32}
    search = make_search(search=options, objective={}, run={"log_every": 1, "checkpoint_every": 1})
    problem = SimpleNamespace(search=SimpleNamespace(evaluations_per_generation=2 * (1 + 4)))
    before, each = 2048 + 2 * 32, 2 * (1 + 4) + 2 * 3
    assert arms.search_length(problem, search, before + 3 * each - 1) == (2, before + 2 * each)
    auto = make_search(measures=[{"name": "red", "function": "red"}])
    with pytest.raises(ConfigError, match=r"'red' is 'auto', .* give it in numbers"):
        arms.search_length(problem, auto, 500)


@pytest.mark.parametrize(
    ("config", "search", "sentence"),
    [
        (
            {"calls": 90},
            {},
            "90 calls are too few for the search, which takes 32 to begin and 64 between",
        ),
        ({}, {"measures": [{"name": "red", "function": "red", "range": [0, 1]}]}, "reads faces"),
        ({"attributes": ()}, {}, "no attributes"),
    ],
)
def test_mistakes_get_a_sentence(
    config: dict[str, Any], search: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    attributes = {"attributes": CONFIG.attributes[1:]} if search else {}
    with pytest.raises(ConfigError, match=sentence):
        experiment.run_experiment(
            dataclasses.replace(CONFIG, **attributes, **config),
            make_search(**search),
            tmp_path / "out",
        )


def test_the_notice_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Path(__file__).parents[3] / "configs/experiments/annotated_faces.toml"
    command = ["experiment", "annotated_faces", str(config), "--out", str(tmp_path / "out")]
    assert run_command(command) == 2
    assert "do not use images made with theirs for it" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out").exists()
    assert run_command(["experiment", "repair", str(config)]) == 2
    assert "run `qdgs experiment annotated_faces" in capsys.readouterr().err
