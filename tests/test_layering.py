"""The modules form a pipeline: each imports only from those before it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "qdgs_jax"
ORDER = [
    "errors", "files", "typing", "config", "models", "shapes", "generators", "encoders", "prompts",
    "image_measures", "typicality", "jacobian", "scoring", "archive", "emitters", "search",
    "pretrain", "figures", "runs", "image_folder", "dataset_card", "dataset",
    "pooled_convolution", "classifier", "fairness", "labelled_folder", "repair", "cli",
]  # fmt: skip

SOURCES = sorted(PACKAGE.rglob("*.py"))


def stage(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_stages(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qdgs_jax"):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {
                alias.name.split(".")[1]
                for alias in node.names
                if alias.name.startswith("qdgs_jax.")
            }
    return found - {stage(path)}


def test_every_module_has_its_place() -> None:
    assert {stage(path) for path in SOURCES} - {"__init__", "assets"} == set(ORDER)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_backwards(path: Path) -> None:
    if stage(path) == "__init__":
        return
    before = ORDER[: ORDER.index(stage(path))]
    assert imported_stages(path) <= set(before)


def test_nothing_needs_torch() -> None:
    roots = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert not {root for root in roots if root.split(".")[0] == "torch"}
