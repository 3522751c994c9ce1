"""The benchmark's programs of both libraries solve the same task, and are scored alike."""

import against_qdax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from qdax.core.containers.mapelites_repertoire import (
    MapElitesRepertoire,
    get_cells_indices,
)
from qdax.tasks.arm import arm_scoring_function
from qdax.utils.metrics import default_qd_metrics

from qdgs_jax import archives

KEY = jax.random.key(0)
MAP_ELITES = against_qdax.Setting("map_elites_line", 1, 16, 0.05, 6, 5)
CMA_ME = against_qdax.Setting("cma_me", 3, 4, 0.05, 4, 5)
SETTINGS = pytest.mark.parametrize("setting", [MAP_ELITES, CMA_ME], ids=lambda s: s.algorithm)


@pytest.fixture(autouse=True)
def qdax_promotes_ranks():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def centroids():
    return jax.random.uniform(jax.random.key(2), (25, 2))


@SETTINGS
def test_both_have_the_same_task(setting):
    genotypes = jax.random.normal(KEY, (50, 5))  # in the box and outside
    fitnesses, descriptors, _ = setting.task(genotypes, KEY)
    scores, memory = setting.score(None, KEY, genotypes, ())
    np.testing.assert_array_equal(scores.objective, fitnesses)
    np.testing.assert_array_equal(scores.measures, descriptors)
    assert memory == ()
    inside = jnp.clip(genotypes + (setting is CMA_ME) / 2, 0, 1)
    expected, expected_descriptors, _ = arm_scoring_function(inside, KEY)
    np.testing.assert_allclose(fitnesses, expected, atol=1e-6)
    np.testing.assert_allclose(descriptors, expected_descriptors, atol=1e-6)
    assert against_qdax.OFFSET + fitnesses.min() >= 0


def test_no_fitness_is_below_minus_the_offset():
    genotypes = jnp.asarray([[0.0, 1.0] * 5])
    fitnesses, _, _ = MAP_ELITES.task(genotypes, KEY)
    assert fitnesses[0] == -against_qdax.OFFSET


def test_scores_are_those_of_both_libraries():
    """Two elites in four cells."""
    fitnesses = jnp.asarray([-0.1, -jnp.inf, -0.3, -jnp.inf])
    places = jnp.zeros((4, 2))
    repertoire = MapElitesRepertoire(
        genotypes=jnp.zeros((4, 5)), fitnesses=fitnesses[:, None], extra_scores={},
        keys_extra_scores=(), descriptors=places, centroids=places,
    )  # fmt: skip
    grid = archives.GridArchive((2, 2), (0.0, 0.0), (1.0, 1.0))
    state = archives.init(grid, 5).replace(objective=fitnesses + against_qdax.OFFSET)
    scores = against_qdax.scores_of(fitnesses)
    metrics = default_qd_metrics(repertoire, qd_offset=against_qdax.OFFSET)
    assert scores == {"qd_score": pytest.approx(0.4 + 0.2), "coverage": 50.0}
    assert scores == pytest.approx({name: float(metrics[name]) for name in scores})
    assert scores["qd_score"] == pytest.approx(float(archives.qd_score(state)))


def test_cells_are_the_same(centroids):
    points = jax.random.uniform(KEY, (200, 2))
    found = against_qdax.archives_of(centroids)
    np.testing.assert_array_equal(
        found["CVT"].index_of(points), get_cells_indices(points, centroids)
    )
    assert found["grid"].size == found["CVT"].size == 25


def programs(setting, centroids):
    """QDax's, and this package's over the same cells."""
    archive = against_qdax.archives_of(centroids)["CVT"]
    options, *_ = against_qdax.VARIANTS[setting.algorithm].values()
    return against_qdax.qdax(setting, centroids), against_qdax.ours(setting, archive, options)


def test_both_start_from_the_same_archive(centroids):
    (carry, fitnesses), (state, objective) = [
        (state := jax.jit(program.start)(KEY), program.fitnesses(state))
        for program in programs(MAP_ELITES, centroids)
    ]
    np.testing.assert_allclose(fitnesses, objective, atol=1e-6)
    np.testing.assert_array_equal(carry[0].genotypes, state.elites.latents)
    assert not CMA_ME.initial(KEY).any()


@SETTINGS
def test_both_make_as_many_evaluations(setting, centroids, monkeypatch):
    """Scans as long as the batches in them require; programs are traced only."""
    batches = []

    def noted(genotypes, key):
        batches.append(len(genotypes))
        return arm_scoring_function(genotypes, key)

    monkeypatch.setattr(against_qdax, "arm_scoring_function", noted)
    for program in programs(setting, centroids):
        state = jax.eval_shape(program.start, KEY)
        batches.clear()
        equations = jax.make_jaxpr(program.loop)(state).eqns
        (scan,) = [equation for equation in equations if equation.primitive.name == "scan"]
        (batch,) = set(batches)
        assert scan.params["length"] * batch == setting.evaluations


def test_a_comparison(monkeypatch, capsys):
    """With loops that only note who runs."""
    turns = []

    def program(name, fitnesses):
        program = against_qdax.Program(lambda key: jnp.zeros(4), lambda x: x + 1, lambda x: x)
        program.fitnesses = lambda state: turns.append(name) or fitnesses
        return program

    programs = {"QDax, CVT": program("QDax", [0, -0.5]), "here": program("here", [0, -np.inf])}
    monkeypatch.setattr(against_qdax, "programs_of", lambda setting, centroids: programs)
    found = against_qdax.compare(MAP_ELITES, jnp.zeros((4, 2)), rounds=2)
    assert turns == ["QDax", "here"] * 3
    results = list(found["programs"].values())
    assert [result["qd_score"] for result in results] == [0.5, 0.5]
    assert [result["coverage"] for result in results] == [100, 50]
    for result in results:
        seconds = np.mean([run["seconds"] for run in result["rounds"]])
        assert result["evaluations_per_second"] == pytest.approx(16 * 6 / seconds)
    against_qdax.print_rows(found)
    rows = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[2] for row in rows] == list(programs)
    assert {row.count("|") for row in rows} == {len(against_qdax.COLUMNS) + 1}


@pytest.mark.bench
@SETTINGS
def test_all_programs_run(setting, centroids):
    for result in against_qdax.compare(setting, centroids, rounds=1)["programs"].values():
        assert 0 < result["qd_score"] <= 25 * against_qdax.OFFSET
        assert result["coverage"] > 4  # more than a cell
        assert result["mebibytes"] > 0
