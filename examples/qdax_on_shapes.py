"""QDax's MAP-Elites, with its own emitter and repertoire, on the built-in shapes."""

from functools import partial

import jax
import jax.numpy as jnp
from qdax.core.emitters.mutation_operators import isoline_variation
from qdax.core.emitters.standard_emitters import MixingEmitter
from qdax.core.map_elites import MAPElites
from qdax.utils.metrics import default_qd_metrics

from qdgs_jax import load_config, load_problem
from qdgs_jax.emitters.qdax import QDaxScore

problem = load_problem(load_config("configs/search/shapes.toml"))
emitter = MixingEmitter(
    mutation_fn=lambda genotypes, key: genotypes,
    variation_fn=partial(isoline_variation, iso_sigma=0.1, line_sigma=0.2),
    variation_percentage=1.0,
    batch_size=128,
)
map_elites = partial(
    MAPElites, emitter=emitter, metrics_function=partial(default_qd_metrics, qd_offset=0.0)
)
centroids = jnp.asarray(problem.search.archive.centres())


@jax.jit
def start(score, key, latents):
    return map_elites(score).init(latents, centroids, key)[:2]


@partial(jax.jit, static_argnames="generations")
def run(score, repertoire, state, key, generations):
    carry = repertoire, state, key
    return jax.lax.scan(map_elites(score).scan_update, carry, length=generations)


score = QDaxScore(problem.search, problem.params)  # a pytree: weights are arguments
key, latents = problem.initial_latents()
repertoire, state = start(score, key, latents)
(repertoire, state, key), metrics = run(score, repertoire, state, key, generations=20)
elites = repertoire.genotypes[repertoire.fitnesses[:, 0] > -jnp.inf]
images = problem.generator.render(
    problem.params["generator"], problem.search.repair(problem.params, elites)
)
print(f"{len(elites)} elites, coverage {metrics['coverage'][-1]:.2f} %")
