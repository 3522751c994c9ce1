"""A config with its models loaded, its prompts embedded, and its measure ranges in numbers."""

import dataclasses
import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp

from qdgs_jax import (
    archives,
    automatic,
    encoders,
    generators,
    plugins,
    provenance,
    search,
    sharding,
    typicality,
)
from qdgs_jax.archives import Archive, CVTArchive, GridArchive, cvt_centroids
from qdgs_jax.chunks import device_memory
from qdgs_jax.config import Config
from qdgs_jax.encoders import Encoder
from qdgs_jax.errors import ConfigError
from qdgs_jax.generators import Generator
from qdgs_jax.image_measures import Classifier, by_classifier, load_classifiers, weights_of
from qdgs_jax.prompts import embed_prompts
from qdgs_jax.scoring import ImageScore, make_score
from qdgs_jax.search import Search
from qdgs_jax.search_config import SearchConfig
from qdgs_jax.typing import Key, Latents, Params

LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A config with its models loaded, its prompts embedded, and its measure ranges in numbers."""

    config: Config
    generator: Generator
    encoder: Encoder | None
    """None if there are no prompts."""
    classifiers: dict[str, Classifier]
    """Those of measures, by `classifier`."""
    params: Params
    score: ImageScore
    search: Search

    def provenance(self) -> dict[str, Any]:
        """See `qdgs_jax.provenance.describe`."""
        return provenance.describe(self.generator, self.encoder, self.config, self.classifiers)

    def initial_latents(self) -> tuple[Key, Latents]:
        """The search's key, and the random latents of which emitters start from the best."""
        range_key, latents_key, search_key = jax.random.split(jax.random.key(self.config.seed), 3)
        del range_key
        return search_key, self.generator.sample(latents_key, self.config.search.initial_samples)


def load_problem(
    config: Config,
    *,
    generator: tuple[Generator, Params] | None = None,
    allow_code: bool = False,
) -> Problem:
    """Loads the models, embeds the prompts and replaces `auto` ranges by numbers.

    Args:
        generator: your own generator and its weights, instead of the config's.
        allow_code: whether generator, encoder, measures and emitter may be functions of other
            packages, which are imported.

    Raises:
        ConfigError: a name, prompt or size in the config is impossible, or a function of another
            package is not allowed, fails, or does not return what it must.
        CheckpointError: a model cannot be read.
    """
    options = config.search
    if options.initial_samples < options.emitters:
        raise ConfigError(
            f"search.initial_samples ({options.initial_samples}) must be at least "
            f"search.emitters ({options.emitters}): raise it."
        )
    config = _read_faces(config)
    LOG.info("loading models")
    gradients = options.uses_gradients
    source, source_params = (
        generators.checked(*generator, gradients=gradients)
        if generator
        else generators.load(
            **dataclasses.asdict(config.generator), allow_code=allow_code, gradients=gradients
        )
    )
    encoder, encoder_params = None, None
    if config.has_prompts:
        encoder, encoder_params = encoders.load(
            config.encoder.model,
            precision=config.encoder.precision,
            allow_code=allow_code,
            gradients=gradients,
        )
    LOG.info("embedding prompts, sampling random images")
    prompts = embed_prompts(config, encoder, encoder_params)
    params = {"generator": source_params, "encoder": encoder_params, "prompts": prompts}
    repair = search.no_repair
    if options.constraint != "none":
        params["latents"], repair = typicality.range_of_latents(source), _repair
    if options.constraint == "typical":
        rendered = 16 if options.chunk_size == "auto" else options.chunk_size
        params["typical"] = typicality.fit_images(source, source_params, rendered)

    classifiers, weights = load_classifiers(config.measures, allow_code=allow_code)
    if classifiers:
        params["classifiers"] = weights
    config = _resolve_classes(config, classifiers)

    def scored(config: Config) -> ImageScore:
        found = {name: (each, weights[weights_of(name)]) for name, each in classifiers.items()}
        return make_score(config, source, encoder, classifiers=found, allow_code=allow_code)

    config = automatic.with_chunk_size(config, scored, params, source.latent_size)
    # Scored once for both: measures do not depend on the floor.
    random = functools.cache(
        functools.partial(automatic.random_scores, config, source, scored(config), params)
    )
    config = automatic.with_floor(config, random)
    score = scored(config)
    config = automatic.with_ranges(config, score, params, random)
    options, archive, emitter = _in_units_of(params, config.search), make_archive(config), None
    if options.emitter:
        emitter = _own_emitter(options, archive, source.latent_size, allow_code)
    made = search.make_search(
        options, archive, score, score.with_jacobian(),
        init_memory=score.init_memory, repair=repair, emitter=emitter,
    )  # fmt: skip
    return Problem(config, source, encoder, classifiers, params, score, made)


