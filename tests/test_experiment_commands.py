"""What the commands of all experiments have in common."""

from pathlib import Path

import pytest

from qdgs_jax.cli import run_command
from qdgs_jax.experiment_commands import COMMANDS
from qdgs_jax.named_config import EXPERIMENTS

SEARCH = """
notice = "faces"
[objective]
positive = "a"
negative = "b"
[[measures]]
name = "m"
low = "c"
high = "d"
"""


@pytest.mark.parametrize("name", COMMANDS)
def test_the_notice_of_the_search_comes_first(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "search.toml").write_text(SEARCH)
    config = tmp_path / "mine.toml"
    command = ["experiment", name, str(config), "--out", str(tmp_path / "out")]
    config.write_text('search = "search.toml"\n')
    assert run_command(command) == 2
    told = capsys.readouterr().err.replace("\n", " ")
    assert "do not use images made with theirs for it" in told
    config.write_text("")
    assert run_command(command) == 2
    assert "names no `search`: add one" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_each_experiment_has_a_command() -> None:
    assert COMMANDS.keys() == EXPERIMENTS.keys()
