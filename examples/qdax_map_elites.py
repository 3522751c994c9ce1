"""CMA-MAE on QDax's arm task, as the emitter and repertoire of QDax's own MAP-Elites loop."""

from functools import partial

import jax
from qdax.core.map_elites import MAPElites
from qdax.tasks.arm import arm_scoring_function
from qdax.utils.metrics import default_qd_metrics

from qdgs_jax.archives import GridArchive
from qdgs_jax.emitters.cma_es import CMAES
from qdgs_jax.emitters.evolution_strategy import EvolutionStrategy
from qdgs_jax.emitters.qdax import QDaxEmitter, Repertoire
from qdgs_jax.emitters.rules import Rules

elites = GridArchive(cells=(100, 100), lower=(0, 0), upper=(1, 1))
annealed = GridArchive(
    cells=(100, 100), lower=(0, 0), upper=(1, 1), learning_rate=0.01, threshold_min=-1.0
)
cma_mae = EvolutionStrategy(15, CMAES(batch_size=36, sigma0=0.05), Rules("imp", "mu"))
map_elites = MAPElites(
    scoring_function=arm_scoring_function,
    emitter=QDaxEmitter(annealed, cma_mae),
    metrics_function=partial(default_qd_metrics, qd_offset=1.0),
    repertoire_init=partial(Repertoire.init, elites),
)
key, start = jax.random.key(0), jax.random.uniform(jax.random.key(1), (15, 8))
repertoire, state, _ = jax.jit(map_elites.init)(start, None, key)
(repertoire, state, key), metrics = jax.lax.scan(
    map_elites.scan_update, (repertoire, state, key), length=500
)
print(f"coverage {metrics['coverage'][-1]:.1f} %")