def _read_faces(config: Config) -> Config:
    """Functions that read faces become classifiers, whose weights are arguments.

    Raises:
        ConfigError: faces are read without the notice.
    """
    measures = tuple(map(by_classifier, config.measures))
    reading = [m.name for m in measures if weights_of(m.classifier) != m.classifier]
    if reading and config.notice != "faces":
        raise ConfigError(
            f"The measure '{reading[0]}' reads faces: set `notice = \"faces\"`, which says what "
            "such readings are before a search."
        )
    return dataclasses.replace(config, measures=measures)


def _resolve_classes(config: Config, classifiers: dict[str, Classifier]) -> Config:
    """A cell for each class of the measures that are classes."""
    measures = []
    for measure in config.measures:
        if measure.classifier and measure.output == "class":
            count = len(classifiers[measure.classifier].classes)
            measure = dataclasses.replace(measure, range=(-0.5, count - 0.5), cells=count)
        measures.append(measure)
    return dataclasses.replace(config, measures=tuple(measures))


def _own_emitter(
    options: SearchConfig, archive: Archive, latent_size: int, allow_code: bool
) -> Any:
    """The emitter, ours or QDax's, that `search.emitter` makes: (options, archive, D) -> emitter.

    Raises:
        ConfigError: it is not allowed, does not exist, fails, or returns something else.
    """
    subject = f"The emitter '{options.emitter}'"
    if not plugins.is_function(options.emitter):
        raise ConfigError(f"{subject} is no function: write 'package.module:make'.")
    make = plugins.load(options.emitter, subject, allow_code=allow_code)
    with plugins.failures_told(subject):
        made = make(options, archive, latent_size)
    if not (hasattr(made, "state_update") or hasattr(made, "tell")):
        raise ConfigError(
            f"{subject} returns a {type(made).__name__}: let it return an emitter, as "
            "qdgs_jax.emitters describes it, or one of QDax."
        )
    if getattr(made, "emitters", 1) > options.initial_samples:
        raise ConfigError(
            f"{subject} starts from {made.emitters} latents: raise search.initial_samples "
            f"({options.initial_samples}) to as many."
        )
    return made


def _repair(params: Params, latents: Latents) -> Latents:
    return typicality.bring_into(params["latents"], latents)


def _in_units_of(params: Params, options: SearchConfig) -> SearchConfig:
    """Step sizes in standard deviations of random latents, of which two digits are known."""
    if "latents" not in params:
        return options
    spread = float(f"{params['latents'].spread:.2g}")
    scaled = dataclasses.replace(options, sigma0=spread * options.sigma0)
    if options.algorithm in ("cma_mega", "cma_maega") or options.strategy == "openai_es":
        # Of others it has no effect, and to change it would be refused.
        scaled = dataclasses.replace(scaled, step_size=spread * options.step_size)
    return scaled


def make_archive(config: Config) -> Archive:
    """The cells of a config whose ranges are numbers."""
    lower, upper = zip(*(measure.ends for measure in config.measures), strict=True)
    if config.archive.kind == "cvt":
        points = cvt_centroids(config.archive.cells, lower, upper, seed=config.seed)
        archive: Archive = CVTArchive(points, lower, upper)
    else:
        archive = GridArchive(tuple(measure.cells for measure in config.measures), lower, upper)
    return dataclasses.replace(archive, bfloat16=config.archive.latents == "bfloat16")


def needed_memory(problem: Problem) -> float:
    """Bytes of each device of the ambient mesh for archives, emitters and the first latents."""
    made, options, D = problem.search, problem.config.search, problem.generator.latent_size
    archives_ = [made.archive, made.elitist] if made.annealed else [made.elitist]

    def state() -> Any:
        latents = jnp.zeros((made.emitter.emitters, D))
        emitter = made.emitter.init(jax.random.key(0), latents)
        return [archives.init(each, D, latents.dtype) for each in archives_], emitter

    def share(leaf: Any, divided_axis: int | None) -> float:
        whole = leaf.size * leaf.dtype.itemsize
        if divided_axis is None or not leaf.ndim or leaf.shape[divided_axis] % devices:
            return whole
        return whole / devices

    devices = sharding.devices()
    contents, emitter = jax.eval_shape(state)
    needed = max(options.initial_samples, options.emitters * options.batch_size) * D * 4.0
    needed += sum(share(leaf, 0) for leaf in jax.tree.leaves(emitter))
    for each in contents:
        needed += share(each.latents, 1)
        needed += sum(share(leaf, None) for leaf in jax.tree.leaves(each.replace(latents=None)))
    return needed


def require_memory(problem: Problem) -> None:
    """Refuses a search whose archives, emitters and first latents the ambient mesh cannot hold.

    Raises:
        ConfigError: they take more than the memory of a device.
    """
    needed = needed_memory(problem)
    if needed > device_memory():
        raise ConfigError(
            f"The search needs {needed / 2**30:,.0f} GiB on each device for "
            f"{problem.search.archive.size:,} cells and "
            f"{problem.config.search.emitters:,} emitters, but a device has "
            f"{device_memory() / 2**30:,.0f}: lower the cells, search.emitters or "
            "search.initial_samples, or use more devices."
        )
