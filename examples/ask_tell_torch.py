"""CMA-MAEGA on scores of PyTorch, with PyTorch's gradients: ask, score, tell."""

import jax
import numpy as np
import torch

from qdgs_jax import GridArchive, Scores, SearchConfig, make_search, search

torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 3))


def values(latent):  # [8] -> the objective and two measures
    quality, *measures = network(latent)
    return torch.stack([50 + 10 * quality - torch.sum(latent**2), *measures])


def score(latents):
    rows = torch.tensor(np.asarray(latents), dtype=torch.float32)
    with torch.no_grad():
        objective, *measures = torch.func.vmap(values)(rows).T.numpy()
    return Scores(objective, np.stack(measures, axis=1))


def score_with_jacobian(latents):
    rows = torch.tensor(np.asarray(latents), dtype=torch.float32)
    jacobian = torch.func.vmap(torch.func.jacrev(values))(rows)  # [N, 3, 8]
    return score(latents).replace(jacobian=jacobian.detach().numpy())


archive = GridArchive(cells=(20, 20), lower=(-1, -1), upper=(1, 1))
cma_maega = make_search(SearchConfig(algorithm="cma_maega", threshold_min=0.0), archive)
points, ask, tell = (
    jax.jit(each, static_argnums=0) for each in (search.points, search.ask, search.tell)
)

start = np.random.default_rng(0).normal(size=(32, 8))
state = search.init(cma_maega, None, jax.random.key(0), start, score(start))
for _ in range(50):
    at = points(cma_maega, None, state)
    state, asked = ask(cma_maega, None, state, at, score_with_jacobian(at))
    state = tell(cma_maega, state, asked, score(asked.latents))

print(f"{state.elites.count} of {archive.size} cells, best {state.elites.objective.max():.1f}")
