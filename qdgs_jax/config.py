"""The options of a run: frozen dataclasses, read from TOML, changed on the command line."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field

from qdgs_jax import files
from qdgs_jax.errors import ConfigError, did_you_mean
from qdgs_jax.schema import Count, Positive, Weight, checked, read_toml, validate
from qdgs_jax.search_config import SearchConfig

Interval = tuple[float, float]
Name = Annotated[str, Field(min_length=1, max_length=100)]
LatentSpace = Literal["auto", "z", "w", "w+"]

NOTICES = {
    "faces": "Images of faces: they depict nobody, but may resemble people in the generator's "
    "training data. Prompts about people measure the encoder's stereotypes, not anybody's traits, "
    "and balanced means balanced under this encoder only. The makers of FFHQ and of CLIP exclude "
    "face recognition from their use, so do not use images made with theirs for it. Ages and "
    "presentations are a network's readings, with its stereotypes and mistakes; presentation is "
    "not identity.",
    "readings": "Ages, presentations, expressions and skin tones are readings of small networks "
    "and of a formula, with their stereotypes and mistakes. They say how a picture looks to a "
    "network, and are not facts about people: not anybody's age, gender, feelings or descent. "
    "Decide nothing about anybody by them.",
}
"""Texts that a user acknowledges first, by name; a config's `notice` can name the first."""


def require_acknowledged(notice: str, acknowledged: bool) -> None:
    """Refuses what has a notice, by its name or "", until the notice is acknowledged.

    Raises:
        ConfigError: it has not been.
    """
    if notice and not acknowledged:
        raise ConfigError(f"{NOTICES[notice]} Continue with --acknowledge-notice.")


MAX_CELLS = 10**8
"""Of a grid."""
MAX_IMAGES = 10**7
"""Of a dataset; the plan of so many takes about 1 GiB."""
MAX_BINS = 500


@checked
class GeneratorConfig:
    """The frozen generator that is sampled."""

    model: str = "shapes-vae"
    """Name of a built-in generator, path of a checkpoint (file or folder), or a function
    `package.module:function` that returns a `qdgs_jax.Generator` and its weights."""
    latent_space: LatentSpace = "auto"
    """Searched space: the network's inputs `z`, a StyleGAN2's style `w`, or one style for each
    layer, `w+`; `auto`: `w+` for a StyleGAN2, `z` for others."""
    truncation_psi: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Truncation of a StyleGAN2's random styles: 1 for none; lower is cleaner and less varied."""
    precision: Literal["highest", "default", "bf16"] = "highest"
    """Precision of a StyleGAN2's matrix products: float32, the device's default, or bfloat16."""
    classes: Annotated[tuple[Name, ...], Field(max_length=10_000)] = ()
    """Names of the classes of a conditional generator: of a DCGAN whose last inputs are a one-hot
    class, or of a StyleGAN2 in place of numbers."""

    def __post_init__(self) -> None:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"`classes` needs distinct names, got {', '.join(self.classes)}")


@checked
class EncoderConfig:
    """The frozen image-text encoder that scores."""

    model: str = "shapes-clip"
    """Name of a built-in encoder, path of a checkpoint, hub id, or a function
    `package.module:function` that returns a `qdgs_jax.Encoder` and its weights."""
    precision: Literal["highest", "default", "bf16"] = "highest"
    """Precision of its matrix products: float32, the device's default, or bfloat16."""
    random_crops: bool = True
    """Whether it reads a random square of an image larger than its input, or the whole image."""


@checked
class ObjectiveConfig:
    """Quality, with or without prompts. Several texts in one prompt are separated by `|`."""

    positive: str = ""
    """Prompt of good images; without prompts, all images in distribution are as good."""
    negative: str = ""
    """Prompt of bad images."""
    typicality: Weight = 1.0
    """Weight of the distance to random images, which is up to 1 for typical ones (only with
    search.constraint `typical`); 0: none."""
    regularisation: Weight = 0.0
    """Weight of the squared distance of latents to a ball around the origin; 0: none."""
    radius: Positive = 0.5
    """Radius of that ball, in mean norms of random latents."""
    uniqueness: Weight = 0.0
    """Weight of the distance to recent good images; 0: none."""


