"""The arms of the experiment: latents that each takes for examples of groups.

All arms read images by the same networks and have as many passes through the generator: a latent
rendered is one, a gradient pulled back to a latent another. Seconds are those of rendering, reading
and fitting, without those of compiling and loading.

plain        random faces, kept where they are examples of a group by the classifier
published    a share of the random faces, and guidance by their labels: one direction a group
unfiltered   the same latents, labelled by the group that they were guided to, unread
improved     the same share of random faces, and guidance by their readings, step by step
qdgs         elites of a search

The guided ones are in `guidance`.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from qdgs_jax import faceres, typicality
from qdgs_jax.config import Config
from qdgs_jax.errors import ConfigError
from qdgs_jax.experiments.annotated_faces.config import AnnotatedFacesConfig
from qdgs_jax.experiments.annotated_faces.groups import Groups
from qdgs_jax.experiments.searches import finished_run
from qdgs_jax.image_measures import weights_of
from qdgs_jax.keys import make_key
from qdgs_jax.models import tfjs
from qdgs_jax.problem import Problem
from qdgs_jax.typing import Array, Latents, Params


class Found(NamedTuple):
    """What an arm found."""

    latents: np.ndarray  # [n, D]
    groups: np.ndarray  # [n] int32, the group that each is an example of
    calls: int
    """Passes through the generator."""
    seconds: float
    about: dict[str, Any]
    """Figures of this arm alone, as plain JSON values."""


class Random(NamedTuple):
    """Random faces, which all arms but the search share."""

    latents: np.ndarray  # [calls, D]
    measures: np.ndarray  # [calls, M]
    embeddings: np.ndarray  # [L, E] of the first ones, which guidance is fitted to
    seconds: float

    @property
    def labelled(self) -> int:
        """L."""
        return len(self.embeddings)


class Reader:
    """Latents -> measures of the search, and unit embeddings, by one program for all sizes."""

    def __init__(self, problem: Problem) -> None:
        """
        Raises:
            ConfigError: no measure of the search reads faces.
        """
        graph, model = _embedder(problem)
        size = problem.config.search.chunk

        @jax.jit
        def read(params: Params, latents: Latents) -> tuple[Array, Array]:
            keys = jax.random.split(jax.random.key(0), size)
            scores, _ = problem.score.score_rows(params, keys, latents, ())
            # The same images, and the same layers of the network: the compiler merges both.
            images = problem.generator.render(params["generator"], latents)
            embeddings = faceres.embed(graph, params["classifiers"][model], images)
            return scores.measures, embeddings.astype(jnp.float16)

        self.size = size
        self._read = functools.partial(read, problem.params)
        self(np.zeros((1, problem.generator.latent_size), np.float32))  # compiles

    def __call__(self, latents: np.ndarray, words: str = "") -> tuple[np.ndarray, np.ndarray]:
        """Measures [n, M] and embeddings [n, E] float16 of latents [n, D].

        Args:
            words: what a progress bar says; empty: no bar.
        """
        measures, embeddings = in_batches(self._read, latents, self.size, words)
        return measures, embeddings


def _embedder(problem: Problem) -> tuple[tfjs.Graph, str]:
    """The network that reads faces for a measure, and the key of its weights."""
    for measure in problem.config.measures:
        model = weights_of(measure.classifier)
        if model != measure.classifier:
            return faceres.load(faceres.find(model))[0], model
    raise ConfigError(
        "No measure of the search reads faces, so nothing tells people apart: give one of them "
        '`function = "faceres:age"`.'
    )


def in_batches(
    function: Callable[[np.ndarray], Sequence[Array]],
    latents: np.ndarray,
    size: int,
    words: str = "",
) -> list[np.ndarray]:
    """Results of `function` for latents [n, D], of which it gets `size` at once, the last ones
    filled up; `words` are as for `Reader`."""
    found = []
    starts = range(0, max(len(latents), 1), size)
    for start in tqdm(starts, desc=words, disable=None if words else True, dynamic_ncols=True):
        some = latents[start : start + size]
        results = function(np.resize(some, (size, latents.shape[1])))
        found.append([np.asarray(each)[: len(some)] for each in results])
    return [np.concatenate(column) for column in zip(*found, strict=True)]


def read_random(problem: Problem, reader: Reader, config: AnnotatedFacesConfig) -> Random:
    """As many random faces as an arm may render."""
    began = time.perf_counter()
    latents = sample(problem, config, "random faces", config.calls)
    labelled = round(config.labelled * config.calls)
    first, embeddings = reader(latents[:labelled], "random faces to fit to")
    others, _ = reader(latents[labelled:], "more random faces")
    seconds = time.perf_counter() - began
    return Random(latents, np.concatenate([first, others]), embeddings, seconds)


def sample(problem: Problem, config: AnnotatedFacesConfig, purpose: str, count: int) -> np.ndarray:
    """Random latents [count, D], other ones for each purpose."""
    return np.asarray(problem.generator.sample(make_key(config.seed, purpose), count))


def keep_random(groups: Groups, config: AnnotatedFacesConfig, random: Random) -> Found:
    """The arm `plain`."""
    return keep_first(random, groups.assign(random.measures, config.confidence), random.seconds)


def keep_first(random: Random, group: np.ndarray, seconds: float, **about: Any) -> Found:
    """Those of the first random faces that are examples of a group; -1 is none."""
    kept = group >= 0
    latents = random.latents[: len(group)][kept]
    return Found(latents, group[kept].astype(np.int32), len(group), seconds, about)


def with_further(first: Found, latents: np.ndarray, group: np.ndarray, seconds: float) -> Found:
    """What was found before, and those of further latents, one call each, that are examples."""
    kept = group >= 0
    return Found(
        np.concatenate([first.latents, latents[kept]]),
        np.concatenate([first.groups, group[kept].astype(np.int32)]),
        first.calls + len(group), first.seconds + seconds, first.about,
    )  # fmt: skip


def search_length(problem: Problem, given: Config, calls: int) -> tuple[int, int]:
    """Generations that so many calls allow, and the calls that they take.

    Besides the latents of each generation, and the gradients of objective and measures, these are
    the random images that define what is typical, and those of the floor and of the start.

    Args:
        given: config of the search, before `auto` was resolved.

    Raises:
        ConfigError: the calls do not suffice, or a range is not in numbers.
    """
    options = given.search
    if auto := [measure.name for measure in given.measures if measure.range == "auto"]:
        raise ConfigError(
            f"The range of the search's measure '{auto[0]}' is 'auto', and to find it takes calls "
            "that are not counted: give it in numbers."
        )
    before = options.initial_samples * (1 + (options.threshold_min == "auto"))
    before += typicality.SAMPLES * (options.constraint == "typical")
    points = options.emitters * (options.batch_size if options.algorithm == "omg_mega" else 1)
    gradients = points * (1 + len(given.measures)) * options.uses_gradients
    each = problem.search.evaluations_per_generation + gradients
    steps = given.run.log_every
    generations = (calls - before) // each // steps * steps
    if generations < 1:
        raise ConfigError(
            f"{calls:,} calls are too few for the search, which takes {before:,} to begin and "
            f"{steps * each:,} between two lines of metrics: raise `calls`."
        )
    return generations, before + generations * each


def search(
    problem: Problem,
    groups: Groups,
    config: AnnotatedFacesConfig,
    given: Config,
    out: Path,
    *,
    allow_code: bool = False,
) -> Found:
    """The arm `qdgs`: elites of a search in the folder `out`, as long as the calls allow.

    Args:
        given: config of the search, before `auto` was resolved.

    Raises:
        ConfigError: see `search_length`.
        QDGSError: the search was interrupted, or cannot be written.
    """
    generations, calls = search_length(problem, given, config.calls)
    resolved = dataclasses.replace(
        problem.config, search=dataclasses.replace(problem.config.search, generations=generations)
    )
    run = finished_run(resolved, out, "search", allow_code=allow_code)
    elites, summary = run.elites, run.summary
    group = groups.assign(elites.measures, config.confidence)
    return Found(
        elites.latents[group >= 0], group[group >= 0].astype(np.int32),
        calls, summary["seconds_run"],
        {"generations": generations, "elites": len(group), "coverage": summary["coverage"]},
    )  # fmt: skip
