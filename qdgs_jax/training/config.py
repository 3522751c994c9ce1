"""How networks are built and trained; the defaults are the paper's (QDGS).

Classifiers are of its shapes domain, face-recognition networks of its faces domain.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from qdgs_jax.schema import Count, Fraction, Positive, Weight, checked, read_toml, validate

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


@checked
class MarginConfig:
    """The logits of a face-recognition training; the defaults are AdaFace's."""

    kind: Literal["adaface", "arcface", "cosface"] = "adaface"
    """How the margin depends on an image's quality: AdaFace adapts it to the norm of the embedding;
    ArcFace's and CosFace's are those of AdaFace for the worst and for medium quality."""
    scale: Positive = 64.0
    """What cosines are multiplied by (s)."""
    margin: Annotated[float, Field(ge=0, lt=1.5)] = 0.4
    """The margin (m): radians where it is added to an angle."""
    concentration: Positive = 0.333
    """How steeply AdaFace's margin changes with the norm (h)."""
    momentum: Fraction = 0.01
    """Share of a batch in AdaFace's running mean and standard deviation of norms."""

    def __post_init__(self) -> None:
        for name in ("concentration", "momentum"):
            if self.kind != "adaface" and getattr(self, name) != getattr(MarginConfig, name):
                raise ValueError(f"`{name}` has no effect with kind '{self.kind}', only 'adaface'")


@checked
class AugmentationConfig:
    """Random changes of training images; the defaults are AdaFace's."""

    flip: Fraction = 0.5
    """Probability that an image is mirrored."""
    crop: Fraction = 0.2
    """Probability that only a rectangle is kept, and the rest becomes black."""
    low_resolution: Fraction = 0.2
    """Probability that an image is made smaller and larger again."""
    photometric: Fraction = 0.2
    """Probability that brightness, contrast and saturation change."""


@checked
class FaceRecognitionConfig:
    """How a face-recognition network is trained; the defaults are the paper's."""

    margin: MarginConfig = MarginConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    batch_size: Annotated[int, Field(ge=2, le=65_536)] = 64
    epochs: Count = 26
    learning_rate: Positive = 0.01
    milestones: tuple[Count, ...] = (12, 20, 24)
    """Epochs after each of which the learning rate is a tenth of what it was."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Weight = 1e-4
    """Of all weights but those of batch norms."""
    precision: Literal["auto", "highest", "default", "bf16"] = "auto"
    """Of the network, see `qdgs_jax.models.clip.embed_images`; `auto`: bf16 on accelerators,
    highest on CPUs. Weights, statistics and logits are float32 in any case."""

    def __post_init__(self) -> None:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"`milestones` must ascend, got {list(self.milestones)}")


@checked
class ADAConfig:
    """Adaptive discriminator augmentation of a GAN; the defaults are the paper's."""

    target: Annotated[float, Field(gt=-1, lt=1)] = 0.6
    """Mean sign of the discriminator's outputs for real images that augmentation aims at."""
    images: Count = 500_000
    """Real images within which the probability of augmentations can go from 0 to 1."""
    interval: Count = 4
    """Batches between updates of the probability."""
    pixel: bool = True
    """Flips, rotations by 90 degrees, translations by whole pixels."""
    geometric: bool = True
    """Scaling, rotation, stretching and fractional translation."""
    colour: bool = True
    """Brightness, contrast, luma flip, hue and saturation."""

    def __post_init__(self) -> None:
        if not (self.pixel or self.geometric or self.colour):
            raise ValueError("set at least one of `pixel`, `geometric` and `colour`")


@checked
class GANConfig:
    """How a GAN is trained; the defaults are StyleGAN2-ADA's for images of 32 x 32 pixels."""

    images: Count = 1_000_000
    """Real images that the discriminator sees, each as often as there are epochs."""
    batch_size: Annotated[int, Field(ge=2, le=65_536)] = 64
    generator_rate: Positive = 2.5e-3
    """Adam's learning rate."""
    discriminator_rate: Positive = 2.5e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Adam's of gradients (beta1)."""
    r1_gamma: Weight | Literal["auto"] = "auto"
    """Weight of the penalty on the discriminator's gradients at real images (R1); `auto`: 0.0002
    times the pixels of an image / the batch size."""
    r1_interval: Count = 16
    """Steps from one such penalty to the next."""
    path_weight: Weight = 0.0
    """Weight of the path length penalty on a StyleGAN2; 2 for images of 256 pixels and more."""
    path_interval: Count = 4
    style_mixing: Fraction = 0.0
    """Share of a StyleGAN2's images whose last layers take another latent's styles; 0.9 for images
    of 256 pixels and more."""
    average_half_life: Count = 500_000
    """Half-life of the moving average of the generator's weights, in images."""
    ada: ADAConfig | None = None
    """Adaptive augmentation of what the discriminator sees, for few images; a section of the config
    switches it on."""
    precision: Literal["auto", "highest", "default", "bf16"] = "auto"
    """Of both networks, as in `FaceRecognitionConfig`."""


def load_train_config(path: Path) -> TrainConfig:
    """Reads a TOML file.

    Raises:
        ConfigError: the file is missing, not TOML, or holds unknown keys or bad values.
    """
    return validate(TrainConfig, read_toml(path), source=str(path))
