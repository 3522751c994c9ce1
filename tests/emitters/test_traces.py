"""Both emitters with an update, compared with pyribs' in float64: same draws, 250 generations.

The whole state is compared. Draws do not depend on the eigenbasis, see test_cma_es.py. Restarts
begin at elites that the test chooses. Scores are computed once, of pyribs' solutions, for both.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ribs import archives as ribs_archives
from ribs import emitters as ribs_emitters

from qdgs_jax import archives
from qdgs_jax.archives import GridArchive
from qdgs_jax.emitters import Gradients
from qdgs_jax.emitters.cma_es import CMAES, CMAESState
from qdgs_jax.emitters.evolution_strategy import EvolutionStrategy, Population
from qdgs_jax.emitters.gradient_arborescence import GradientArborescence, branch
from qdgs_jax.emitters.rules import Rules

E, D = 3, 5
CELLS = {"cells": (12, 10), "lower": (-4.0, -5.0), "upper": (4.0, 5.0)}
ELITIST = GridArchive(**CELLS)
FLOORED = GridArchive(**CELLS, learning_rate=0.02, threshold_min=60.0)
SPAN = (8.0, 10.0)


def score(x: np.ndarray, rounded: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A shifted sphere, rounded to make ties, and two linear measures; [N], [N, 2], [N, 3, D]."""
    projections = np.array([[1, 1, 1, 0, 0], [0, 0, 0.5, 1, 1]])
    objective = 100 - 2 * ((x - 0.7) ** 2).sum(axis=1)
    slope = -4 * (x - 0.7)
    jacobian = np.concatenate([slope[:, None], np.tile(projections, (len(x), 1, 1))], axis=1)
    return np.round(objective) if rounded else objective, x @ projections.T, jacobian


class Draws:
    """Replaces numpy's generator: returns the normals that it was given."""

    def normal(self, loc: float, scale: float, size: tuple[int, ...]) -> np.ndarray:
        return loc + scale * self.normals


class Pair:
    """A bank of emitters of this package and pyribs' emitters, each with its archive."""

    def __init__(self, archive: GridArchive, emitter: Any, theirs: Any, start: np.ndarray) -> None:
        self.archive, self.emitter = archive, emitter
        annealed = archive.threshold_min != -math.inf
        self.store = ribs_archives.GridArchive(
            solution_dim=D,
            dims=archive.cells,
            ranges=list(zip(archive.lower, archive.upper, strict=True)),
            learning_rate=archive.learning_rate if annealed else None,
            threshold_min=archive.threshold_min,
        )
        self.theirs = [theirs(self.store, x0, seed) for seed, x0 in enumerate(start)]
        self.contents = archives.init(archive, D)
        self.state = emitter.init(jax.random.key(0), jnp.asarray(start))
        self.restarts = np.zeros(E, int)
        self.parents: list[int] = []
        self.rng = np.random.default_rng(7)
        self.add = jax.jit(archives.add, static_argnums=0)
        self.ask = jax.jit(self._ask)
        self.learn = jax.jit(emitter.learn)
        self.restart = jax.jit(emitter.restart)

    def _ask(self, state: Any, normals: jax.Array, gradients: Gradients | None) -> Any:
        es = CMAES(normals.shape[1], 0.0)
        strategy: CMAESState = es.decompose(state.strategy)
        strategy, drawn = es.ask_with_normals(strategy, normals @ strategy.basis)
        asked = (
            Population(drawn.reshape(-1, drawn.shape[-1]))
            if gradients is None
            else branch(drawn, gradients)
        )
        return state.replace(strategy=strategy), asked

    def generation(self, batch_size: int, rounded: bool) -> None:
        gradients = None
        if isinstance(self.emitter, GradientArborescence):
            theta = np.concatenate([them.ask_dqd() for them in self.theirs])
            np.testing.assert_allclose(self.state.ascent.theta, theta, rtol=0, atol=1e-9)
            objective, measures, jacobian = score(theta, rounded)
            info = self.insert(self.state.ascent.theta, theta, objective, measures)[0]
            gradients = Gradients(self.state.ascent.theta, jnp.asarray(jacobian))
            for e, them in enumerate(self.theirs):
                one = slice(e, e + 1)
                verdict = {name: values[one] for name, values in info.items()}
                slopes = jacobian[one].copy()  # pyribs normalises them in place
                them.tell_dqd(theta[one], objective[one], measures[one], slopes, verdict)

        normals = self.rng.normal(size=(E, batch_size, len(self.theirs[0]._opt.mean)))
        self.state, asked = self.ask(self.state, jnp.asarray(normals), gradients)
        for e, them in enumerate(self.theirs):
            es = them._opt
            es.cov.update_eigensystem(es.current_eval, es.lazy_gap_evals)
            es._rng = Draws()
            es._rng.normals = normals[e] @ es.cov.eigenbasis
            if self.emitter.rules.ranker == "rd":
                them._ranker.target_measure_dir = np.asarray(self.state.rules.direction[e])
        solutions = np.concatenate([them.ask() for them in self.theirs])
        np.testing.assert_allclose(asked.latents, solutions, rtol=0, atol=1e-9)

        objective, measures, _ = score(solutions, rounded)
        info, insertion = self.insert(asked.latents, solutions, objective, measures)
        self.state, ended = self.learn(self.state, asked, insertion)
        self.tell_theirs(solutions, objective, measures, info, np.asarray(ended))
        self.assert_same()

    def insert(self, ours: Any, solutions: Any, objective: Any, measures: Any) -> Any:
        info = self.store.add(solutions, objective, measures)
        self.contents, insertion = self.add(
            self.archive, self.contents, ours, jnp.asarray(objective), jnp.asarray(measures)
        )
        np.testing.assert_array_equal(insertion.status, info["status"])
        np.testing.assert_allclose(insertion.value, info["value"], rtol=0, atol=1e-9)
        return info, insertion

    def tell_theirs(self, solutions: Any, objective: Any, measures: Any, info: Any, ended: Any):
        """Tells pyribs' emitters, and restarts the bank's emitters from the same elites."""
        elites = np.zeros((E, D))
        size = len(solutions) // E
        for e, them in enumerate(self.theirs):
            rows = slice(e * size, (e + 1) * size)
            verdict = {name: values[rows] for name, values in info.items()}
            self.parents.append(int((verdict["status"] > 0).sum()))
            if not self.store.empty:
                data = self.store.data("solution")
                elites[e] = data[self.rng.integers(len(data))]
            else:  # pyribs would raise
                elites[e] = solutions[rows][0]
            self.store.sample_elites = lambda n, e=e: {"solution": elites[e][None]}
            them.tell(solutions[rows], objective[rows], measures[rows], verdict)
            assert them.restarts - self.restarts[e] == ended[e]
            self.restarts[e] = them.restarts
        if ended.any():
            key = jax.random.key(1)
            self.state = self.restart(self.state, key, jnp.asarray(ended), jnp.asarray(elites))

    def assert_same(self) -> None:
        np.testing.assert_array_equal(self.state.rules.restarts, self.restarts)
        strategy: CMAESState = self.state.strategy
        for e, them in enumerate(self.theirs):
            es = them._opt
            pairs = [
                (strategy.mean, es.mean),
                (strategy.sigma, es.sigma),
                (strategy.path_c, es.pc),
                (strategy.path_sigma, es.ps),
                (strategy.covariance, es.cov.cov),
                (strategy.evaluations, es.current_eval),
            ]
            if isinstance(self.emitter, GradientArborescence):
                ascent, theirs = self.state.ascent, them._grad_opt
                pairs.append((ascent.theta, theirs.theta))
                if self.emitter.optimizer == "adam":
                    pairs.append((-ascent.first_moment, theirs._m))
                    pairs.append((ascent.second_moment, theirs._v))
                    pairs.append((ascent.steps, theirs._t))
            for ours, other in pairs:
                np.testing.assert_allclose(ours[e], other, rtol=1e-9, atol=1e-9)
        data = self.store.data()
        np.testing.assert_array_equal(np.flatnonzero(self.contents.occupied), sorted(data["index"]))
        threshold = self.contents.threshold[data["index"]]
        np.testing.assert_allclose(threshold, data["threshold"], rtol=1e-9)


