"""Scores outside of JAX: ask for latents, score them with NumPy, tell the scores.

The same serves for a simulator, a web service or people.
"""

import jax
import numpy as np

from qdgs_jax import GridArchive, Scores, SearchConfig, make_search, search


def score(latents):
    latents = np.asarray(latents)  # [N, 8]
    objective = 100 - np.sum((latents - 1) ** 2, axis=1)  # [N]
    return Scores(objective, measures=latents[:, :2])


archive = GridArchive(cells=(20, 20), lower=(-2, -2), upper=(2, 2))
cma_mae = make_search(SearchConfig(algorithm="cma_mae", threshold_min=0.0), archive)
ask, tell = (jax.jit(each, static_argnums=0) for each in (search.ask, search.tell))

start = np.random.default_rng(0).normal(size=(32, 8))
params = None  # of a score in JAX
state = search.init(cma_mae, params, jax.random.key(0), start, score(start))
for _ in range(100):
    state, asked = ask(cma_mae, params, state)
    state = tell(cma_mae, state, asked, score(asked.latents))

print(f"{state.elites.count} of {archive.size} cells, best {state.elites.objective.max():.1f}")
