"""Whether a finished run is any good, in figures and in sentences with remedies.

In distribution: latents of elites within the 0.1 to 99.9 % quantiles of random latents' norms, and
images in the region that holds 99 % of random images, by features that the search has not seen.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdgs_jax import typicality
from qdgs_jax.bins import assign_bins, bins_of, shares
from qdgs_jax.problem import Problem
from qdgs_jax.runs.metrics import Row

IMAGES = 1024
"""Elites whose images are rendered, at most."""
ENOUGH = 0.95
"""Share of elites in distribution, below which the verdict says so."""
KEYS = 1, 2
"""Of the random latents: others than the search's."""


@dataclasses.dataclass(frozen=True)
class Reach:
    """How far the elites go along a measure."""

    measure: str
    range: tuple[float, float]
    lowest: float | None
    """Least of the elites' values; None without elites."""
    highest: float | None
    low_reached: bool
    """Whether an elite lies within two cells, or 5 % of the range, of the low end."""
    high_reached: bool
    beyond: float
    """Share of elites outside of the range, all in its border cells."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What tells a good run from a bad one."""

    latents_in_distribution: float | None
    """Share of elites; None without elites."""
    images_typical: float | None
    """Share of elites."""
    reach: tuple[Reach, ...]
    refused: dict[str, int]
    """Latents by the reason why they could not become elites."""
    evaluations: int
    exportable: int
    """Elites that `qdgs export` can choose from."""
    repeated: int
    """Images of the config's export that would show an elite once more."""
    empty_bins: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, the sentences among them."""
        values = {**dataclasses.asdict(self), "sentences": self.sentences()}
        plain: dict[str, Any] = json.loads(json.dumps(values))  # lists in place of tuples
        return plain

    def sentences(self) -> list[str]:
        """What is good and what is not, each with its remedy."""
        said = []
        if self.latents_in_distribution is None:
            most = max(self.refused, key=lambda reason: self.refused[reason])
            return [f"No elite: {_share(self.refused[most], self.evaluations)} of the latents "
                    f"{_REASONS[most]}."]  # fmt: skip
        assert self.images_typical is not None
        said.append(
            f"In distribution: {self.latents_in_distribution:.1%} of the elites' latents, "
            f"{self.images_typical:.1%} of their images (random ones: 99 %)."
        )
        if min(self.latents_in_distribution, self.images_typical) < ENOUGH:
            said[0] = said[0][:-1] + (
                ", so others look like nothing that the generator draws: set search.constraint to "
                "'typical', or lower search.sigma0 and search.step_size."
            )
        for each in self.reach:
            assert each.lowest is not None
            assert each.highest is not None
            missed = [
                f"{end} end ({value:.3g} of {limit:.3g})"
                for end, value, limit, reached in (
                    ("low", each.lowest, each.range[0], each.low_reached),
                    ("high", each.highest, each.range[1], each.high_reached),
                )
                if not reached
            ]
            if missed:
                said.append(
                    f"Measure '{each.measure}' does not reach its {' and '.join(missed)}: search "
                    "longer, or narrow its range."
                )
            if each.beyond > 0.05:
                said.append(
                    f"Measure '{each.measure}': {each.beyond:.1%} of the elites lie beyond its "
                    "range, in border cells: widen it."
                )
        for reason, count in self.refused.items():
            if count > self.evaluations / 2:
                share = _share(count, self.evaluations)
                said.append(f"Refused: {share} of the latents {_REASONS[reason]}.")
        if self.empty_bins:
            said.append(
                f"No elite lies in the bins {', '.join(self.empty_bins)}: widen them, or search "
                "longer."
            )
        if self.repeated:
            said.append(
                f"An export of the config's size would show {self.repeated:,} images again: search "
                "longer, widen the bins, lower export.count, or pass --no-repeat."
            )
        return said


_REASONS = {
    "non_finite": "had scores that are not finite: mend the generator, the encoder or the measures",
    "atypical": "had images unlike random ones: lower search.sigma0 and search.step_size",
    "below_floor": "had an objective at or below search.threshold_min: lower it, or set it to "
    "'auto'",
}


def _share(part: int, whole: int) -> str:
    return f"{part / max(whole, 1):.1%}"


def judge(
    problem: Problem, latents: np.ndarray, objective: np.ndarray, measures: np.ndarray, last: Row
) -> Verdict:
    """The verdict on elites [n].

    Args:
        last: metrics of their state.
    """
    config, n = problem.config, len(latents)
    bins = bins_of(config)
    bin = assign_bins(config, bins, measures)
    bin[objective < config.export.min_objective] = -1
    held = np.bincount(bin[bin >= 0], minlength=len(bins))
    wanted = np.array(shares(config.export.count, len(bins)))
    return Verdict(
        latents_in_distribution=_in_range(problem, latents) if n else None,
        images_typical=make_typical_share(problem)(latents) if n else None,
        reach=_reach(problem, measures),
        refused={name: int(last[name]) for name in _REASONS},
        evaluations=int(last["evaluations"]),
        exportable=int(held.sum()),
        repeated=int(np.maximum(wanted - held, 0)[held > 0].sum()),
        empty_bins=tuple(each.name for each, count in zip(bins, held, strict=True) if not count),
    )


def _in_range(problem: Problem, latents: np.ndarray) -> float:
    generator = problem.generator
    random = np.asarray(generator.sample(jax.random.key(KEYS[0]), typicality.LATENTS))
    norms = typicality.block_norms(random, generator.blocks)
    least, most = np.quantile(norms, (0.001, 0.999), axis=0)
    found = typicality.block_norms(latents, generator.blocks)
    return float(((found >= least) & (found <= most)).all(axis=1).mean())


def make_typical_share(problem: Problem) -> Callable[[np.ndarray], float]:
    """Latents [n, D] -> the share whose images lie in the region of 99 % of random images, by
    features that no search sees; of more than `IMAGES`, some. Fitted to random images here."""
    kinds = (typicality.untrained,)
    random = problem.generator.sample(jax.random.key(KEYS[1]), typicality.SAMPLES)
    size = problem.config.search.chunk
    of_images = functools.partial(
        typicality.features_of(problem.generator, kinds, size), problem.params["generator"]
    )
    typical = typicality.fit(kinds, of_images(random), region=0.99, tail=0)

    def share(latents: np.ndarray) -> float:
        rows = np.linspace(0, len(latents) - 1, min(IMAGES, len(latents))).astype(int)
        values = of_images(jnp.asarray(latents[rows]))
        return float((typicality.distance_of(typical, values) <= 1).mean())

    return share


def _reach(problem: Problem, measures: np.ndarray) -> tuple[Reach, ...]:
    found = []
    for measure, values in zip(problem.config.measures, measures.T, strict=True):
        low, high = measure.ends
        near = (high - low) * max(2 / measure.cells, 0.05)
        lowest, highest = (float(values.min()), float(values.max())) if len(values) else (None,) * 2
        found.append(
            Reach(
                measure=measure.name,
                range=(low, high),
                lowest=lowest,
                highest=highest,
                low_reached=lowest is not None and lowest <= low + near,
                high_reached=highest is not None and highest >= high - near,
                beyond=float(((values < low) | (values > high)).mean()) if len(values) else 0.0,
            )
        )
    return tuple(found)
