"""The arms of the experiment: latents that each takes for examples of groups.

All arms read images by the same networks and have as many passes through the generator: a latent
rendered is one, a gradient pulled back to a latent another. Seconds are those of rendering, reading
and fitting, without those of compiling and loading.

plain        random faces, kept where they are examples of a group by the classifier
published    a share of the random faces, and guidance by their labels: one direction a group
unfiltered   the same latents, labelled by the group that they were guided to, unread
improved     the same share of random faces, and guidance by their readings, step by step
qdgs         elites of a search
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
from sklearn.linear_model import LogisticRegression, Ridge  # type: ignore[import-untyped]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]
from tqdm import tqdm

from qdgs_jax import faceres, typicality
from qdgs_jax.config import Config
from qdgs_jax.errors import ConfigError
from qdgs_jax.experiments.annotated_faces.config import AnnotatedFacesConfig
from qdgs_jax.experiments.annotated_faces.groups import Groups
from qdgs_jax.image_measures import weights_of
from qdgs_jax.keys import make_key
from qdgs_jax.models import tfjs
from qdgs_jax.problem import Problem
from qdgs_jax.runs import sampling
from qdgs_jax.runs.results import load_run
from qdgs_jax.typing import Array, Latents, Params

LEAST_EXAMPLES = 10
"""Of a group, to fit its direction to."""
AIM = 0.8
"""Confidence that guidance aims at, so that small errors still leave an example."""
TRIES = 8
"""Readings of a guided latent before it is given up."""
STRIDE = 0.4
"""Longest step of guidance, in mean norms of random latents."""


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
    latents = _sample(problem, config, "random faces", config.calls)
    labelled = round(config.labelled * config.calls)
    first, embeddings = reader(latents[:labelled], "random faces to fit to")
    others, _ = reader(latents[labelled:], "more random faces")
    seconds = time.perf_counter() - began
    return Random(latents, np.concatenate([first, others]), embeddings, seconds)


def _sample(problem: Problem, config: AnnotatedFacesConfig, purpose: str, count: int) -> np.ndarray:
    return np.asarray(problem.generator.sample(make_key(config.seed, purpose), count))


def keep_random(groups: Groups, config: AnnotatedFacesConfig, random: Random) -> Found:
    """The arm `plain`."""
    return _kept(random, groups.assign(random.measures, config.confidence), random.seconds)


def _kept(random: Random, group: np.ndarray, seconds: float, **about: Any) -> Found:
    """Those of the first random faces that are examples of a group; -1 is none."""
    kept = group >= 0
    latents = random.latents[: len(group)][kept]
    return Found(latents, group[kept].astype(np.int32), len(group), seconds, about)


def _joined(first: Found, latents: np.ndarray, group: np.ndarray, seconds: float) -> Found:
    """What was found before, and those of further latents, one call each, that are examples."""
    kept = group >= 0
    return Found(
        np.concatenate([first.latents, latents[kept]]),
        np.concatenate([first.groups, group[kept].astype(np.int32)]),
        first.calls + len(group), first.seconds + seconds, first.about,
    )  # fmt: skip


def guide_as_published(
    problem: Problem, reader: Reader, groups: Groups, config: AnnotatedFacesConfig, random: Random
) -> dict[str, Found]:
    """The arms `published` and `unfiltered` (Mekonnen 2023, arXiv 2308.03495).

    Examples of groups among random faces are labelled. For each group a logistic regression, one
    against the rest, is fitted to their latents, and its weights are added once to further random
    latents. As published, there are as many negatives as examples, with class weights of 0.4 and
    0.6, and the fit sees 70 %. Groups of fewer than `LEAST_EXAMPLES` have no direction and are not
    guided to; the calls are divided evenly over the others. `published` keeps what the classifier
    then takes for an example of any group, `unfiltered` all, by the group that was asked for.
    """
    began = time.perf_counter()
    label = groups.assign(random.measures[: random.labelled], config.confidence)
    directions, accuracy = _directions(random.latents[: len(label)], label, groups, config.seed)
    guided = np.flatnonzero(directions.any(axis=1))
    left = config.calls - len(label)
    target = np.resize(guided if len(guided) else [-1], left)
    latents = _sample(problem, config, "faces to guide as published", left)
    latents = latents + np.where(target[:, None] >= 0, directions[target], 0)
    measures, _ = reader(latents, "guided as published")
    group = groups.assign(measures, config.confidence)
    seconds = time.perf_counter() - began
    before = random.seconds * len(label) / config.calls
    first = _kept(random, label, before, accuracy_of_directions=accuracy)
    return {
        "published": _joined(first, latents, group, seconds),
        "unfiltered": _joined(first, latents, np.where(target >= 0, target, group), seconds),
    }


def _directions(
    latents: np.ndarray, label: np.ndarray, groups: Groups, seed: int
) -> tuple[np.ndarray, dict[str, float]]:
    """Weights of the groups' logistic regressions [G, D], 0 where there are too few examples, and
    the accuracy of each on the 30 % that it was not fitted to."""
    directions = np.zeros((len(groups), latents.shape[1]), np.float32)
    accuracy = {}
    for number, name in enumerate(groups.names):
        own, others = (np.flatnonzero((label >= 0) & ((label == number) == is_own))
                       for is_own in (True, False))  # fmt: skip
        if min(len(own), len(others)) < LEAST_EXAMPLES:
            continue
        choice = np.random.default_rng((seed, number)).permutation(others)[: len(own)]
        rows = np.concatenate([own, choice])
        x, test_x, y, test_y = train_test_split(
            latents[rows], label[rows] == number, test_size=0.3, random_state=0,
            stratify=label[rows] == number,
        )  # fmt: skip
        fit = LogisticRegression(class_weight={False: 0.4, True: 0.6}, max_iter=1000).fit(x, y)
        directions[number] = fit.coef_[0]
        accuracy[name] = float(fit.score(test_x, test_y))
    return directions, accuracy


def guide_by_readings(
    problem: Problem, reader: Reader, groups: Groups, config: AnnotatedFacesConfig, random: Random
) -> Found:
    """The arm `improved`.

    All random faces that are labelled say how the attributes depend on latents, not just examples
    of a group: see `least_change`, whose directions change one attribute each. Guidance to a group
    also starts from these faces, first from those that need the shortest step. The step is found by
    a line search: each attribute moves by what it lacks to `AIM`, at most `STRIDE` in all, and the
    face is read, until it is an example or was read `TRIES` times. Latents stay in the range of
    random ones (`typicality.bring_into`).
    """
    began = time.perf_counter()
    label = groups.assign(random.measures[: random.labelled], config.confidence)
    first = _kept(random, label, random.seconds * len(label) / config.calls)
    guidance = _Guidance(groups, config, random)
    within = typicality.range_of_latents(problem.generator)
    bring = jax.jit(functools.partial(typicality.bring_into, within))

    left = config.calls - len(label)
    slots = min(reader.size, left)
    latents, target = guidance.begin(slots)
    tries = np.ones(slots, int)
    read, found = [], []
    for _ in tqdm(range(left // slots), desc="guided by readings", disable=None):
        latents = np.array(bring(latents.astype(np.float32)))
        measures, _ = reader(latents)
        reached = groups.assign(measures, config.confidence) == target
        read.append(latents)
        found.append(np.where(reached, target, -1))
        guidance.count += np.bincount(target[reached], minlength=len(groups))
        latents = latents + guidance.step(groups.coordinates(measures), target)
        done = reached | (tries == TRIES)
        latents[done], target[done] = guidance.begin(done.sum())
        tries = np.where(done, 1, tries + 1)
    seconds = time.perf_counter() - began
    return _joined(first, np.concatenate(read), np.concatenate(found), seconds)


class _Guidance:
    """Where guidance to each group starts, and the steps that it takes."""

    def __init__(self, groups: Groups, config: AnnotatedFacesConfig, random: Random) -> None:
        self._latents = random.latents[: random.labelled]
        measures = random.measures[: random.labelled]
        label = groups.assign(measures, config.confidence)
        self.count = np.bincount(label[label >= 0], minlength=len(groups))
        self._wanted = config.images_a_group
        self._here = groups.coordinates(measures)
        self._directions = least_change(self._latents, self._here, random.embeddings)
        self._ends = groups.intervals(AIM)
        self._longest = STRIDE * np.linalg.norm(self._latents, axis=1).mean()

        def needed(group: int) -> np.ndarray:
            step = self._lacking(self._here, np.array([group])) @ self._directions
            return np.where(label == group, np.inf, np.linalg.norm(step, axis=1))

        self._starts = np.stack(
            [needed(group).argsort(kind="stable") for group in range(len(groups))]
        )
        self._used = np.zeros(len(groups), int)

    def begin(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The next latents after their first step [count, D], and the groups that they go to: in
        turn those with fewer examples than are wanted, or all if there are none."""
        short = np.flatnonzero(self.count < self._wanted)
        pending = short if len(short) else np.arange(len(self.count))
        target = pending[self._used[pending].argsort(kind="stable")]
        target = np.resize(target, count)
        row = np.zeros(count, int)
        for place, group in enumerate(target):
            row[place] = self._starts[group, self._used[group] % len(self._latents)]
            self._used[group] += 1
        return self._latents[row] + self.step(self._here[row], target), target

    def step(self, here: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Steps [n, D] from latents with these coordinates [n, A] to groups [n]."""
        step = self._lacking(here, target) @ self._directions
        length = np.linalg.norm(step, axis=1, keepdims=True)
        return step * np.minimum(1, self._longest / np.maximum(length, 1e-30))

    def _lacking(self, here: np.ndarray, target: np.ndarray) -> np.ndarray:
        lower, upper = self._ends
        return np.nan_to_num(np.clip(here, lower[target], upper[target]) - here)


def least_change(latents: np.ndarray, values: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    """Directions of latents [A, D] that change one attribute each, and little else.

    With the gradients G [A, D] of the attributes and J [E, D] of the embedding, by ridge regression
    on random latents, direction a is the d that minimises |J d|^2 / m + |d|^2 under G d = e_a, for
    the mean m of the diagonal of J'J: it changes attribute a by one unit, the others by none, and
    identity as little as it can. With S = J'J / m + 1 it is column a of S^-1 G' (G S^-1 G')^-1.

    Args:
        latents: random ones, [n, D].
        values: of the attributes, [n, A]; rows that are not finite are left out.
        embeddings: [n, E].
    """
    finite = np.isfinite(values).all(axis=1)
    x, D = latents[finite], latents.shape[1]
    gradients, identity = (
        Ridge(alpha=D).fit(x, y[finite].astype(np.float64)).coef_ for y in (values, embeddings)
    )
    metric = identity.T @ identity
    change = metric / max(np.trace(metric) / D, 1e-30) + np.eye(D)
    solved = np.linalg.solve(change, gradients.T)  # [D, A]
    return np.linalg.solve(gradients @ solved, solved.T)


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
    with tqdm(desc="search", total=generations, unit="gen", disable=None) as bar:
        summary = sampling.sample(
            resolved, out, resume=True, allow_code=allow_code,
            report=lambda row: bar.update(int(row["generation"]) - bar.n),
        )  # fmt: skip
    elites = load_run(out).elites
    group = groups.assign(elites.measures, config.confidence)
    return Found(
        elites.latents[group >= 0], group[group >= 0].astype(np.int32),
        calls, summary["seconds_run"],
        {"generations": generations, "elites": len(group), "coverage": summary["coverage"]},
    )  # fmt: skip
