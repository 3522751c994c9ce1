"""Guidance of latents to groups: as published, and by readings."""

import functools
import time

import jax
import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge  # type: ignore[import-untyped]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]
from tqdm import tqdm

from qdgs_jax import typicality
from qdgs_jax.experiments.annotated_faces.arms import (
    Found,
    Random,
    Reader,
    keep_first,
    sample,
    with_further,
)
from qdgs_jax.experiments.annotated_faces.config import AnnotatedFacesConfig
from qdgs_jax.experiments.annotated_faces.groups import Groups
from qdgs_jax.problem import Problem

LEAST_EXAMPLES = 10
"""Of a group, to fit its direction to."""
AIM = 0.8
"""Confidence that guidance aims at, so that small errors still leave an example."""
TRIES = 8
"""Readings of a guided latent before it is given up."""
STRIDE = 0.4
"""Longest step of guidance, in mean norms of random latents."""


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
    latents = sample(problem, config, "faces to guide as published", left)
    latents = latents + np.where(target[:, None] >= 0, directions[target], 0)
    measures, _ = reader(latents, "guided as published")
    group = groups.assign(measures, config.confidence)
    seconds = time.perf_counter() - began
    before = random.seconds * len(label) / config.calls
    first = keep_first(random, label, before, accuracy_of_directions=accuracy)
    return {
        "published": with_further(first, latents, group, seconds),
        "unfiltered": with_further(first, latents, np.where(target >= 0, target, group), seconds),
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
    first = keep_first(random, label, random.seconds * len(label) / config.calls)
    guidance = _Guidance(groups, config, random)
    within = typicality.range_of_latents(problem.generator)
    bring = jax.jit(functools.partial(typicality.bring_into, within))

    left = config.calls - len(label)
    slots = min(reader.size, left)
    latents, target = guidance.begin(slots)
    tries: np.ndarray = np.ones(slots, int)
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
    return with_further(first, np.concatenate(read), np.concatenate(found), seconds)


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
