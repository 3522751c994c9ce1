"""Programs of both libraries run on the same problem, and are scored alike."""

import jax
import numpy as np
import pytest
import qdax_on_shapes

from qdgs_jax.config import Config
from qdgs_jax.problem import load_problem


def test_only_elites_count() -> None:
    scores = qdax_on_shapes.scores_of(np.array([3.0, -np.inf, -2.0, 1.0]))
    assert scores == {"qd_score": 4.0, "coverage": 75.0, "best_objective": 3.0}
    assert qdax_on_shapes.scores_of(np.full(4, -np.inf))["coverage"] == 0


@pytest.mark.slow
@pytest.mark.usefixtures("toy_models")
def test_all_programs_make_as_many_evaluations_from_the_same_archive(
    toy_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = load_problem(toy_config)
    G = problem.search.evaluations_per_generation
    with jax.numpy_rank_promotion("allow"):  # QDax's repertoire promotes ranks implicitly
        programs = qdax_on_shapes.programs_of(problem, [0.5], 6 * G)
        latents = problem.generator.sample(jax.random.key(1), 16)
        starts = [
            program.objective(program.start(program.weights, jax.random.key(0), latents))
            for program in programs.values()
        ]
        rows = qdax_on_shapes.compare(problem, programs, seeds=2, evaluations=6 * G)
    assert len({int((start > problem.search.floor).sum()) for start in starts}) == 1
    assert len(rows) == 5
    for row, start in zip(rows, starts, strict=True):
        assert row["coverage"] >= 100 * (start > problem.search.floor).mean()
    qdax_on_shapes.print_table(rows)
    printed = capsys.readouterr().out.splitlines()
    assert {line.count("|") for line in printed} == {len(qdax_on_shapes.COLUMNS) + 1}
