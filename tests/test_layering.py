"""The package is a pipeline of stages, modules and folders alike: imports point backwards only."""

import ast
import graphlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "qdgs_jax"
ORDER = [
    "typing", "errors", "processes", "files", "plugins", "schema", "search_config", "config",
    "folders", "provenance", "chunks", "sharding", "keys", "models", "generators", "encoders",
    "prompts", "faceres", "blazeface", "image_measures", "expressions", "typicality", "jacobian",
    "scoring", "automatic", "archives", "emitters", "search", "problem", "bins", "collectives",
    "compilation", "runs", "datasets", "training", "evaluation", "shapes", "experiments",
    "catalogue", "named_config", "terminal", "experiment_commands", "cli", "__main__",
]  # fmt: skip
PORTS = {"clip", "dcgan", "iresnet", "siglip", "stylegan2", "tfjs", "vae"}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in SOURCES}


def stage(name: str) -> str:
    return name.split(".")[1] if "." in name else "__init__"


def imported_modules(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else str(node.module) for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == PACKAGE.name}


def test_every_stage_has_its_place() -> None:
    assert {stage(name) for name in MODULES} - {"__init__", "assets"} == set(ORDER)


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"qdgs_jax"}))
def test_imports_point_backwards(name: str) -> None:
    here = ORDER.index(stage(name))
    stages = {stage(other) for other in imported_modules(MODULES[name])} - {stage(name)}
    assert stages <= set(ORDER[:here])


def test_no_import_is_circular() -> None:
    graph = {name: imported_modules(path) - {name} for name, path in MODULES.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("port", sorted(PORTS))
def test_a_port_knows_no_other(port: str) -> None:
    mine = {name for name in MODULES if name.startswith(f"qdgs_jax.models.{port}")}
    others = {other for name in mine for other in imported_modules(MODULES[name])} - mine
    assert not {other for other in others if PORTS - {port} & set(other.split("."))}


def test_nothing_needs_torch() -> None:
    roots = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert "torch" not in {root.split(".")[0] for root in roots}
