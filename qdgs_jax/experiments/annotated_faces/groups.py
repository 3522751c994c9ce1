"""Groups of faces: which of them a reading belongs to, and how certainly.

The published method has one classifier with a probability for each group. Here a reading is several
measures, and each says how probable the values of one attribute are:

* presentation is a probability already;
* age and skin tone are numbers with an error, normally distributed: the probability of a value is
  the share of that distribution between its limits.

Age is the network's expected age. The mass of its distribution of ages would not do: its standard
deviation is 12 years (median of random faces of `digiface-dcgan`), and 0.1 % of these faces have
70 % of it between 30 and 45.

The confidence of a group is the least probability of its values. A limit of 0.7 then asks of each
attribute what the published method asks of its only one.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logit, ndtr, ndtri

from qdgs_jax.errors import ConfigError, did_you_mean
from qdgs_jax.experiments.annotated_faces.config import AttributeConfig

SURE = 1e-6
"""Probabilities are taken for at least this far from 0 and 1, so that log-odds are finite."""


@dataclass(frozen=True)
class Groups:
    """All combinations of the values of A attributes: G groups of readings [N, M]."""

    attributes: tuple[AttributeConfig, ...]
    columns: tuple[int, ...]
    """Position of each attribute's measure among the M measures."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """Such as "young female dark"."""
        return tuple(
            " ".join(values)
            for values in itertools.product(*(each.values for each in self.attributes))
        )

    @property
    def values(self) -> np.ndarray:
        """Position of each group's value in each attribute [G, A]."""
        return np.array(list(itertools.product(*(range(len(a.values)) for a in self.attributes))))

    def probabilities(self, measures: np.ndarray) -> list[np.ndarray]:
        """Of each attribute's values [N, V], from 0 to 1; 0 for a reading that is not finite."""
        found = []
        for attribute, column in zip(self.attributes, self.columns, strict=True):
            x = np.asarray(measures, np.float64)[:, column]
            if attribute.limits:
                below = ndtr((np.array(attribute.limits) - x[:, None]) / attribute.error)
                ends = np.zeros((len(x), 1)), below, np.ones((len(x), 1))
                each = np.diff(np.concatenate(ends, axis=1))
            else:
                each = np.stack([1 - x, x], axis=1).clip(0, 1)
            found.append(np.where(np.isfinite(x)[:, None], each, 0.0))
        return found

    def confidences(self, measures: np.ndarray) -> np.ndarray:
        """Of each group [N, G], from 0 to 1: the least probability of its values."""
        found = self.probabilities(measures)
        return np.min([p[:, v] for p, v in zip(found, self.values.T, strict=True)], axis=0)

    def assign(self, measures: np.ndarray, confidence: float) -> np.ndarray:
        """The group of which each reading is an example [N], -1 for none."""
        confidences = self.confidences(measures)
        best = confidences.argmax(axis=1)
        return np.where(confidences.max(axis=1) >= confidence, best, -1)

    def coordinates(self, measures: np.ndarray) -> np.ndarray:
        """Readings of the attributes without ends [N, A]: log-odds of probabilities."""
        x = np.asarray(measures, np.float64)[:, list(self.columns)]
        bounded = [not attribute.limits for attribute in self.attributes]
        return np.where(bounded, logit(x.clip(SURE, 1 - SURE)), x)

    def intervals(self, confidence: float) -> tuple[np.ndarray, np.ndarray]:
        """The coordinates, lower and upper [G, A], between which values have that probability.

        Where an interval is so narrow that none do, it is its middle.
        """
        lower, upper = [], []
        for attribute in self.attributes:
            within = logit(confidence) if not attribute.limits else ndtri(confidence)
            within *= attribute.error or 1.0
            ends = (-np.inf, *(attribute.limits or (0.0,)), np.inf)
            low, high = np.array(ends[:-1]) + within, np.array(ends[1:]) - within
            narrow = low > high
            low[narrow] = high[narrow] = ((low + high) / 2)[narrow]
            lower.append(low)
            upper.append(high)
        low_ends, high_ends = (
            np.stack([each[v] for each, v in zip(side, self.values.T, strict=True)], axis=1)
            for side in (lower, upper)
        )
        return low_ends, high_ends


def make_groups(attributes: Sequence[AttributeConfig], measures: Sequence[str]) -> Groups:
    """The groups of a config's attributes.

    Args:
        measures: names of the search's measures.

    Raises:
        ConfigError: there are no attributes, or one names none of the measures.
    """
    if not attributes:
        raise ConfigError("There are no attributes to group faces by: add [[attributes]] tables.")
    for attribute in attributes:
        if attribute.measure not in measures:
            raise ConfigError(
                f"The attribute '{attribute.measure}' is none of the search's measures "
                f"{', '.join(measures)}{did_you_mean(attribute.measure, measures)}: correct it."
            )
    columns = tuple(list(measures).index(attribute.measure) for attribute in attributes)
    return Groups(tuple(attributes), columns)
