"""The comparison with PyTorch compares the same thing."""

import against_pytorch
import numpy as np
import pytest


def test_programs_that_score_differently_are_refused():
    values, gradients = np.ones((4, 3)), np.ones((4, 3, 6))
    scores = {"here": (values, gradients), "strong": (values + 1e-6, gradients)}
    against_pytorch.require_agreement(scores)
    for wrong in ((values * 1.01, gradients), (values, -gradients), (values * np.nan, gradients)):
        with pytest.raises(SystemExit, match="`strong` differ"):
            against_pytorch.require_agreement(scores | {"strong": wrong})


def test_curves_are_read_at_the_same_place_of_each_run():
    """Rows are evaluations, seconds, QD score, coverage."""
    runs = [[(0, 0.0, 0.0, 0.0), (100, 1.0, 10.0, 0.1), (200, 3.0, 30.0, 0.3)],
            [(0, 0.0, 0.0, 0.0), (100, 2.0, 20.0, 0.2), (200, 4.0, 20.0, 0.2)]]  # fmt: skip
    at = against_pytorch.summary(runs, 0, 150)
    assert at["qd_score"] == pytest.approx([20, 20])
    assert at["coverage"] == pytest.approx([0.2, 0.2])
    assert against_pytorch.summary(runs, 1, 2.0)["qd_score"] == pytest.approx([20, 20])
    assert against_pytorch.summary(runs, 1, 1.0)["qd_score"] == pytest.approx([10, 10])


@pytest.mark.bench
@pytest.mark.parametrize("name", ["built-in", "faces"])
def test_both_loops_in_pytorch_score_as_this_package(name, tmp_path):
    """With small networks, also in the ways that `Strong` chooses from."""
    torch = pytest.importorskip("torch")
    from pytorch_loop import PULL_BACKS, Published, Strong, Way

    domain = against_pytorch.domains(small=True)[name]
    config = against_pytorch.prepare(domain, tmp_path / "files", 1, True)
    program = against_pytorch.programs(domain)[-1]
    latents = np.load(tmp_path / "files" / "0.npy")[:4]
    scores = {"here": against_pytorch.Here(program, config, 1).scores(latents)}
    published = Published(tmp_path / "files", "cpu")
    published.crops = False
    scores["published"] = [each.numpy() for each in published.scores(torch.tensor(latents), True)]
    for pull_back in PULL_BACKS:
        strong = Strong(tmp_path / "files", "cpu")
        strong.crops = False
        strong._take(Way(False, torch.channels_last, pull_back))
        found = strong.scores(torch.tensor(latents), True)
        scores[pull_back] = [each.numpy() for each in found]
    against_pytorch.require_agreement(scores)
