"""The contract of every archive, and the batch rules compared with pyribs in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ribs import archives as ribs

from qdgs_jax import archives
from qdgs_jax.archives import Archive, CVTArchive, GridArchive, cvt_centroids
from qdgs_jax.config import range_problem

LATENT = 3
BOX = {"lower": (-1.0, 0.0), "upper": (1.0, 2.0)}
GRID = {"cells": (4, 5), **BOX}
CENTROIDS = np.random.default_rng(0).uniform(BOX["lower"], BOX["upper"], size=(20, 2))
add = jax.jit(archives.add, static_argnums=0)
RULES = [
    pytest.param({}, id="elitist"),
    pytest.param({"learning_rate": 0.0, "threshold_min": 0.0}, id="alpha 0"),
    pytest.param({"learning_rate": 0.02, "threshold_min": -0.5}, id="alpha 0.02"),
    pytest.param({"learning_rate": 1.0, "threshold_min": 0.0}, id="alpha 1"),
]


@pytest.fixture(params=RULES)
def rule(request: pytest.FixtureRequest) -> dict[str, float]:
    return request.param


@pytest.fixture(params=["grid", "cvt"])
def archive(request: pytest.FixtureRequest, rule: dict[str, float]) -> Archive:
    if request.param == "grid":
        return GridArchive(**GRID, **rule)
    return CVTArchive(centroids=tuple(map(tuple, CENTROIDS.tolist())), **BOX, **rule)


def batch(seed: int, n: int, spread: float = 1.5, levels: int = 0):
    """Random latents, objectives and measures, many of which are beyond the grid.

    With `levels`, objectives and measures have few values: ties, and many solutions in one cell.
    """
    rng = np.random.default_rng(seed)
    objective, measures = rng.normal(size=n), spread * rng.normal(size=(n, 2))
    if levels:
        objective = np.round(objective * levels) / levels
        measures = np.round(measures)
    return tuple(map(jnp.asarray, (rng.normal(size=(n, LATENT)), objective, measures)))


def pyribs(archive: Archive) -> ribs.ArchiveBase:
    annealed = archive.threshold_min != -math.inf
    options = {
        "solution_dim": LATENT,
        "ranges": list(zip(archive.lower, archive.upper, strict=True)),
        "learning_rate": archive.learning_rate if annealed else None,
        "threshold_min": archive.threshold_min,
        "dtype": np.float64,
    }
    if isinstance(archive, GridArchive):
        return ribs.GridArchive(dims=archive.cells, **options)
    return ribs.CVTArchive(centroids=np.asarray(archive.centroids), **options)


def assert_same(state: archives.ArchiveState, theirs: ribs.ArchiveBase) -> None:
    data = theirs.data()
    order = np.argsort(data["index"])
    cells = np.flatnonzero(state.occupied)
    np.testing.assert_array_equal(cells, data["index"][order])
    for ours, name in [
        (state.latents, "solution"),
        (state.objective, "objective"),
        (state.measures, "measures"),
        (state.threshold, "threshold"),
    ]:
        np.testing.assert_allclose(ours[cells], data[name][order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.slow), 40])
def test_batch_rules_are_those_of_pyribs(archive: Archive, n: int) -> None:
    with jax.enable_x64(True):
        theirs = pyribs(archive)
        state = archives.init(archive, LATENT)
        for seed in range(60):
            data = batch(seed, n, levels=seed % 3)  # from distinct objectives to many ties
            state, insertion = add(archive, state, *data)
            expected = theirs.add(*map(np.asarray, data))
            np.testing.assert_array_equal(insertion.status, expected["status"])
            np.testing.assert_allclose(insertion.value, expected["value"], rtol=1e-12, atol=1e-12)
            assert insertion.finite.all()
        assert_same(state, theirs)


def test_cells_are_those_of_pyribs_on_boundaries_and_beyond() -> None:
    archive = GridArchive(**GRID)
    steps = np.linspace(-3, 3, 121)
    measures = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    with jax.enable_x64(True):
        expected = pyribs(archive).index_of(measures)
        np.testing.assert_array_equal(archive.index_of(jnp.asarray(measures)), expected)
    np.testing.assert_array_equal(
        archive.index_of(jnp.asarray([[1e30, -1e30], [-1e30, 1e30]])), [15, 4]
    )


@pytest.mark.parametrize("x64", [False, True])
def test_a_boundary_belongs_to_the_upper_cell_despite_rounding(x64: bool) -> None:
    """Of 0.7 and a grid from -0.1, say: 0.7 + 0.1 < 0.8 in floats."""
    dtype = jnp.float64 if x64 else jnp.float32
    for low in (-0.1, -0.3, 0.1):
        archive = GridArchive(cells=(10,), lower=(low,), upper=(low + 1,))
        boundaries = (np.arange(10)[:, None] + round(10 * low)) / 10
        with jax.enable_x64(x64):
            cells = archive.index_of(jnp.asarray(boundaries, dtype))
        np.testing.assert_array_equal(cells, np.arange(10))


def test_an_accepted_one_replaces_a_better_elite_only_in_an_annealed_cell() -> None:
    worse = (jnp.ones((1, LATENT)), jnp.array([4.0]), jnp.zeros((1, 2)))
    better = (jnp.zeros((1, LATENT)), jnp.array([5.0]), jnp.zeros((1, 2)))
    for archive, kept in [
        (GridArchive(**GRID), 5.0),
        (GridArchive(**GRID, learning_rate=0.1, threshold_min=0.0), 4.0),
    ]:
        state, _ = add(archive, archives.init(archive, LATENT), *better)
        state, insertion = add(archive, state, *worse)
        assert bool(insertion.accepted[0]) == (kept == 4.0)
        assert state.objective.max() == kept


def test_what_is_not_finite_is_rejected_and_leaves_its_neighbours_alone(
    archive: Archive,
) -> None:
    latents, objective, measures = batch(0, 12, spread=0.5)
    objective = jnp.abs(objective).at[::3].set(jnp.array([jnp.nan, jnp.inf, -jnp.inf, jnp.nan]))
    measures = measures.at[1, 0].set(jnp.nan).at[4, 1].set(jnp.inf)
    good = np.isfinite(objective) & np.isfinite(measures).all(axis=1)
    empty = archives.init(archive, LATENT)
    state, insertion = add(archive, empty, latents, objective, measures)
    alone, expected = add(archive, empty, latents[good], objective[good], measures[good])
    np.testing.assert_array_equal(insertion.finite, good)
    np.testing.assert_array_equal(insertion.status, np.where(good, 2, 0))
    np.testing.assert_array_equal(insertion.value[good], expected.value)
    assert np.all(insertion.value[~good] == -np.inf)
    for mine, other in zip(jax.tree.leaves(state), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_a_permuted_batch_changes_only_who_wins_a_tie(archive: Archive) -> None:
    state = archives.init(archive, LATENT)
    for seed in range(5):
        data = batch(seed, 30)
        shuffle = np.random.default_rng(seed).permutation(30)
        shuffled, verdict = add(archive, state, *(x[shuffle] for x in data))
        state, insertion = add(archive, state, *data)
        np.testing.assert_array_equal(verdict.value, insertion.value[shuffle])
        np.testing.assert_array_equal(verdict.status, insertion.status[shuffle])
        np.testing.assert_array_equal(shuffled.latents, state.latents)
        np.testing.assert_array_equal(shuffled.objective, state.objective)
        np.testing.assert_allclose(shuffled.threshold, state.threshold, rtol=1e-6)


def test_of_equals_the_first_wins_whole(archive: Archive) -> None:
    latents = jnp.arange(12.0).reshape(4, LATENT)
    objective, measures = jnp.array([1.0, 3.0, 3.0, 3.0]), jnp.full((4, 2), 0.1)
    measures += 0.01 * jnp.arange(4)[:, None]
    state, _ = add(archive, archives.init(archive, LATENT), latents, objective, measures)
    cell = int(archive.index_of(measures[:1])[0])
    np.testing.assert_array_equal(state.latents[cell], latents[1])
    np.testing.assert_array_equal(state.measures[cell], measures[1])
    assert state.occupied.sum() == 1


def test_measures_are_stored_as_scored_and_the_empty_archive_is_safe(archive: Archive) -> None:
    state = archives.init(archive, LATENT)
    assert archives.coverage(state) == 0
    assert archives.qd_score(state) == 0
    np.testing.assert_array_equal(archives.sample(state, jax.random.key(0), 3), 0.0)
    far = jnp.array([[9.0, -9.0]])
    state, _ = add(archive, state, jnp.ones((1, LATENT)), jnp.ones(1), far)
    np.testing.assert_array_equal(state.measures[int(archive.index_of(far)[0])], far[0])
    assert archives.coverage(state) == pytest.approx(1 / 20)


def test_negative_objectives_count_as_zero_in_the_qd_score() -> None:
    archive = GridArchive(**GRID)
    measures = jnp.array([[-0.9, 0.1], [0.9, 1.9]])
    state = archives.init(archive, LATENT)
    state, _ = add(archive, state, jnp.ones((2, LATENT)), jnp.array([-5.0, 2.0]), measures)
    assert archives.qd_score(state) == 2
    assert state.occupied.sum() == 2


def test_sampling_is_uniform_over_elites(archive: Archive) -> None:
    measures = jnp.array([[-0.9, 0.1], [0.9, 1.9], [0.1, 0.9]])
    latents = jnp.arange(3.0)[:, None] * jnp.ones((1, LATENT)) + 1
    state = archives.init(archive, LATENT)
    state, _ = add(archive, state, latents, jnp.ones(3), measures)
    drawn = archives.sample(state, jax.random.key(0), 3000)[:, 0]
    assert [int((drawn == value).sum()) for value in (1, 2, 3)] == pytest.approx([1000] * 3, abs=90)


@pytest.mark.parametrize("kind", ["grid", "cvt"])
def test_regions_with_few_elites_are_drawn_as_often_as_others(kind: str) -> None:
    """Nine of ten elites lie in one corner; the tenth alone in the other."""
    if kind == "grid":
        archive: Archive = GridArchive(cells=(100, 100), lower=(0, 0), upper=(1, 1))
    else:
        near = [(0.01 * k, 0.01 * k) for k in range(9)]
        archive = CVTArchive(centroids=(*near, (1.0, 1.0)), lower=(0, 0), upper=(1, 1))
    measures = jnp.array([[0.005 * k, 0.005 * k] for k in range(9)] + [[0.99, 0.99]])
    latents = jnp.arange(1.0, 11.0)[:, None] * jnp.ones(LATENT)[None]
    if kind == "cvt":
        measures = jnp.asarray(archive.centres())
    state, _ = add(archive, archives.init(archive, LATENT), latents, jnp.ones(10), measures)
    drawn = archives.sample_evenly(state, jax.random.key(0), 3000)[:, 0]
    occupied = np.asarray(archives.sample(state, jax.random.key(0), 3000)[:, 0])
    regions = len(np.unique(np.floor(np.asarray(measures) / 0.99 * 16).clip(0, 15), axis=0))
    assert (occupied == 10).mean() == pytest.approx(1 / int(state.count), abs=0.03)
    assert (drawn == 10).mean() == pytest.approx(1 / regions, abs=0.05)
    assert set(np.unique(drawn)) == set(np.unique(occupied))  # of each region, all


def test_one_elite_is_drawn_from_all_measures_alike() -> None:
    archive = GridArchive(cells=(2,) * 20, lower=(0,) * 20, upper=(1,) * 20)
    state = archives.init(archive, 1)
    state, _ = add(archive, state, jnp.full((1, 1), 7.0), jnp.ones(1), jnp.full((1, 20), 0.3))
    np.testing.assert_array_equal(archives.sample_evenly(state, jax.random.key(0), 2), 7)


def test_impossible_archives_are_refused() -> None:
    with pytest.raises(ValueError, match="one entry for each measure"):
        GridArchive(cells=(4,), lower=(0.0, 0.0), upper=(1.0,))
    with pytest.raises(ValueError, match="one entry for each measure"):
        CVTArchive(centroids=((0.0, 0.0),), lower=(0.0,), upper=(1.0,))
    with pytest.raises(ValueError, match="finite threshold_min"):
        GridArchive(cells=(4,), lower=(0.0,), upper=(1.0,), learning_rate=0.5)


def test_every_centre_lies_in_its_cell(archive: Archive) -> None:
    centres = jnp.asarray(archive.centres(), jnp.float32)
    np.testing.assert_array_equal(archive.index_of(centres), np.arange(archive.size))


def test_nearest_centroids_in_chunks() -> None:
    """Many cells, so that a batch is looked up in several chunks."""
    rng = np.random.default_rng(1)
    centroids, points = rng.uniform(size=(2**17, 2)), rng.uniform(size=(20, 2))
    archive = CVTArchive(tuple(map(tuple, centroids.tolist())), (0.0, 0.0), (1.0, 1.0))
    distance = ((points[:, None] - centroids) ** 2).sum(axis=-1)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(archive.index_of(jnp.asarray(points)), distance.argmin(1))


def test_cvt_centroids_share_the_box_evenly() -> None:
    centroids = cvt_centroids(16, **BOX, seed=0, samples=4000)
    assert centroids == cvt_centroids(16, **BOX, seed=0, samples=4000)
    archive = CVTArchive(centroids, **BOX)
    points = jax.random.uniform(jax.random.key(0), (4000, 2)) * 2 + jnp.array([BOX["lower"]])
    share = np.bincount(archive.index_of(points), minlength=16) / 4000
    assert 0.5 / 16 < share.min() <= share.max() < 2 / 16


def test_insertion_touches_no_array_of_all_cells() -> None:
    """Only the scatters read K cells: the cost of a batch does not grow with the archive."""
    archive = GridArchive(cells=(1000, 1000), lower=(0.0, 0.0), upper=(1.0, 1.0))
    state = archives.init(archive, 1)
    data = (jnp.zeros((8, 1)), jnp.zeros(8), jnp.zeros((8, 2)))
    jaxpr = jax.make_jaxpr(lambda *args: archives.add(archive, *args))(state, *data)
    large = {
        equation.primitive.name
        for equation in jaxpr.jaxpr.eqns
        for variable in equation.outvars
        if math.prod(variable.aval.shape) >= archive.size and equation.primitive.name != "jit"
    }
    assert large == {"scatter"}


@pytest.mark.parametrize(
    ("low", "high", "cells"),
    [(0, 1e-7, 10), (0, 1e-5, 10), (-0.05, 0.05, 250), (1000, 1001, 1000), (20000, 20001, 100),
     (-180, 180, 36), (0, 2**24, 10), (0, 1e-15, 100), (-1e15, 1e15, 1000)],
)  # fmt: skip
def test_every_range_that_a_config_may_have_reaches_all_cells(
    low: float, high: float, cells: int
) -> None:
    assert range_problem(low, high, cells) == ""
    grid = GridArchive((cells,), (low,), (high,))
    centres = jnp.asarray(grid.centres(), jnp.float32)
    np.testing.assert_array_equal(grid.index_of(centres), np.arange(cells))


def test_more_cells_than_an_index_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="4900000000 cells are more than"):
        GridArchive((70_000, 70_000), (0, 0), (1, 1))
