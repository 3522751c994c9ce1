"""Quality-Diversity Generative Sampling in JAX (Chang et al., AAAI 2024, arXiv 2312.14369).

A frozen generator is sampled evenly over measures that its user names in words. From a config to a
balanced dataset:

    import qdgs_jax as qdgs

    config = qdgs.load_config("configs/search/shapes.toml")
    qdgs.sample(config, "runs/shapes")
    qdgs.export("runs/shapes", "dataset")

The modules are the stages, in this order; each is useful alone:

    plugins         functions of other packages that a config names
    search_config   the options of the search
    config          the options of a run
    folders         claiming, locking and resuming folders of results
    provenance      models, device, versions
    processes       several processes: what one does for all, and how they agree
    chunks          batches in chunks, which bound the memory
    sharding        batches and archives over the devices of a mesh
    keys            random keys: a stream for each purpose, a key for each sample
    models          ports of generators and encoders, and safe readers of their checkpoints
    generators      key -> latents;  latents -> images
    encoders        images, text -> embeddings
    prompts         prompt pairs -> prompt embeddings
    faceres         a network that reads ages, presentations and embeddings of faces
    blazeface       a network that finds faces, and their alignment
    image_measures  what a measure can name instead of prompts
    expressions     a network that reads expressions of faces
    typicality      how typical latents and images are of a generator
    jacobian        the protocol of scores, and their gradients
    scoring         latents -> objective and measures
    automatic       what `auto` stands for in a config, from random samples
    archives        cells, and the best latent found for each
    emitters        proposals of the next latents
    search          init, step, run: the whole loop as pure functions
    problem         a config with its models loaded and its prompts embedded
    bins            regions of the measures, and even draws from them
    collectives     what devices exchange in a compiled program
    compilation     a config's programs for chips that are not there: whether they fit
    runs            a run's folder: metrics, checkpoints, pictures
    datasets        a run's elites -> a balanced dataset or identities on disk; any folder of images
    training        images and labels -> a trained classifier
    evaluation      accuracy by group, and equalised odds
    shapes          the built-in domain: drawings, captions, how its models are trained
    experiments     published experiments, each with its own config

Public names are imported when they are first used: `import qdgs_jax` alone imports no jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qdgs_jax.archives import CVTArchive, GridArchive, cvt_centroids
    from qdgs_jax.config import Config, load_config
    from qdgs_jax.datasets.class_folders import read_folder
    from qdgs_jax.datasets.export import baseline, export
    from qdgs_jax.encoders import Encoder
    from qdgs_jax.errors import CheckpointError, ConfigError, QDGSError
    from qdgs_jax.generators import Generator
    from qdgs_jax.image_measures import Classifier
    from qdgs_jax.jacobian import Scores, with_jacobian
    from qdgs_jax.problem import Problem, load_problem
    from qdgs_jax.runs.results import load_run
    from qdgs_jax.runs.sampling import sample
    from qdgs_jax.scoring import make_score
    from qdgs_jax.search import Search, SearchState, make_search
    from qdgs_jax.search_config import SearchConfig

_MODULES = {
    "archives": ("CVTArchive", "GridArchive", "cvt_centroids"),
    "config": ("Config", "load_config"),
    "datasets.class_folders": ("read_folder",),
    "datasets.export": ("baseline", "export"),
    "encoders": ("Encoder",),
    "errors": ("CheckpointError", "ConfigError", "QDGSError"),
    "generators": ("Generator",),
    "image_measures": ("Classifier",),
    "jacobian": ("Scores", "with_jacobian"),
    "problem": ("Problem", "load_problem"),
    "runs.results": ("load_run",),
    "runs.sampling": ("sample",),
    "scoring": ("make_score",),
    "search": ("Search", "SearchState", "make_search"),
    "search_config": ("SearchConfig",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "CVTArchive", "CheckpointError", "Classifier", "Config", "ConfigError", "Encoder", "Generator",
    "GridArchive", "Problem", "QDGSError", "Scores", "Search", "SearchConfig", "SearchState",
    "baseline", "cvt_centroids", "export", "load_config", "load_problem", "load_run", "make_score",
    "make_search", "read_folder", "sample", "with_jacobian",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports a public name on its first use (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("qdgs-jax")
    elif name in _HOME:
        value = getattr(importlib.import_module(f"qdgs_jax.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module 'qdgs_jax' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