def range_problem(low: float, high: float, cells: int) -> str:
    """Why float32 numbers cannot tell the cells of a range apart, with a remedy; empty if they can.

    A cell has to be at least four of the steps wide in which numbers near the ends are stored.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return f"must have finite ends, got [{low:g}, {high:g}]: give numbers, or 'auto'"
    if not low < high:
        return f"must be [low, high] with low < high, got [{low!r}, {high!r}]"
    largest = max(abs(low), abs(high))
    step = math.ldexp(1, math.frexp(largest)[1] - 24)
    if largest > 1e15 or (high - low) / cells < max(4 * step, 1e-18):
        return (
            f"[{low!r}, {high!r}] has {cells} cells, but single precision tells no numbers apart "
            f"there that are closer than {step:.1g}: widen it, scale the measure, or lower `cells`"
        )
    return ""


@checked
class MeasureConfig:
    """One axis of the archive: a pair of prompts, or a plain function of the image."""

    name: Name
    low: str = ""
    """Prompt of the low end: images closer to it have a negative measure."""
    high: str = ""
    """Prompt of the high end."""
    function: str = ""
    """Instead of prompts: a built-in image measure (`qdgs measures` lists them), or
    `package.module:function` of one's own."""
    classifier: str = ""
    """Instead of prompts: `faceres:age`, `faceres:presentation`, or `package.module:function` that
    returns a `qdgs_jax.Classifier` and its weights."""
    output: Literal["probability", "logit", "expected", "class"] = "class"
    """Of a classifier: the probability or logit of the class `target`, the expected value of its
    classes, or the class itself, with a cell for each."""
    target: str = ""
    """Name of the class of which `output` is the probability or logit."""
    range: Interval | Literal["auto"] = "auto"
    """Ends of the grid; `auto` takes them from random samples and records them."""
    cells: Count = 50
    """Cells along this axis of a grid."""

    def __post_init__(self) -> None:
        if bool(self.low or self.high) + bool(self.function) + bool(self.classifier) != 1:
            raise ValueError(
                f"measure '{self.name}' needs either both prompts `low` and `high`, a `function`, "
                "or a `classifier`"
            )
        if not self.classifier and (self.output, self.target) != ("class", ""):
            raise ValueError(
                f"measure '{self.name}': `output` and `target` have no effect without `classifier`"
            )
        if bool(self.target) != (self.output in ("probability", "logit")):
            raise ValueError(
                f"measure '{self.name}': `output` 'probability' or 'logit', and only these, need "
                "the name of a class in `target`"
            )
        if self.has_prompts:
            _require_text(f"measure '{self.name}'", "low", self.low)
            _require_text(f"measure '{self.name}'", "high", self.high)
        if self.range != "auto" and (problem := range_problem(*self.range, self.cells)):
            raise ValueError(f"measure '{self.name}': `range` {problem}")

    @property
    def has_prompts(self) -> bool:
        """Whether it is a pair of prompts, which need an encoder."""
        return not (self.function or self.classifier)

    @property
    def ends(self) -> Interval:
        """The range in numbers; only a resolved config has them."""
        if self.range == "auto":
            raise ValueError(f"the range of measure '{self.name}' is not resolved yet")
        return self.range


@checked
class ArchiveConfig:
    """How the measures are divided into cells."""

    kind: Literal["grid", "cvt"] = "grid"
    """`grid`: by the `cells` of each measure; `cvt`: regions nearest to points that divide the
    ranges evenly, for three and more measures."""
    cells: Annotated[int, Field(ge=1, le=10_000)] = 1000
    """Cells of a `cvt` archive."""
    latents: Literal["float32", "bfloat16"] = "float32"
    """Type in which latents are stored; `bfloat16` halves the memory of the archives. Latents are
    rounded to it before they are scored."""


@checked
class RunConfig:
    """How often a run writes metrics and checkpoints."""

    log_every: Count = 10
    """Generations between two lines of metrics; divides `search.generations`."""
    checkpoint_every: Count = 100
    """Generations between two checkpoints; a multiple of `log_every`."""


@checked
class BinConfig:
    """A named region of the measures, exported as (part of) one class."""

    name: Name
    label: Name
    """Class folder; several bins may share it."""
    where: dict[str, Interval]
    """Measure name -> [low, high): the region."""

    def __post_init__(self) -> None:
        for name, (low, high) in self.where.items():
            if not low < high:
                raise ValueError(f"bin '{self.name}': `{name}` must be [low, high] with low < high")


@checked
class ExportConfig:
    """What `qdgs export` writes."""

    count: Annotated[int, Field(ge=1, le=MAX_IMAGES)] = 1000
    """Images in the dataset."""
    min_objective: Annotated[float, Field(ge=-math.inf)] = -math.inf
    """Elites with a lower objective are left out."""
    bins: Annotated[tuple[BinConfig, ...], Field(max_length=MAX_BINS)] = ()
    """Regions to fill equally; without any, images are drawn evenly from all filled cells."""


@checked
class BinsConfig:
    """A file of bins, in place of those of a run's config."""

    bins: Annotated[tuple[BinConfig, ...], Field(max_length=MAX_BINS)]


