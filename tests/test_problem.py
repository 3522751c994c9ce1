"""Problems of configs, with the toy models."""

import dataclasses
import functools
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax import automatic, image_measures, problem, search
from qdgs_jax.config import Config, MeasureConfig
from qdgs_jax.emitters.variation import Variation
from qdgs_jax.errors import ConfigError
from qdgs_jax.generators import Generator
from qdgs_jax.problem import load_problem
from qdgs_jax.search_config import SearchConfig

pytestmark = pytest.mark.usefixtures("toy_models")


def test_too_few_initial_samples(toy_config: Config) -> None:
    few = dataclasses.replace(toy_config.search, initial_samples=1)
    with pytest.raises(ConfigError, match=r"initial_samples \(1\) must be at least"):
        load_problem(dataclasses.replace(toy_config, search=few))


def test_weights_are_arguments_not_constants(toy_config: Config) -> None:
    made = load_problem(toy_config)
    state = jax.eval_shape(
        functools.partial(search.init, made.search), made.params, *made.initial_latents()
    )
    program = jax.make_jaxpr(lambda params, state: search.run(made.search, params, state, 2))
    constants = program(made.params, state).consts
    smallest_weight = min(leaf.size for leaf in jax.tree.leaves(made.params))
    assert all(np.size(constant) < smallest_weight for constant in constants)


def test_auto_ranges_hold_the_random_samples(toy_config: Config) -> None:
    made = load_problem(toy_config)
    _, latents = made.initial_latents()
    measures = made.score(made.params, jax.random.key(0), latents, ())[0].measures
    low, high = zip(*(measure.range for measure in made.config.measures), strict=True)
    assert ((measures > jnp.array([low])) & (measures < jnp.array([high]))).mean() > 0.95


def of_function(function: str, **options: object) -> MeasureConfig:
    return MeasureConfig(name="m", function=function, **options)  # type: ignore[arg-type]


def range_of(values: object, cells: int = 10) -> tuple[float, float]:
    measure = of_function("brightness", cells=cells)
    return automatic._range_of(measure, np.asarray(values, np.float64))


SPREAD = np.linspace(0, 1, 512)


@pytest.mark.parametrize(
    ("offset", "span"), [(0, 1), (-0.5, 1), (1000, 1), (12345.3, 12), (123456, 1), (0, 1e-7)]
)
def test_auto_ranges_are_a_quarter_wider_wherever_they_lie(offset: float, span: float) -> None:
    low, high = range_of(offset + span * SPREAD)
    assert low == pytest.approx(offset - span / 4, abs=1e-3 * span)
    assert high == pytest.approx(offset + span * 5 / 4, abs=1e-3 * span)
    assert len(f"{low:.15g}".lstrip("-0.").replace(".", "")) <= 10  # rounded


def test_auto_ranges_around_zero_have_four_digits() -> None:
    assert range_of([-0.123456, 0.654321]) == (-0.3179, 0.8488)


@pytest.mark.parametrize("outlier", [50.0, -1e6, np.nan, np.inf])
def test_an_outlier_does_not_set_an_auto_range(outlier: float) -> None:
    assert range_of([*SPREAD, outlier]) == range_of(SPREAD) == (-0.25, 1.25)
    assert range_of([*SPREAD[::32], outlier]) == range_of(SPREAD[::32])


def test_a_rare_class_is_no_outlier() -> None:
    assert range_of([0.0] * 511 + [1.0]) == (-0.25, 1.25)
    assert range_of([*SPREAD, *SPREAD[:20] + 3]) == pytest.approx((-0.759, 3.796), abs=1e-3)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([0.5] * 20, "has no `range`, and its random samples are 0.5 throughout"),
        ([np.nan] * 20, "has no `range`, and its random samples are not finite"),
        (1e8 + SPREAD, "lie between 100000000 and 100000001: a range like theirs .* 10 cells"),
        (1e20 * SPREAD, "a range like theirs"),
    ],
)
def test_samples_without_a_range_are_told(values: object, sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"measure 'm' .*{sentence}"):
        range_of(values)


