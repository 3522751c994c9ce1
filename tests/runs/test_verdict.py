"""Verdicts tell good runs from bad ones."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax.config import parse_config
from qdgs_jax.generators import Generator
from qdgs_jax.problem import Problem, load_problem
from qdgs_jax.runs import verdict
from qdgs_jax.runs.verdict import Verdict

LAST = {"evaluations": 1000, "non_finite": 0, "atypical": 0, "below_floor": 0}


def render(params: jax.Array, latents: jax.Array) -> jax.Array:
    """A horizontal and a vertical gradient."""
    ramp = jnp.linspace(-1, 1, 16)
    x, y = latents[:, 0, None, None], latents[:, 1, None, None]
    images = jax.nn.sigmoid(params * (x * ramp[None, None] + y * ramp[None, :, None] + x))
    return jnp.repeat(images[..., None], 3, axis=-1)


GENERATOR = Generator("ramps", 2, 16, lambda key, n: jax.random.normal(key, (n, 2)), render)


@pytest.fixture(autouse=True)
def judged_images(second_opinion: Callable[..., float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "make_typical_share", second_opinion)


@pytest.fixture(scope="module")
def problem() -> Problem:
    config = parse_config(
        {
            "objective": {},
            "measures": [{"name": "light", "function": "brightness", "range": [0.2, 0.8]}],
            "search": {"constraint": "typical", "initial_samples": 64},
            "export": {
                "count": 100,
                "bins": [
                    {"name": "dark", "label": "dark", "where": {"light": [0, 0.5]}},
                    {"name": "light", "label": "light", "where": {"light": [0.5, 1]}},
                ],
            },
        },
        source="test",
    )
    return load_problem(config, generator=(GENERATOR, jnp.float32(1)))


def judged(problem: Problem, scale: float, light: tuple[float, float], **last: int) -> Verdict:
    """On 200 latents, scaled, whose measure is spread between two values."""
    latents = scale * np.asarray(GENERATOR.sample(jax.random.key(5), 200))
    measures = np.linspace(*light, 200)[:, None]
    return verdict.judge(problem, latents, np.full(200, 100.0), measures, {**LAST, **last})


def said(verdict: Verdict) -> str:
    return " ".join(verdict.sentences())


def test_random_latents_are_in_distribution(problem: Problem) -> None:
    found = judged(problem, 1.0, (0.2, 0.8))
    assert found.latents_in_distribution > 0.98
    assert found.images_typical > 0.95
    (reach,) = found.reach
    assert (reach.low_reached, reach.high_reached, reach.beyond) == (True, True, 0)
    assert (found.exportable, found.repeated, found.empty_bins) == (200, 0, ())
    assert len(found.sentences()) == 1


def test_what_is_wrong_is_said_with_its_remedy(problem: Problem) -> None:
    found = judged(problem, 6.0, (0.55, 0.9), atypical=700)
    assert found.latents_in_distribution < 0.2
    assert found.images_typical < 0.5
    (reach,) = found.reach
    assert not reach.low_reached
    assert reach.high_reached
    assert reach.beyond > 0.2
    text = said(found)
    assert "search.constraint" in text
    assert "does not reach its low end (0.55 of 0.2)" in text
    assert "lie beyond its range, in border cells" in text
    assert "70.0% of the latents had images unlike random ones" in text
    assert "No elite lies in the bins dark" in text


def test_repetitions_are_foretold(problem: Problem) -> None:
    config = dataclasses.replace(
        problem.config, export=dataclasses.replace(problem.config.export, count=300)
    )
    found = judged(dataclasses.replace(problem, config=config), 1.0, (0.2, 0.8))
    assert found.repeated == 100
    assert "100 images again" in said(found)


def test_an_empty_archive_says_why(problem: Problem) -> None:
    none = np.zeros((0, 2)), np.zeros(0), np.zeros((0, 1))
    found = verdict.judge(problem, *none, {**LAST, "below_floor": 990, "atypical": 10})
    assert found.sentences() == [
        "No elite: 99.0% of the latents had an objective at or below search.threshold_min: lower "
        "it, or set it to 'auto'."
    ]
