"""The config of the experiment on annotated faces."""

import itertools
from typing import Annotated

from pydantic import Field

from qdgs_jax.config import Name
from qdgs_jax.schema import Count, checked

Share = Annotated[float, Field(gt=0, lt=1)]


@checked
class AttributeConfig:
    """What faces are grouped by: a measure of the search, divided into named values."""

    measure: Name
    """Name of one of the search's measures."""
    values: Annotated[tuple[Name, ...], Field(min_length=2, max_length=20)]
    """Names of the parts, lowest first."""
    limits: tuple[float, ...] = ()
    """Where a part ends and the next begins. Without limits there are two values, and the measure
    is the probability of the second."""
    error: Annotated[float, Field(ge=0, le=1e15)] = 0.0
    """Standard deviation of the measure's readings of one face; with limits it is needed, since
    readings near a limit are uncertain by as much."""

    def __post_init__(self) -> None:
        wanted = len(self.limits) + 1 if self.limits else 2
        if len(self.values) != wanted:
            raise ValueError(
                f"attribute '{self.measure}' has {len(self.values)} `values` for "
                f"{len(self.limits)} `limits`: give {wanted}"
            )
        if len(set(self.values)) < len(self.values):
            raise ValueError(f"attribute '{self.measure}' needs distinct `values`")
        if not all(low < high for low, high in itertools.pairwise(self.limits)):
            raise ValueError(f"attribute '{self.measure}': `limits` must ascend")
        if bool(self.limits) != (self.error > 0):
            raise ValueError(
                f"attribute '{self.measure}' needs both `limits` and a positive `error`, or neither"
            )


@checked
class AnnotatedFacesConfig:
    """Groups of faces, and what each arm may spend to find them."""

    search: str = ""
    """Config of the search, whose generator and measures all arms use; a path relative to this
    file's folder."""
    attributes: Annotated[tuple[AttributeConfig, ...], Field(max_length=5)] = ()
    """Each combination of their values is a group."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of random latents and of the search, in place of the search's own."""
    calls: Count = 20_000
    """Passes of an arm through the generator, forward or backward, a latent each."""
    labelled: Share = 0.5
    """Share of the calls for the random faces that guidance is fitted to."""
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.7
    """Probability of a group from which on a face is an example of it."""
    images_a_group: Annotated[int, Field(ge=1, le=100_000)] = 50
    """Examples of a group that are drawn to be judged and shown, if an arm found as many."""
    same_person: Annotated[float, Field(gt=-1, lt=1)] = 0.572
    """Cosine of two faces' embeddings above which they are one person. 1 % of the pairs of two
    people are above the default (ORL; benchmarks/faceres_on_orl.py)."""

    def __post_init__(self) -> None:
        measures = [attribute.measure for attribute in self.attributes]
        if len(set(measures)) < len(measures):
            raise ValueError("two attributes name the same measure")
