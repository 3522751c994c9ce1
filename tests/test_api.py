"""Public names, their conventions, and imports without side effects."""

import ast
import builtins
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import qdgs_jax

FUNCTIONS = [name for name in qdgs_jax.__all__ if inspect.isfunction(getattr(qdgs_jax, name))]
DATA = {"latents", "images", "embeddings", "objective", "measures", "data"}


def run_fresh(code: str) -> str:
    """What a fresh process prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", qdgs_jax.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(qdgs_jax, name)
    assert (value.__doc__ or "").strip()
    assert name in dir(qdgs_jax)


def test_type_checkers_see_the_names_that_are_imported_lazily() -> None:
    tree = ast.parse(Path(qdgs_jax.__file__).read_text())
    imported = {
        (str(node.module).removeprefix("qdgs_jax."), alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("qdgs_jax.")
        for alias in node.names
    }
    assert imported == {(module, name) for name, module in qdgs_jax._HOME.items()}
    assert sorted(qdgs_jax._HOME) == sorted(qdgs_jax.__all__)
    assert (Path(qdgs_jax.__file__).parent / "py.typed").is_file()


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'smaple'"):
        _ = qdgs_jax.smaple


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures_follow_the_conventions(name: str) -> None:
    """Params before the key, the key before data; options are keyword-only."""
    parameters = list(inspect.signature(getattr(qdgs_jax, name)).parameters.values())
    positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    ranks = [
        ["params", "key", "data"].index("data" if word in DATA else word)
        for word in positional
        if word in {"params", "key"} | DATA
    ]
    assert ranks == sorted(ranks)
    for parameter in parameters:
        assert not hasattr(builtins, parameter.name), f"{parameter.name} shadows a builtin"
        if parameter.default is not parameter.empty:
            optional_data = name == "make_search" and parameter.name.startswith("score")
            assert parameter.kind is parameter.KEYWORD_ONLY or optional_data, parameter.name


def test_the_package_alone_imports_nothing_slow() -> None:
    code = "import sys, qdgs_jax; print(*(m for m in ('jax', 'matplotlib') if m in sys.modules))"
    assert run_fresh(code).split() == []


def test_importing_everything_starts_no_backend() -> None:
    """`jax.distributed.initialize` must still be possible; it fails once a backend is there."""
    code = """
import importlib, pkgutil, socket, jax, qdgs_jax
for module in pkgutil.walk_packages(qdgs_jax.__path__, "qdgs_jax."):
    importlib.import_module(module.name)
with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
jax.distributed.initialize(address, num_processes=1, process_id=0)
print(jax.process_count())
"""
    assert run_fresh(code).split()[-1] == "1"


def test_help_and_version_import_no_jax() -> None:
    code = """
import sys
from qdgs_jax.cli import run_command
try:
    run_command([{argument!r}])
except SystemExit as end:
    assert not end.code
assert "jax" not in sys.modules, "jax was imported"
"""
    assert "sample" in run_fresh(code.format(argument="--help"))
    assert run_fresh(code.format(argument="--version")).strip() == f"qdgs {qdgs_jax.__version__}"