def test_other_measures_do_not_matter_to_an_auto_range(
    toy_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(image_measures.IMAGE_MEASURES, "constant", lambda x: jnp.zeros(len(x)))
    monkeypatch.setitem(image_measures.IMAGE_MEASURES, "nan", lambda x: x[:, 0, 0, 0] * jnp.nan)
    auto = toy_config.measures[1]
    rare = of_function("constant", range=(0, 1))
    odd = dataclasses.replace(of_function("nan", range=(0, 1)), name="n")
    alone = load_problem(dataclasses.replace(toy_config, measures=(auto,)))
    among = load_problem(dataclasses.replace(toy_config, measures=(rare, auto, odd)))
    assert among.config.measures[1] == alone.config.measures[0]
    assert among.config.measures[0] == rare


def test_a_search_larger_than_any_memory_is_refused(toy_config: Config) -> None:
    measures = tuple(
        dataclasses.replace(m, range=(-1, 1), cells=10_000) for m in toy_config.measures
    )
    many = dataclasses.replace(toy_config.search, emitters=100_000, initial_samples=1_000_000)
    huge = Generator("huge", 100_000, 4, lambda key, n: jnp.zeros((n, 1)), lambda p, z: z)
    found = load_problem(dataclasses.replace(toy_config, measures=measures))
    config = dataclasses.replace(found.config, search=many)
    found = dataclasses.replace(found, config=config, generator=huge)
    with pytest.raises(ConfigError, match=r"needs [\d,]+ GiB on each device for 100,000,000 cells"):
        problem.require_memory(found)


MAKERS = """
from qdgs_jax.emitters.variation import Variation

def make(options, archive, latent_size):
    assert (archive.cells, latent_size) == ((6, 5), 5)
    return Variation(emitters=3, batch_size=4, sigma=options.sigma0)

def greedy(options, archive, latent_size):
    return Variation(emitters=17, batch_size=4, sigma=1.0)

def wrong(options, archive, latent_size):
    return "Variation"

def broken(options, archive, latent_size):
    return options.no_such_option
"""


def test_a_config_names_its_own_emitter(
    toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_emitters.py").write_text(MAKERS)
    monkeypatch.syspath_prepend(tmp_path)

    options = dataclasses.replace(toy_config.search, emitter="own_emitters:make")
    config = dataclasses.replace(toy_config, search=options)
    made = load_problem(config, allow_code=True).search
    assert made.emitter == Variation(3, 4, options.sigma0)
    assert made.annealed
    for name, sentence in [
        ("make", "'make' is no function: write 'package.module:make'"),
        ("own_emitters:other", "does not exist in the module own_emitters"),
        ("own_emitters:greedy", r"starts from 17 latents: raise search.initial_samples \(16\)"),
        ("own_emitters:wrong", "returns a str: let it return an emitter"),
        ("own_emitters:broken", "fails .*no_such_option.*: mend it"),
    ]:
        options = dataclasses.replace(options, emitter=name)
        with pytest.raises(ConfigError, match=sentence):
            problem._own_emitter(options, made.archive, 5, allow_code=True)
    with pytest.raises(ConfigError, match="pass --allow-code"):
        problem._own_emitter(options, made.archive, 5, allow_code=False)


@pytest.mark.parametrize(
    ("options", "step_size"),
    [
        ({"algorithm": "cma_maega"}, 0.29),
        ({"algorithm": "cma_me"}, 0.5),
        ({"algorithm": "cma_me", "strategy": "openai_es"}, 0.29),
        ({"algorithm": "map_elites"}, 0.5),
    ],
)
def test_steps_are_in_units_of_random_latents(options: dict, step_size: float) -> None:
    """Where `step_size` has no effect, it is left alone, as changing it is refused."""
    params = {"latents": SimpleNamespace(spread=0.5773)}
    scaled = problem._in_units_of(params, SearchConfig(**options))
    assert (scaled.sigma0, scaled.step_size) == (0.29, step_size)
