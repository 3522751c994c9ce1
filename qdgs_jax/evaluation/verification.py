"""Face verification: do two images show one person? By the protocol of LFW (Huang et al. 2007).

    test = pairs.read_bin("lfw.bin")  # or pairs.read_pairs(FOLDER), with a folder for each person
    distances = pair_distances(embed_faces(network, params, test.images), test)
    results = verify(distances, test)

Two images match if the squared distance of their unit embeddings is below a threshold.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdgs_jax import sharding
from qdgs_jax.errors import ConfigError
from qdgs_jax.evaluation.fairness import exact_interval
from qdgs_jax.evaluation.pairs import Pairs
from qdgs_jax.models import iresnet
from qdgs_jax.models.iresnet import IResNetConfig
from qdgs_jax.models.precision import Precision
from qdgs_jax.typing import Array, Params

FOLDS = 10
EMBEDDED_AT_ONCE = 64  # images on a device
FALSE_MATCH_RATES = (1e-1, 1e-2, 1e-3, 1e-4)
LEAST_FALSE_MATCHES = 3
"""Fewer do not determine the rate of false matches."""


def embed_faces(
    config: IResNetConfig, params: Params, images: np.ndarray, *, precision: Precision = "highest"
) -> np.ndarray:
    """Unit embeddings [N, E] of images [N, H, W, 3] uint8, resized to what the network reads.

    Each is the direction of the sum of the image's and its mirror image's embeddings, in which
    their norms are weights: the better the image, the longer its embedding.
    """
    count = EMBEDDED_AT_ONCE * sharding.devices()
    found = []
    for start in range(0, len(images), count):
        some = images[start : start + count]
        filled = np.concatenate([some, np.repeat(some[-1:], count - len(some), axis=0)])
        found.append(np.asarray(_embed(config, params, filled, precision))[: len(some)])
    return np.concatenate(found)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _embed(config: IResNetConfig, params: Params, images: Array, precision: Precision) -> Array:
    def embed(params: Params, images: Array) -> Array:
        size = config.image_size
        floats = images.astype(jnp.float32) / 255
        if images.shape[1:3] != (size, size):
            floats = jax.image.resize(floats, (len(images), size, size, 3), "linear")
        both = jnp.concatenate([floats, floats[:, :, ::-1]])
        first, mirrored = jnp.split(iresnet.embed(config, params, both, precision=precision), 2)
        total = first + mirrored
        return total / jnp.maximum(jnp.linalg.norm(total, axis=1, keepdims=True), 1e-12)

    return sharding.replicated(sharding.rowwise(embed)(params, images))


def pair_distances(embeddings: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Squared distances [P] in [0, 4] of the unit embeddings [N, E] of all images."""
    first, second = (embeddings[pairs.rows[:, side]] for side in (0, 1))
    return np.square(first - second).sum(axis=1)


