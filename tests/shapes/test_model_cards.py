"""Built-in models are small, and have cards."""

from pathlib import Path

import pytest

import qdgs_jax

ASSETS = Path(qdgs_jax.__file__).parent / "assets"


def test_size():
    total = sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file())
    assert total <= 6_000_000


@pytest.mark.parametrize("name", ["shapes_vae", "shapes_clip"])
def test_cards(name):
    card = (ASSETS / name / "README.md").read_text()
    for part in ("license: apache-2.0", "qdgs pretrain", "seed 0", "steps"):
        assert part in card
