"""A finished run is used again only if its search is the same."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from qdgs_jax.config import load_config
from qdgs_jax.experiments.searches import is_resolved

CONFIGS = Path(__file__).parents[2] / "configs/search"


@pytest.mark.parametrize("name", ["shapes", "faces_skin_tone"])
def test_what_was_auto_may_be_any_number(name: str) -> None:
    search = load_config(CONFIGS / f"{name}.toml")

    def changed(**options: Any) -> Any:
        return dataclasses.replace(
            search,
            search=dataclasses.replace(search.search, **options),
            measures=tuple(
                dataclasses.replace(each, range=(-2.0, 3.0)) if each.range == "auto" else each
                for each in search.measures
            ),
        )

    assert search.search.threshold_min == "auto"
    assert is_resolved(changed(threshold_min=-1.5), search)
    assert not is_resolved(changed(generations=2000), search)
    assert not is_resolved(dataclasses.replace(changed(), seed=9), search)
    assert not is_resolved(search, changed(threshold_min=-1.5))
    renamed = dataclasses.replace(search.measures[0], cells=7), *search.measures[1:]
    assert not is_resolved(dataclasses.replace(changed(), measures=renamed), search)
