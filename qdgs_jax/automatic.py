"""What `auto` stands for in a config: numbers from random samples of the generator."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdgs_jax import typicality
from qdgs_jax.chunks import device_memory, in_chunks
from qdgs_jax.config import Config, Interval, MeasureConfig, range_problem
from qdgs_jax.errors import ConfigError
from qdgs_jax.generators import Generator
from qdgs_jax.jacobian import Scores
from qdgs_jax.scoring import ImageScore
from qdgs_jax.typing import Array, Key, Latents, Params

FLOOR = 0.1
"""Share of random samples whose objective is too low for an elite."""
PROBES = 8
"""Gradient ascents to each end of a measure."""
STEPS = 24
"""Of an ascent; each is a tenth of the distance of random latents to their mean."""
LARGEST_CHUNK = 256
"""Of an `auto` chunk_size; larger ones are hardly faster."""


def with_chunk_size(
    config: Config, scored: Callable[[Config], ImageScore], params: Params, latent_size: int
) -> Config:
    """Replaces an `auto` chunk_size by the largest power of two that fits.

    The temporaries of scoring a chunk, with gradients if the search uses them, fit if they take
    less than half of a device's memory; weights and archives are in the other half.
    """
    options = config.search
    if options.chunk_size != "auto":
        return config

    def of_size(size: int) -> Config:
        return dataclasses.replace(config, search=dataclasses.replace(options, chunk_size=size))

    def taken(size: int) -> float:
        score = scored(of_size(size))
        scores = [score, score.with_jacobian()] if options.uses_gradients else [score]
        return max(_temporaries(each, params, latent_size) for each in scores)

    limit, size = device_memory() / 2, LARGEST_CHUNK
    while size > 1 and (needed := taken(size)) >= limit:
        # Temporaries are about proportional to the size: most sizes need not be compiled.
        likely = 2 ** math.ceil(math.log2(max(size * limit / needed, 1)))
        size = min(size // 2, likely)
    return of_size(size)


def _temporaries(score: ImageScore, params: Params, latent_size: int) -> int:
    """Bytes of a compiled program that scores a chunk, without its arguments and results."""
    N = score.chunk_size
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), N))
    latents = jax.ShapeDtypeStruct((N, latent_size), jnp.float32)
    memory = jax.eval_shape(score.init_memory, params)
    try:
        program = jax.jit(score.score_rows).lower(params, keys, latents, memory).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return device_memory()  # or more
    found: Any = program.memory_analysis()
    return int(found.temp_size_in_bytes)


def random_scores(
    config: Config, generator: Generator, score: ImageScore, params: Params
) -> tuple[Latents, Scores]:
    """Random latents that are in distribution, and their scores; all if none is."""
    latents_key, score_key = jax.random.split(jax.random.split(jax.random.key(config.seed), 3)[0])
    latents = generator.sample(latents_key, config.search.initial_samples)
    scores, _ = jax.jit(score)(params, score_key, latents, ())
    if scores.atypical is None or scores.atypical.all():
        return latents, scores
    rows = np.flatnonzero(~np.asarray(scores.atypical))
    return latents[rows], jax.tree.map(lambda leaf: leaf[rows], scores)


def with_floor(config: Config, random: Callable[[], tuple[Latents, Scores]]) -> Config:
    """Replaces an `auto` threshold_min by the objective that `FLOOR` of random samples do not have.

    Args:
        random: `random_scores` of the config, called only if they are needed.

    Raises:
        ConfigError: no random latent has a finite objective.
    """
    if config.search.threshold_min != "auto":
        return config
    _, scores = random()
    objective = np.asarray(scores.objective, np.float64)
    objective = objective[np.isfinite(objective)]
    if not len(objective):
        raise ConfigError(
            "The objective is not finite for any random latent: mend the generator, the encoder or "
            "their weights."
        )
    # A little below, so that an objective that is the same for all does not refuse all.
    floor = np.quantile(objective, FLOOR)
    floor -= max(0.1 * objective.std(), 1e-3 * abs(floor), 1e-6)
    search = dataclasses.replace(config.search, threshold_min=float(f"{floor:.5g}"))
    return dataclasses.replace(config, search=search)


def with_ranges(
    config: Config,
    score: ImageScore,
    params: Params,
    random: Callable[[], tuple[Latents, Scores]],
) -> Config:
    """Replaces `auto` by ends that the search can reach: see `_range_of` and `_probe`.

    Args:
        score: of the config, whose floor is a number.
        random: as in `with_floor`.
    """
    auto = [number for number, each in enumerate(config.measures) if each.range == "auto"]
    if not auto:
        return config
    latents, scores = random()
    measures, values = list(config.measures), np.asarray(scores.measures, np.float64)
    ranges = {number: _range_of(measures[number], values[:, number]) for number in auto}
    if config.search.constraint == "typical" and config.search.uses_gradients:
        for number, ends in _probe(score, params, latents, values, auto).items():
            bulk = _bulk(measures[number], values[:, number])
            finite = [end for end in (*ends, *bulk) if math.isfinite(end)]
            ranges[number] = _rounded(measures[number], bulk, min(finite), max(finite))
    for number, each in ranges.items():
        measures[number] = dataclasses.replace(measures[number], range=each)
    return dataclasses.replace(config, measures=tuple(measures))


def _probe(
    score: ImageScore, params: Params, latents: Latents, measures: np.ndarray, which: list[int]
) -> dict[int, Interval]:
    """The ends of measures that short gradient ascents and descents reach in distribution.

    They start from each measure's `PROBES` largest and smallest random values; the third of those
    that they reach is the end, so that it is no accident.

    Args:
        measures: of the latents, [N, M].
        which: positions of the measures to probe.
    """
    starts = []  # row, measure, sign
    for number in which:
        order = np.argsort(np.nan_to_num(measures[:, number]))
        starts += [(row, number, -1.0) for row in order[:PROBES]]
        starts += [(row, number, 1.0) for row in order[::-1][:PROBES]]
    rows, numbers, signs = (np.array(column) for column in zip(*starts, strict=True))
    step = 0.1 * params["latents"].spread * latents.shape[1] ** 0.5

    def wanted(
        params: Params, latents: Latents, keys: Key, number: Array, sign: Array
    ) -> tuple[Array, tuple[Array, Array]]:
        scores, _ = score.score_rows(params, keys, latents, ())
        value = sign * jnp.take_along_axis(scores.measures, number[:, None], axis=1)[:, 0]
        assert scores.atypical is not None
        # The objective of atypical images leads back.
        return jnp.where(scores.atypical, scores.objective, value).sum(), (value, scores.atypical)

    @jax.jit
    def climb(params: Params, latents: Latents, number: Array, sign: Array) -> Array:
        def gradients(keys: Key, *rows: Array) -> Any:
            return jax.grad(wanted, 1, has_aux=True)(params, rows[0], keys, *rows[1:])

        def ascend(carry: tuple[Latents, Array], key: Key) -> tuple[tuple[Latents, Array], None]:
            latents, best = carry
            gradient, (value, atypical) = in_chunks(gradients, max(1, score.chunk_size // 2))(
                jax.random.split(key, len(latents)), latents, number, sign
            )
            best = jnp.where(atypical | jnp.isnan(value), best, jnp.maximum(best, value))
            norm = jnp.linalg.norm(gradient, axis=-1, keepdims=True)
            moved = latents + step * jnp.where(jnp.isfinite(norm), gradient / (norm + 1e-30), 0)
            return (typicality.bring_into(params["latents"], moved), best), None

        start = typicality.bring_into(params["latents"], latents), jnp.full(len(latents), -jnp.inf)
        (_, best), _ = jax.lax.scan(ascend, start, jax.random.split(jax.random.key(0), STEPS))
        return best

    best = np.asarray(climb(params, latents[rows], jnp.asarray(numbers), jnp.asarray(signs)))

    def end(number: int, sign: float) -> float:
        reached = np.sort(best[(numbers == number) & (signs == sign)])[::-1]
        return float(sign * reached[:3][-1])

    return {number: (end(number, -1.0), end(number, 1.0)) for number in which}


def _range_of(measure: MeasureConfig, values: np.ndarray) -> Interval:
    """A range a quarter wider than samples [N] of a measure, whatever the other measures are."""
    low, high = bulk = _bulk(measure, values)
    return _rounded(measure, bulk, low - (high - low) / 4, high + (high - low) / 4)


def _bulk(measure: MeasureConfig, values: np.ndarray) -> Interval:
    """Smallest and largest of samples [N] without outliers.

    Up to 1 % at either end, and at least one sample, are outliers if they lie further beyond the
    rest than its whole span.

    Raises:
        ConfigError: the samples have no spread.
    """
    finite = np.sort(values[np.isfinite(values)])
    if not len(finite) or finite[0] == finite[-1]:
        found = f"are {finite[0]:g} throughout" if len(finite) else "are not finite"
        raise ConfigError(
            f"The measure '{measure.name}' has no `range`, and its random samples {found}, which "
            "says nothing about one: give it a range in numbers."
        )
    few = max(1, len(finite) // 100) if len(finite) >= 16 else 0
    start, end = finite[few], finite[len(finite) - 1 - few]
    if start < end:
        finite = finite[(finite >= 2 * start - end) & (finite <= 2 * end - start)]
    return float(finite[0]), float(finite[-1])


def _rounded(measure: MeasureConfig, bulk: Interval, low: float, high: float) -> Interval:
    """Ends to four digits, of the span or of themselves.

    Raises:
        ConfigError: the cells are too narrow.
    """
    span = high - low
    ends = (
        round(end, 3 - math.floor(math.log10(min(span, abs(end) or span)))) for end in (low, high)
    )
    low, high = ends
    if problem := range_problem(low, high, measure.cells):
        raise ConfigError(
            f"The measure '{measure.name}' has no `range`, and its random samples lie between "
            f"{bulk[0]:.9g} and {bulk[1]:.9g}: a range like theirs {problem}."
        )
    return low, high
