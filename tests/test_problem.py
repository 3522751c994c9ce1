"""Problems of configs, with the toy models."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax import search
from qdgs_jax.config import Config
from qdgs_jax.errors import ConfigError
from qdgs_jax.problem import load_problem

pytestmark = pytest.mark.usefixtures("toy_models")


def test_too_few_initial_samples(toy_config: Config) -> None:
    few = dataclasses.replace(toy_config.search, initial_samples=1)
    with pytest.raises(ConfigError, match=r"initial_samples \(1\) must be at least"):
        load_problem(dataclasses.replace(toy_config, search=few))


def test_weights_are_arguments_not_constants(toy_config: Config) -> None:
    problem = load_problem(toy_config)
    state = jax.eval_shape(
        functools.partial(search.init, problem.search), problem.params, *problem.initial_latents()
    )
    program = jax.make_jaxpr(lambda params, state: search.run(problem.search, params, state, 2))
    constants = program(problem.params, state).consts
    smallest_weight = min(leaf.size for leaf in jax.tree.leaves(problem.params))
    assert all(np.size(constant) < smallest_weight for constant in constants)


def test_auto_ranges_hold_the_random_samples(toy_config: Config) -> None:
    problem = load_problem(toy_config)
    _, latents = problem.initial_latents()
    measures = problem.score(problem.params, jax.random.key(0), latents, ())[0].measures
    low, high = zip(*(measure.range for measure in problem.config.measures), strict=True)
    assert ((measures > jnp.array([low])) & (measures < jnp.array([high]))).mean() > 0.95
