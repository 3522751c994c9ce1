"""A config with its models loaded, its prompts embedded, and its measure ranges in numbers."""

import dataclasses

import jax
import numpy as np

from qdgs_jax import encoders, generators, search, typicality
from qdgs_jax.archives import Archive, CVTArchive, GridArchive, cvt_centroids
from qdgs_jax.config import Config, MeasureConfig
from qdgs_jax.encoders import Encoder
from qdgs_jax.errors import ConfigError, QDGSError
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


def load_problem(config: Config, *, generator: tuple[Generator, Params] | None = None) -> Problem:
    """Loads the models, embeds the prompts and replaces `auto` ranges by numbers.

    Args:
        generator: your own generator and its weights, instead of the config's.

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
    score = make_score(config, source, encoder)
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
        return CVTArchive(points, lower, upper)
    return GridArchive(tuple(measure.cells for measure in config.measures), lower, upper)


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
    finite = measures[np.isfinite(measures).all(axis=1)]
    if not len(finite) or (np.ptp(finite, axis=0) == 0).any():
        raise QDGSError(
            "Measures of random samples are constant or not finite, which leaves no `auto` range: "
            "give each measure a range in numbers."
        )
    low, high = finite.min(axis=0), finite.max(axis=0)
    margin = (high - low) / 4

    def resolve(measure: MeasureConfig, low: float, high: float) -> MeasureConfig:
        if measure.range != "auto":
            return measure
        return dataclasses.replace(measure, range=(float(f"{low:.4g}"), float(f"{high:.4g}")))

    resolved = map(resolve, config.measures, low - margin, high + margin)
    return dataclasses.replace(config, measures=tuple(resolved))
