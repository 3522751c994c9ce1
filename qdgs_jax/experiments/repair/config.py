"""The config of the repair experiment."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from qdgs_jax.schema import Count, Fraction, checked, read_toml, validate
from qdgs_jax.training.config import TrainConfig

Arm = Literal["biased", "random", "random_equal_classes", "random_equal_bins", "qdgs", "unbiased"]
LABELS = {
    "random_equal_classes": "random, equal classes",
    "random_equal_bins": "random, equal bins",
}
"""What tables and plots call an arm, where not by its name."""


@checked
class RepairConfig(TrainConfig):
    """What the experiment on drawings compares, and how its classifiers are trained."""

    search: str = ""
    """Config of the search that makes the synthetic images; a path from this file's folder."""
    biases: Annotated[tuple[Fraction, ...], Field(min_length=1)] = (0.98, 0.95, 0.9, 0.85, 0.8)
    """Fractions of training triangles that are red and of squares that are blue."""
    arms: tuple[Arm, ...] = (
        "biased", "random", "random_equal_classes", "random_equal_bins", "qdgs", "unbiased",
    )  # fmt: skip
    """What repairs: the same biased drawings again; random samples of the generator, each labelled
    by the nearest of the search's bins, as they come or weighted to equal classes or bins; the
    search's elites; drawings without bias. All see as many images."""
    images: Count = 1000
    """Of each training."""
    repair_images: Count = 300
    """Of each set that repairs."""
    test_images: Count = 5000
    """Unbiased drawings."""


def load_repair_config(path: Path) -> RepairConfig:
    """Reads a TOML file; `search` becomes a path from the working directory.

    Raises:
        ConfigError: as `load_config` does.
    """
    values = read_toml(path)
    if isinstance(values.get("search"), str):
        values["search"] = str(path.parent / values["search"])
    return validate(RepairConfig, values, source=str(path))