def matches(distances: np.ndarray, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Which pairs [P] are taken for one person, and the threshold of each of ten folds [F].

    Folds are consecutive pairs. The threshold of a fold is the most accurate one of the others.

    Raises:
        ConfigError: there are fewer pairs than folds, or no two kinds of them.
    """
    if len(pairs.same) < FOLDS or pairs.same.all() or not pairs.same.any():
        raise ConfigError(
            f"{int(pairs.same.sum())} of {len(pairs.same)} pairs show one person: at least {FOLDS} "
            "pairs of both kinds are needed."
        )
    folds = np.array_split(np.arange(len(distances)), FOLDS)
    matched, thresholds = np.empty(len(distances), bool), np.empty(FOLDS)
    for number, fold in enumerate(folds):
        others = np.delete(np.arange(len(distances)), fold)
        thresholds[number] = _best_threshold(distances[others], pairs.same[others])
        matched[fold] = distances[fold] < thresholds[number]
    return matched, thresholds


def _best_threshold(distances: np.ndarray, same: np.ndarray) -> float:
    """The most accurate threshold: the middle one of those between two distances."""
    order = np.argsort(distances, kind="stable")
    ends = np.concatenate([[-1.0], distances[order], [5.0]])
    between = (ends[:-1] + ends[1:]) / 2
    right = np.concatenate([[0], np.cumsum(np.where(same[order], 1, -1))])
    right = np.where(ends[:-1] < ends[1:], right, -len(same) - 1)  # none between equal ones
    best = np.flatnonzero(right == right.max())
    return float(between[best[len(best) // 2]])


def verify(distances: np.ndarray, pairs: Pairs) -> dict[str, Any]:
    """Accuracy over ten folds, and the rate of true matches at rates of false ones.

    Intervals are 95 % confidence intervals of `interval`.

    Returns:
        "pairs"; "accuracy", "interval", and "spread", the standard deviation over folds;
        "threshold", their mean; "true matches": rate of false ones -> {"rate", "interval"}, None
        where pairs are too few; "notes": sentences that say so; "groups": group -> "pairs",
        "accuracy", "interval".

    Raises:
        ConfigError: see `matches`.
    """
    matched, thresholds = matches(distances, pairs)
    right = matched == pairs.same
    different = int((~pairs.same).sum())
    rates: dict[str, Any] = {}
    notes = []
    for rate in FALSE_MATCH_RATES:
        rates[f"{rate:g}"] = _true_matches(distances, pairs, rate)
        if rates[f"{rate:g}"] is None:
            notes.append(
                f"A rate of false matches of {rate:g} needs "
                f"{math.ceil(LEAST_FALSE_MATCHES / rate):,} pairs of two people; there are "
                f"{different:,}."
            )
    groups = np.array(pairs.groups)
    return {
        "pairs": len(right),
        **_accuracy(right, pairs.people),
        "spread": float(np.std([fold.mean() for fold in np.array_split(right, FOLDS)], ddof=1)),
        "threshold": float(thresholds.mean()),
        "true matches": rates,
        "notes": notes,
        "groups": {
            str(name): {
                "pairs": int((groups == name).sum()),
                **_accuracy(right[groups == name], pairs.people[groups == name]),
            }
            for name in sorted(set(pairs.groups))
        },
    }


def _accuracy(right: np.ndarray, people: np.ndarray) -> dict[str, Any]:
    return {"accuracy": float(right.mean()), "interval": interval(right, people)}


def _true_matches(distances: np.ndarray, pairs: Pairs, rate: float) -> dict[str, Any] | None:
    """Pairs of one person that are closer than the first of two people that may not match."""
    different = np.sort(distances[~pairs.same])
    allowed = math.floor(rate * len(different) + 1e-9)
    if allowed < LEAST_FALSE_MATCHES:
        return None
    found = distances[pairs.same] < different[allowed]
    return {"rate": float(found.mean()), "interval": interval(found, pairs.people[pairs.same])}


def interval(right: np.ndarray, people: np.ndarray, *, level: float = 0.95) -> list[float]:
    """Confidence interval of the rate of `right` [P], for other pairs of other people.

    Pairs of one person are not independent. The interval is the exact one of Clopper and Pearson
    for as many independent pairs as would vary as much (Korn and Graubard 1998, Survey Methodology
    24), by the jackknife over people. If all pairs are right, or all wrong, that is one a person.

    Args:
        people: [P, 2] who both images show; pairs of unknown people (-1) are independent.
    """
    independent = np.array(_independent_pairs(right.astype(float), people))
    low, high = exact_interval(right.mean() * independent, independent, (1 - level) / 2)
    return [float(low), float(high)]


def _independent_pairs(right: np.ndarray, people: np.ndarray) -> float:
    total, rate = len(right), right.mean()
    own = people.max() + 1 + np.arange(total)  # for a pair of unknown people
    first, second = (np.where(people[:, side] < 0, own, people[:, side]) for side in (0, 1))
    names, inverse = np.unique(np.concatenate([first, second]), return_inverse=True)
    first, second = np.split(inverse, 2)
    twice = first == second

    def without(values: np.ndarray) -> np.ndarray:
        """Sum of all pairs but those of each person."""
        of_first = np.bincount(first, values, len(names))
        of_second = np.bincount(second, np.where(twice, 0, values), len(names))
        return values.sum() - of_first - of_second

    left = without(np.ones(total))
    rates = without(right)[left > 0] / left[left > 0]
    variance = (len(rates) - 1) / max(len(rates), 1) * np.square(rates - rate).sum()
    if rate in (0, 1) or variance == 0:
        return float(min(len(names), total))
    return float(np.clip(rate * (1 - rate) / variance, 1, total))


def roc(distances: np.ndarray, same: Sequence[bool] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rates of false and of true matches for all thresholds, ascending [P + 1]."""
    order = np.argsort(distances, kind="stable")
    same = np.asarray(same)[order]
    false, true = (np.concatenate([[0], np.cumsum(kind)]) for kind in (~same, same))
    return false / max(false[-1], 1), true / max(true[-1], 1)
