"""The config of the repair experiment."""

from typing import Annotated, Literal

from pydantic import Field

from qdgs_jax.schema import Fraction, checked
from qdgs_jax.training.config import TrainConfig

Arm = Literal["biased", "random", "random_equal_classes", "random_equal_bins", "qdgs", "unbiased"]
Images = Annotated[int, Field(ge=1, le=1_000_000)]
LABELS = {
    "random_equal_classes": "random, equal classes",
    "random_equal_bins": "random, equal bins",
}
"""Names of arms in tables and plots, if different."""


@checked
class RepairConfig(TrainConfig):
    """Arms and biases of the experiment on drawings, and how its classifiers are trained."""

    search: str = ""
    """Config of the search for the synthetic images; a path relative to this file's folder."""
    biases: Annotated[tuple[Fraction, ...], Field(min_length=1)] = (0.98, 0.95, 0.9, 0.85, 0.8)
    """Fractions of training triangles that are red and of squares that are blue."""
    arms: tuple[Arm, ...] = (
        "biased", "random", "random_equal_classes", "random_equal_bins", "qdgs", "unbiased",
    )  # fmt: skip
    """Images of the repair. biased: the biased drawings again. random: random samples of the
    generator, labelled by the nearest of the search's bins, unweighted or weighted to equal classes
    or bins. qdgs: the search's elites. unbiased: drawings without bias. Every repair sees equally
    many images."""
    images: Images = 1000
    """Biased drawings of each training."""
    repair_images: Images = 300
    """Images of each repair."""
    test_images: Images = 5000
    """Unbiased drawings to test on."""
