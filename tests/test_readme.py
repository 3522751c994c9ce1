"""Examples and links of the README and the documents work, and so does `examples/`."""

import re
import runpy
from pathlib import Path

import pytest

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
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in SEARCHES]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("example", [*sorted(EXAMPLES.keys() - {DEMO, *SEARCHES}), *SLOW])
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
def test_three_lines_make_a_dataset(folder: Path) -> None:
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
