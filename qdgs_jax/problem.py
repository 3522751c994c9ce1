"""A config with its models loaded, its prompts embedded, and its measure ranges in numbers."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdgs_jax import archives, encoders, generators, search, sharding, typicality
from qdgs_jax.archives import Archive, CVTArchive, GridArchive, cvt_centroids
from qdgs_jax.chunks import device_memory
from qdgs_jax.config import Config, Interval, MeasureConfig, range_problem
from qdgs_jax.encoders import Encoder
from qdgs_jax.errors import ConfigError
from qdgs_jax.generators import Generator
from qdgs_jax.prompts import embed_prompts
from qdgs_jax.scoring import ImageScore, make_score
from qdgs_jax.search import Search
from qdgs_jax.typing import Key, Latents, Params


@dataclasses.dataclass(frozen=True)
class Problem:
    """A config with its models loaded, its prompts embedded, and its measure ranges in numbers."""

    config: Config
    generator: Generator
    encoder: Encoder | None
    """None if there are no prompts."""
    params: Params
    score: ImageScore
    search: Search

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
        allow_code: whether measures may be functions of other packages, which are imported.

    Raises:
        ConfigError: a name, prompt or size in the config is impossible.
        CheckpointError: a model cannot be read.
    """
    options = config.search
    if options.initial_samples < options.emitters:
        raise ConfigError(
            f"search.initial_samples ({options.initial_samples}) must be at least "
            f"search.emitters ({options.emitters}): raise it."
        )
    source, source_params = generator or generators.load(**dataclasses.asdict(config.generator))
    source = generators.identified(source, source_params)
    encoder, encoder_params = None, None
    if config.has_prompts:
        encoder, encoder_params = encoders.load(
            config.encoder.model, precision=config.encoder.precision
        )
    prompts = embed_prompts(config, encoder, encoder_params)
    params = {"generator": source_params, "encoder": encoder_params, "prompts": prompts}
    if config.objective.typicality:
        params["typical"] = typicality.fit(source, source_params)
    score = make_score(config, source, encoder, allow_code=allow_code)
    config = _resolve_ranges(config, source, score, params)
    made = search.make_search(
        options, make_archive(config), score, score.with_jacobian(), init_memory=score.init_memory
    )
    return Problem(config, source, encoder, params, score, made)


def make_archive(config: Config) -> Archive:
    """The cells of a config whose ranges are numbers."""
    lower, upper = zip(*(measure.ends for measure in config.measures), strict=True)
    if config.archive.kind == "cvt":
        points = cvt_centroids(config.archive.cells, lower, upper, seed=config.seed)
        archive: Archive = CVTArchive(points, lower, upper)
    else:
        archive = GridArchive(tuple(measure.cells for measure in config.measures), lower, upper)
    return dataclasses.replace(archive, bfloat16=config.archive.latents == "bfloat16")


def require_memory(problem: Problem) -> None:
    """Refuses a search whose archives, emitters and first latents the ambient mesh cannot hold.

    Raises:
        ConfigError: they take more than the memory of a device.
    """
    made, options, D = problem.search, problem.config.search, problem.generator.latent_size
    archives_ = [made.archive, made.elitist] if made.annealed else [made.elitist]

    def state() -> Any:
        latents = jnp.zeros((options.emitters, D))
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
    if needed > device_memory():
        raise ConfigError(
            f"The search needs {needed / 2**30:,.0f} GiB on each device for "
            f"{made.archive.size:,} cells and {options.emitters:,} emitters, but a device has "
            f"{device_memory() / 2**30:,.0f}: lower the cells, search.emitters or "
            "search.initial_samples, or use more devices."
        )


def _resolve_ranges(
    config: Config, generator: Generator, score: ImageScore, params: Params
) -> Config:
    """Replaces `auto` by the range of random samples, widened by a quarter at either end."""
    if all(measure.range != "auto" for measure in config.measures):
        return config
    latents_key, score_key = jax.random.split(jax.random.split(jax.random.key(config.seed), 3)[0])
    latents = generator.sample(latents_key, config.search.initial_samples)
    scores, _ = jax.jit(score)(params, score_key, latents, ())
    measures = np.asarray(scores.measures, np.float64)
    resolved = [
        measure
        if measure.range != "auto"
        else dataclasses.replace(measure, range=_range_of(measure, values))
        for measure, values in zip(config.measures, measures.T, strict=True)
    ]
    return dataclasses.replace(config, measures=tuple(resolved))


def _range_of(measure: MeasureConfig, values: np.ndarray) -> Interval:
    """A range for samples [N] of a measure, whatever the others are.

    Up to 1 % at either end, and at least one sample, are outliers if they lie further beyond the
    rest than its whole span. Ends are rounded to four digits, of the span or of themselves.

    Raises:
        ConfigError: the samples have no spread, or too little of it for the cells.
    """
    subject = f"The measure '{measure.name}' has no `range`, and"
    finite = np.sort(values[np.isfinite(values)])
    if not len(finite) or finite[0] == finite[-1]:
        found = f"are {finite[0]:g} throughout" if len(finite) else "are not finite"
        raise ConfigError(
            f"{subject} its random samples {found}, which says nothing about one: give it a range "
            "in numbers."
        )
    few = max(1, len(finite) // 100) if len(finite) >= 16 else 0
    start, end = finite[few], finite[len(finite) - 1 - few]
    if start < end:
        finite = finite[(finite >= 2 * start - end) & (finite <= 2 * end - start)]
    span = finite[-1] - finite[0]
    low, high = (
        round(float(end), 3 - math.floor(math.log10(min(span, abs(end) or span))))
        for end in (finite[0] - span / 4, finite[-1] + span / 4)
    )
    if problem := range_problem(low, high, measure.cells):
        raise ConfigError(
            f"{subject} its random samples lie between {finite[0]:.9g} and {finite[-1]:.9g}: a "
            f"range like theirs {problem}."
        )
    return low, high
