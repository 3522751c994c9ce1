"""Examples and links of the README and the documents work, and so does `examples/`."""

import re
import runpy
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

import qdgs_jax
from qdgs_jax import search
from qdgs_jax.archives import GridArchive
from qdgs_jax.search_config import SearchConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = {
    f"{page.name}-{number}": example
    for page in PAGES
    for number, example in enumerate(
        re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    )
}
DEMO, *SEARCHES = "README.md-0", "own_loop.md-0", "own_loop.md-1"
SEEDS, REPORT, OWN_EMITTER = "own_loop.md-2", "own_loop.md-3", "own_loop.md-4"
OTHERS = {DEMO, *SEARCHES, SEEDS, REPORT, OWN_EMITTER}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in SEARCHES]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("example", [*sorted(EXAMPLES.keys() - OTHERS), *SLOW])
def test_example(example: str) -> None:
    names: dict = {}
    exec(EXAMPLES[example], names)
    if "state" in names:
        assert names["state"].elites.count > 200
    else:
        problem = names["problem"]
        images = problem.generator.render(problem.params["generator"], problem.initial_latents()[1])
        assert images.shape[1:] == (32, 32, 3)
        assert all(low < high for low, high in (m.range for m in problem.config.measures))


@pytest.mark.slow
def test_own_generator(folder: Path) -> None:
    names = runpy.run_path(str(ROOT / "examples/own_generator.py"))
    assert names["summary"]["elites"] > 100
    assert len(list((folder / "dataset").glob("*/*.png"))) == names["config"].export.count


@pytest.mark.slow
def test_qdax_map_elites() -> None:
    names = runpy.run_path(str(ROOT / "examples/qdax_map_elites.py"))
    assert names["repertoire"].state.count > 5000


@pytest.mark.slow
def test_qdax_on_shapes() -> None:
    with jax.numpy_rank_promotion("allow"):  # QDax's repertoire promotes ranks implicitly
        names = runpy.run_path(str(ROOT / "examples/qdax_on_shapes.py"))
    assert len(names["elites"]) > 100
    assert names["images"].shape == (len(names["elites"]), 128, 128, 3)


@pytest.mark.slow
def test_balanced_dataset(folder: Path) -> None:
    names = runpy.run_path(str(ROOT / "examples/balanced_dataset.py"))
    assert names["balance"].got == len(names["exported"]) == 200
    random, exported = (
        [float(share.rstrip("%")) for share in names["groups"](images).values()]
        for images in (names["random"], names["exported"].pixels / 255)
    )
    assert min(random) < 5
    assert min(exported) > 20


@pytest.mark.slow
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_ask_tell(library: str) -> None:
    pytest.importorskip(library)
    name = {"numpy": "ask_tell", "torch": "ask_tell_torch"}[library]
    names = runpy.run_path(str(ROOT / f"examples/{name}.py"))
    assert names["state"].elites.count > 200
    assert names["state"].elites.objective.max() > 50


@pytest.mark.slow
def test_seeds_at_once() -> None:
    names: dict = {}
    exec(EXAMPLES[SEEDS], names)
    assert names["states"].elites.count.shape == (5,)
    assert names["metrics"].coverage.min() > 0.3
    assert len(np.unique(names["metrics"].qd_score)) == 5


def test_a_report_writes_scalars(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list = []

    class Writer:
        def add_scalar(self, *values: object) -> None:
            written.append(values)

    def sample(config: object, out: str, report: Callable) -> None:
        report({"generation": 10, "coverage": 0.5})

    monkeypatch.setattr(qdgs_jax, "sample", sample, raising=False)
    exec(EXAMPLES[REPORT], {"writer": Writer()})
    assert written == [("generation", 10, 10), ("coverage", 0.5, 10)]


def test_an_emitter_of_qdax_is_made() -> None:
    names: dict = {}
    exec(EXAMPLES[OWN_EMITTER], names)
    options, archive = SearchConfig(algorithm="map_elites"), GridArchive((4, 4), (0, 0), (1, 1))
    made = search.make_search(options, archive, emitter=names["make"](options, archive, 8))
    assert made.evaluations_per_generation == options.emitters * options.batch_size


def test_torch_dcgan(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qdgs_jax import generators

    networks = ROOT / "tests/models/dcgan"
    (folder / "generator.pt").symlink_to(networks / "weights.tar")
    monkeypatch.syspath_prepend(ROOT / "examples")
    generator, params = generators.load("torch_dcgan:make", allow_code=True)
    golden = np.load(networks / "golden.npz")  # by PyTorch
    images = generator.render(params, golden["latents"])
    np.testing.assert_allclose(images, (golden["images"].transpose(0, 2, 3, 1) + 1) / 2, atol=1e-5)


@pytest.mark.slow
def test_three_lines_make_a_dataset(folder: Path) -> None:
    """A shorter search than `make demo`, of the same config."""
    (folder / "configs").unlink()
    shorter = folder / "configs/search/shapes.toml"
    shorter.parent.mkdir(parents=True)
    text = (ROOT / "configs/search/shapes.toml").read_text()
    shorter.write_text(text.replace("generations = 200", "generations = 120"))
    exec(EXAMPLES[DEMO], {})
    assert len(list((folder / "dataset").glob("*/*.png"))) == 1000


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page: Path) -> None:
    targets = re.findall(r"\]\(((?!https?:)[^)#]+)\)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []
    named = re.findall(r"(?:configs|benchmarks|docs|examples)/[\w./]+\w", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []
