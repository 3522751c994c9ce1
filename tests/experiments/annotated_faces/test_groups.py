"""Confidence of groups, by hand."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from qdgs_jax.config import load_config
from qdgs_jax.errors import ConfigError
from qdgs_jax.experiments.annotated_faces.config import AnnotatedFacesConfig, AttributeConfig
from qdgs_jax.experiments.annotated_faces.groups import make_groups
from qdgs_jax.experiments.config import load_experiment_config

CONFIGS = Path(__file__).parents[3] / "configs/experiments"
AGE = AttributeConfig(measure="age", values=("young", "old"), limits=(30.0,), error=2.0)
MALE = AttributeConfig(measure="male", values=("female", "male"))
GROUPS = make_groups([AGE, MALE], ["male", "other", "age"])


def test_the_confidence_is_the_least_probability_of_a_groups_values() -> None:
    assert GROUPS.names == ("young female", "young male", "old female", "old male")
    measures = np.array([[0.25, 0.0, 28.0], [0.9, 0.0, 31.0], [np.nan, 0.0, 20.0]])
    one, half = 0.841345, 0.691462  # of a normal distribution below 1 and 0.5
    expected = [
        [0.75, 0.25, 1 - one, 1 - one],
        [0.1, 1 - half, 0.1, half],
        [0.0, 0.0, 0.0, 0.0],
    ]
    np.testing.assert_allclose(GROUPS.confidences(measures), expected, atol=1e-5)
    assert GROUPS.assign(measures, 0.7).tolist() == [0, -1, -1]
    assert GROUPS.assign(measures, 0.69).tolist() == [0, 3, -1]


def test_the_ends_of_intervals_have_their_confidence() -> None:
    lower, upper = GROUPS.intervals(0.8)
    assert np.isneginf(lower[0]).all()
    assert np.isposinf(upper[3]).all()
    for group, ends in ((0, upper[0]), (3, lower[3])):
        age, odds = ends
        measures = np.array([[1 / (1 + np.exp(-odds)), 0.0, age]])
        np.testing.assert_allclose(GROUPS.coordinates(measures), [ends], rtol=1e-6)
        assert GROUPS.confidences(measures)[0, group] == pytest.approx(0.8)
    narrow = dataclasses.replace(AGE, values=("a", "b", "c"), limits=(30.0, 31.0))
    lower, upper = make_groups([narrow], ["age"]).intervals(0.8)
    assert lower[1] == upper[1] == 30.5


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.glob("annotated_faces*.toml")), ids=lambda p: p.stem
)
def test_shipped_configs_have_18_groups(path: Path) -> None:
    config = load_experiment_config(AnnotatedFacesConfig, path)
    search = load_config(config.search)
    assert search.notice == "faces"
    assert len(make_groups(config.attributes, [measure.name for measure in search.measures])) == 18


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"limits": (1.0,), "values": ("a", "b", "c")}, "3 `values` for 1 `limits`: give 2"),
        ({"limits": (2.0, 1.0), "values": ("a", "b", "c")}, "must ascend"),
        ({"error": 0.0}, "both `limits` and a positive `error`"),
        ({"values": ("a", "a")}, "distinct `values`"),
    ],
)
def test_mistakes_get_a_sentence(values: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        dataclasses.replace(AGE, **values)


def test_attributes_are_measures_of_the_search() -> None:
    with pytest.raises(ConfigError, match=r"'age' is none of .* \(did you mean 'ages'\?\)"):
        make_groups([AGE], ["ages"])
    with pytest.raises(ConfigError, match=r"add .*attributes"):
        make_groups([], ["age"])
