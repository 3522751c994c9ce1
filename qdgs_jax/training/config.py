"""How a classifier is built and trained; the defaults are the paper's (QDGS, shapes domain)."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from qdgs_jax.schema import Count, Positive, checked, read_toml, validate

Width = Annotated[int, Field(ge=1, le=65_536)]


@checked
class ClassifierConfig:
    """A small convolutional network; the defaults are the paper's."""

    channels: Annotated[tuple[Width, ...], Field(min_length=1, max_length=12)] = (16, 32, 64)
    """Channels of 3 x 3 convolutions, each followed by 2 x 2 max pooling."""
    hidden: Width = 128
    """Width of the linear layer before the last."""


@checked
class TrainingConfig:
    """How a classifier is trained, and then repaired; the defaults are the paper's."""

    optimizer: Literal["adam", "sgd"] = "adam"
    """`sgd` has a momentum of 0.9."""
    learning_rate: Positive = 1e-3
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 128
    epochs: Count = 20
    """Epochs on the biased images."""
    repair_epochs: Count = 30
    """Epochs on only the images of the repair, with a new optimiser."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 180.0
    """Augmentation: each image is rotated by at most this many degrees either way; 0 for none."""


@checked
class TrainConfig:
    """Training on one folder of images, and repair with another."""

    seeds: Annotated[int, Field(ge=1, le=10_000)] = 5
    """Trainings, each with its own initial weights and order of images."""
    classifier: ClassifierConfig = ClassifierConfig()
    training: TrainingConfig = TrainingConfig()


def load_train_config(path: Path) -> TrainConfig:
    """Reads a TOML file.

    Raises:
        ConfigError: the file is missing, not TOML, or holds unknown keys or bad values.
    """
    return validate(TrainConfig, read_toml(path), source=str(path))