@checked
class Config:
    """All options of a run: the same config on the same device gives the same archive."""

    objective: ObjectiveConfig
    measures: Annotated[tuple[MeasureConfig, ...], Field(max_length=32)]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    notice: Literal["", "faces"] = ""
    """Name of a notice to acknowledge before the search; the notice is copied to its datasets."""
    generator: GeneratorConfig = GeneratorConfig()
    encoder: EncoderConfig = EncoderConfig()
    archive: ArchiveConfig = ArchiveConfig()
    search: SearchConfig = SearchConfig()
    run: RunConfig = RunConfig()
    export: ExportConfig = ExportConfig()

    def __post_init__(self) -> None:
        objective = self.objective
        wordless = not (objective.positive or objective.negative)
        typical = self.search.constraint == "typical"
        if not typical and objective.typicality != ObjectiveConfig.typicality:
            raise ValueError(
                "objective.typicality has no effect unless search.constraint is 'typical': leave "
                "it out"
            )
        if not (wordless and (typical or objective.regularisation)):
            _require_text("objective", "positive", objective.positive)
            _require_text("objective", "negative", objective.negative)
        if wordless and objective.uniqueness:
            raise ValueError(
                "objective.uniqueness compares embeddings: give prompts too, or leave it out"
            )
        if not objective.regularisation and objective.radius != ObjectiveConfig.radius:
            raise ValueError("objective.radius has no effect without regularisation: set that too")
        if not self.has_prompts and self.encoder != EncoderConfig():
            raise ValueError("there are no prompts, so no encoder is used: leave [encoder] out")
        names = [measure.name for measure in self.measures]
        if not names:
            raise ValueError("no measures: add at least one [[measures]] table")
        if len(set(names)) < len(names):
            raise ValueError(f"measures need distinct names, got {', '.join(names)}")
        if self.archive.kind == "grid" and self.archive.cells != ArchiveConfig.cells:
            raise ValueError(
                "archive.cells has no effect on a grid: set `cells` of each measure instead"
            )
        cells = math.prod(measure.cells for measure in self.measures)
        if self.archive.kind == "grid" and cells > MAX_CELLS:
            raise ValueError(
                f"the measures' grid has {cells:,} cells, more than {MAX_CELLS:,}: lower `cells`, "
                'or set archive.kind to "cvt"'
            )
        for measure in self.measures:
            if self.archive.kind == "cvt" and measure.cells != MeasureConfig.cells:
                raise ValueError(
                    f"measure '{measure.name}': `cells` has no effect in a cvt archive: set "
                    "archive.cells instead"
                )
        bins = [bin.name for bin in self.export.bins]
        if len(set(bins)) < len(bins):
            raise ValueError(f"bins need distinct names, got {', '.join(bins)}")
        for bin in self.export.bins:
            for name in bin.where:
                if name not in names:
                    raise ValueError(
                        f"bin '{bin.name}' names the measure '{name}', which is not one of "
                        f"{', '.join(names)}{did_you_mean(name, names)}"
                    )
        if self.search.generations % self.run.log_every:
            raise ValueError(
                f"search.generations ({self.search.generations}) must be a multiple of "
                f"run.log_every ({self.run.log_every})"
            )
        if self.run.checkpoint_every % self.run.log_every:
            raise ValueError(
                f"run.checkpoint_every ({self.run.checkpoint_every}) must be a multiple of "
                f"run.log_every ({self.run.log_every})"
            )

    @property
    def has_prompts(self) -> bool:
        """Whether there are prompts, which need an encoder."""
        return bool(self.objective.positive) or any(m.has_prompts for m in self.measures)


def load_config(path: str | Path) -> Config:
    """Reads a TOML file.

    Raises:
        ConfigError: the file is missing, not TOML, or holds unknown keys or bad values.
    """
    return parse_config(read_toml(Path(path)), source=str(path))


def parse_config(values: dict[str, Any], *, source: str) -> Config:
    """Makes a Config of plain values; an error is one sentence about the first mistake.

    Raises:
        ConfigError: unknown key, missing key or value out of range.
    """
    return validate(Config, values, source=source)


def load_bins(path: str | Path) -> tuple[BinConfig, ...]:
    """Reads a TOML file of `[[bins]]` tables, each like one of a config's `[[export.bins]]`.

    Raises:
        ConfigError: the file is missing, not TOML, or holds unknown keys or bad values.
    """
    return validate(BinsConfig, read_toml(Path(path)), source=str(path)).bins


def save_config(path: Path, config: Config) -> None:
    """Writes a config as TOML, which `load_config` reads."""
    files.write(path, tomli_w.dumps(dataclasses.asdict(config)))


def _require_text(where: str, key: str, prompt: str) -> None:
    if not all(text.strip() for text in prompt.split("|")):
        raise ValueError(f"the {key} prompt of {where} is empty: describe it in words")
