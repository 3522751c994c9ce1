"""What the README shows works."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_example(example, monkeypatch):
    monkeypatch.chdir(README.parent)
    names = {}
    exec(example, names)
    elites = names["state"].elites if "repertoire" not in names else names["repertoire"].state
    assert elites.count > 200