@pytest.mark.parametrize(
    ("archive", "rules", "optimizer", "batch_size", "rounded"),
    [
        pytest.param(FLOORED, Rules("imp", "filter", "basic"), "adam", 3, False, id="cma_maega"),
        pytest.param(
            ELITIST,
            Rules("2imp", "mu", "no_improvement"),
            "ascent",
            8,
            True,
            id="mega",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            FLOORED,
            Rules("obj", "filter", 9),
            "adam",
            8,
            False,
            id="obj",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_gradient_arborescence(
    archive: GridArchive, rules: Rules, optimizer: Any, batch_size: int, rounded: bool
) -> None:
    def theirs(store: Any, x0: np.ndarray, seed: int) -> Any:
        return ribs_emitters.GradientArborescenceEmitter(
            store, x0=x0, sigma0=0.5, lr=0.3, ranker=rules.ranker, selection_rule=rules.selection,
            restart_rule=rules.restart, batch_size=batch_size, seed=seed,
            grad_opt="adam" if optimizer == "adam" else "gradient_ascent",
        )  # fmt: skip

    with jax.enable_x64(True):
        ours = GradientArborescence(E, batch_size, 2, 0.5, 0.3, optimizer, rules)
        # So far out that an archive with a floor stays empty in the first generations.
        start = np.random.default_rng(0).normal(size=(E, D)) + 3.5
        pair = Pair(archive, ours, theirs, start)
        for _ in range(250):
            pair.generation(batch_size, rounded)
    assert 0 in pair.parents
    assert 1 in pair.parents
    assert (pair.restarts.sum() > 0) == (rules.restart != "basic")


@pytest.mark.parametrize(
    ("archive", "rules", "batch_size", "rounded"),
    [
        pytest.param(
            ELITIST,
            Rules("2imp", "filter", "no_improvement"),
            6,
            True,
            id="cma_me",
            marks=pytest.mark.slow,
        ),
        pytest.param(FLOORED, Rules("imp", "mu", "basic"), 9, False, id="cma_mae"),
        pytest.param(
            FLOORED,
            Rules("rd", "filter", 12, span=SPAN),
            6,
            False,
            id="rd",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_evolution_strategy(
    archive: GridArchive, rules: Rules, batch_size: int, rounded: bool
) -> None:
    def theirs(store: Any, x0: np.ndarray, seed: int) -> Any:
        return ribs_emitters.EvolutionStrategyEmitter(
            store, x0=x0, sigma0=0.5, ranker=rules.ranker, selection_rule=rules.selection,
            restart_rule=rules.restart, batch_size=batch_size, seed=seed,
        )  # fmt: skip

    with jax.enable_x64(True):
        ours = EvolutionStrategy(E, CMAES(batch_size, 0.5), rules)
        start = np.random.default_rng(0).normal(size=(E, D)) + 3.5
        pair = Pair(archive, ours, theirs, start)
        for _ in range(250):
            pair.generation(batch_size, rounded)
    assert 0 in pair.parents
    assert 1 in pair.parents
    assert (pair.restarts.sum() > 0) == (rules.restart != "basic")
