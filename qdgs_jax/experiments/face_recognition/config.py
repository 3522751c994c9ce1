"""The config of the experiment on face recognition."""

from typing import Annotated, Literal

from pydantic import Field

from qdgs_jax.schema import checked
from qdgs_jax.training.config import FaceRecognitionConfig, Width

Arm = Literal["qdgs", "random", "none"]
Few = Annotated[int, Field(ge=2, le=100_000)]


@checked
class NetworkConfig:
    """An IResNet."""

    depth: Literal[18, 34, 50, 101] = 18
    """As in the names IR-18 to IR-101."""
    channels: Annotated[tuple[Width, ...], Field(min_length=4, max_length=4)] = (64, 128, 256, 512)
    """Of each stage, which halves the side."""
    image_size: Annotated[int, Field(ge=16, le=1024)] = 64
    """Pixels a side of the faces that it reads."""
    embedding_size: Width = 512


@checked
class FacePretrainingConfig:
    """Arms, and how their networks are trained and tested."""

    search: str = ""
    """Config of the search, whose generator all arms use; a path relative to this file's folder."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """The first seed. Each has a search, random latents, weights and a test of its own."""
    seeds: Annotated[int, Field(ge=1, le=10_000)] = 5
    arms: Annotated[tuple[Arm, ...], Field(min_length=1, max_length=3)] = ("qdgs", "random", "none")
    """What a network is pre-trained on. qdgs: identities of elites. random: as many of random
    latents. none: nothing, its weights are random."""
    identities: Few = 100
    """Of each arm; fewer if there are not as many."""
    images: Few = 9
    """Of each identity."""
    network: NetworkConfig = NetworkConfig()
    training: FaceRecognitionConfig = FaceRecognitionConfig()
    """Of the pre-training."""
    test_identities: Few = 12
    """Identities of each class of skin tone to test on, made of other random latents."""
    test_pairs: Annotated[int, Field(ge=20, le=10**6)] = 6000
    """Pairs of images of a test, at most: half of them of one person, as many of each class."""
    real: str = ""
    """Folder with a folder of images for each real person, or empty: then nobody real is tested on.
    A path relative to this file's folder. Ask people first."""
    tuned: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the real people to fine-tune on; the others are tested on."""
    tuning: FaceRecognitionConfig = FaceRecognitionConfig()
    """Of the fine-tuning."""

    def __post_init__(self) -> None:
        if len(set(self.arms)) < len(self.arms):
            raise ValueError("`arms` must differ")
        if self.identities * self.images < self.training.batch_size:
            raise ValueError(
                f"{self.identities} `identities` of {self.images} `images` do not fill a batch of "
                f"{self.training.batch_size}: raise one, or lower training.batch_size"
            )
