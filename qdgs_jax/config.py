"""What a run is: frozen dataclasses, read from TOML, changed on the command line."""

import dataclasses
import functools
import math
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

import pydantic
import tomli_w
from pydantic import ConfigDict, Field

from qdgs_jax import files
from qdgs_jax.errors import ConfigError, did_you_mean

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Interval = tuple[float, float]
LatentSpace = Literal["auto", "z", "w", "w+"]

NOTICES = {
    "faces": "Images of faces: they depict nobody, yet may resemble people of the generator's "
    "training data. Prompts about people measure the encoder's stereotypes, not traits of anybody, "
    "and balanced means balanced under this encoder alone. The makers of FFHQ and of CLIP exclude "
    "the recognition of faces from their use: leave it out for these images, too."
}
"""What to know before a search, by its name in `notice`."""

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def _checked(cls: type[T]) -> type[T]:
    """A frozen dataclass whose values are validated, with ConfigError as the one exception."""
    made: Any = pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))(cls)
    construct = made.__init__

    @functools.wraps(construct)
    def checked_construct(self: Any, *args: Any, **values: Any) -> None:
        try:
            construct(self, *args, **values)
        except pydantic.ValidationError as error:
            raise ConfigError(f"{cls.__name__}: {_explain(error)}.") from None

    made.__init__ = checked_construct
    return made


@_checked
class GeneratorConfig:
    """The frozen generator that is sampled."""

    model: str = "shapes-vae"
    """Name of a built-in generator, or path of a checkpoint (file or folder)."""
    latent_space: LatentSpace = "auto"
    """What is searched: a network's own inputs `z`, a StyleGAN2's styles `w`, or its styles layer
    by layer, `w+`; `auto` is the last where there is a choice."""
    truncation_psi: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Truncation of a StyleGAN2's random styles: 1 for none; less is more alike, and cleaner."""
    precision: Literal["highest", "default", "bf16"] = "highest"
    """Of a StyleGAN2's matrix products: float32, what the device prefers, or bfloat16."""


@_checked
class EncoderConfig:
    """The frozen image-text encoder that scores."""

    model: str = "shapes-clip"
    """Name of a built-in encoder, path of a checkpoint, or hub id."""
    precision: Literal["highest", "default", "bf16"] = "highest"
    """Precision of its matrix products: float32, what the device prefers, or bfloat16."""
    random_crops: bool = True
    """Whether it sees a random square of an image that is larger than its input, or all of it."""


@_checked
class ObjectiveConfig:
    """Quality, in words or without. Several texts in one prompt are separated by `|`."""

    positive: str = ""
    """What a good image shows; no prompts will do where `typicality` or `regularisation` is set."""
    negative: str = ""
    """What a bad image shows."""
    typicality: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Weight of how much less typical of the generator an image is than a random one; 0: any."""
    regularisation: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Weight of the squared distance of latents to a ball around the origin; 0: no bounds."""
    radius: Positive = 0.5
    """Of that ball, in mean norms of random latents."""
    uniqueness: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Weight of the distance to good images seen lately; 0: none are remembered."""


@_checked
class MeasureConfig:
    """One axis of the archive: a pair of prompts, or a plain function of the image."""

    name: str
    low: str = ""
    """Prompt of the low end: images closer to it have a negative measure."""
    high: str = ""
    """Prompt of the high end."""
    function: str = ""
    """Instead of prompts: a built-in image measure, or `package.module:function`."""
    range: Interval | Literal["auto"] = "auto"
    """Ends of the grid; `auto` takes them from random samples and records them."""
    cells: Count = 50
    """Cells along this axis."""

    def __post_init__(self) -> None:
        if bool(self.function) == bool(self.low or self.high):
            raise ValueError(
                f"measure '{self.name}' needs either both prompts `low` and `high` or a `function`"
            )
        if not self.function:
            _require_text(f"measure '{self.name}'", "low", self.low)
            _require_text(f"measure '{self.name}'", "high", self.high)
        if self.range != "auto" and not self.range[0] < self.range[1]:
            raise ValueError(f"measure '{self.name}': `range` must be [low, high] with low < high")

    @property
    def ends(self) -> Interval:
        """The range in numbers; only a resolved config has them."""
        if self.range == "auto":
            raise ValueError(f"the range of measure '{self.name}' is not resolved yet")
        return self.range


@_checked
class SearchConfig:
    """The quality-diversity search; defaults are the paper's, but for many emitters at once."""

    algorithm: Literal[
        "map_elites",
        "map_elites_line",
        "cma_me",
        "cma_mae",
        "omg_mega",
        "cma_mega",
        "cma_maega",
    ] = "cma_maega"
    """`...mega` follow gradients; `..._mae` and `..._maega` anneal the archive's thresholds."""
    generations: Count = 400
    """Generations; each evaluates `emitters` x `batch_size` latents, and `emitters` more for
    their gradients."""
    emitters: Count = 8
    batch_size: Annotated[int, Field(ge=2)] = 15
    """Latents of each emitter in a generation."""
    sigma0: Positive = 0.5
    """Initial standard deviation: of the gradient coefficients, or else of the latents."""
    step_size: Positive = 0.5
    """Learning rate of the ascent on latents (`cma_mega`, `cma_maega`, strategy `openai_es`)."""
    optimizer: Literal["adam", "ascent"] = "adam"
    """How the latents ascend: Adam, or the plain step."""
    line_sigma: Positive = 0.2
    """Standard deviation of the step towards another elite (`map_elites_line`)."""
    strategy: Literal["cma_es", "cholesky_cma_es", "sep_cma_es", "lm_ma_es", "openai_es"] = "cma_es"
    """Of `cma_me` and `cma_mae`: full CMA-ES, the same by Cholesky factors (as good, and faster
    from some thirty dimensions on), or one for more than a few hundred dimensions."""
    ranker: Literal["auto", "imp", "2imp", "obj", "rd"] = "auto"
    """What a batch is ranked by; `auto` is the algorithm's own, likewise the next two."""
    selection: Literal["auto", "filter", "mu"] = "auto"
    """Who teaches: the accepted, or the better half."""
    restart: Literal["auto", "basic", "no_improvement"] | Count = "auto"
    """When an emitter begins anew: when spent, when none was accepted, or every so often."""
    learning_rate: Fraction = 0.02
    """Archive learning rate alpha (`cma_mae`, `cma_maega`): 0 optimises, 1 explores."""
    threshold_min: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """Objective that an elite must be above (`cma_mae`, `cma_maega`)."""
    initial_samples: Count = 512
    """Random latents from which the emitters' starting points are the best."""
    chunk_size: Count = 64
    """Latents rendered and embedded at once; bounds memory."""
    rematerialise: bool = False
    """Whether images are rendered again for their gradients, so that activations need not be kept
    meanwhile; for accelerators that are short of memory, since on CPU it saves none."""


@_checked
class RunConfig:
    """How often a run reports and saves itself."""

    log_every: Count = 10
    """Generations between two lines of metrics; divides `search.generations`."""
    checkpoint_every: Count = 100
    """Generations between two checkpoints; a multiple of `log_every`."""


@_checked
class BinConfig:
    """A named region of the measures, exported as (part of) one class."""

    name: str
    label: str
    """Class folder; several bins may share it."""
    where: dict[str, Interval]
    """Measure name -> [low, high): the region."""

    def __post_init__(self) -> None:
        for name, (low, high) in self.where.items():
            if not low < high:
                raise ValueError(f"bin '{self.name}': `{name}` must be [low, high] with low < high")


@_checked
class ExportConfig:
    """What `qdgs export` writes."""

    count: Count = 1000
    """Images in the dataset."""
    min_objective: float = -math.inf
    """Elites below it are left out."""
    bins: tuple[BinConfig, ...] = ()
    """Regions to fill equally; without any, samples spread evenly over all filled cells."""


@_checked
class Config:
    """Everything that decides a run: same config, same device, same archive."""

    objective: ObjectiveConfig
    measures: tuple[MeasureConfig, ...]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    notice: Literal["", "faces"] = ""
    """Of NOTICES, what has to be acknowledged before the search, and stands in its datasets."""
    generator: GeneratorConfig = GeneratorConfig()
    encoder: EncoderConfig = EncoderConfig()
    search: SearchConfig = SearchConfig()
    run: RunConfig = RunConfig()
    export: ExportConfig = ExportConfig()

    def __post_init__(self) -> None:
        objective = self.objective
        wordless = not (objective.positive or objective.negative)
        if not (wordless and (objective.typicality or objective.regularisation)):
            _require_text("objective", "positive", objective.positive)
            _require_text("objective", "negative", objective.negative)
        if wordless and objective.uniqueness:
            raise ValueError(
                "objective.uniqueness compares embeddings: give prompts too, or leave it out"
            )
        names = [measure.name for measure in self.measures]
        if not names:
            raise ValueError("no measures: add at least one [[measures]] table")
        if len(set(names)) < len(names):
            raise ValueError(f"measures need distinct names, got {', '.join(names)}")
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
        """Whether there is anything that an encoder has to read."""
        return bool(self.objective.positive) or not all(m.function for m in self.measures)


@_checked
class ClassifierConfig:
    """A small convolutional network; the defaults are the paper's."""

    channels: Annotated[tuple[Count, ...], Field(min_length=1)] = (16, 32, 64)
    """Of 3 x 3 convolutions, each followed by 2 x 2 max pooling."""
    hidden: Count = 128
    """Width of the linear layer before the last."""


@_checked
class TrainingConfig:
    """How a classifier is trained, and then repaired; the defaults are the paper's."""

    optimizer: Literal["adam", "sgd"] = "adam"
    """`sgd` has a momentum of 0.9."""
    learning_rate: Positive = 1e-3
    batch_size: Count = 128
    epochs: Count = 20
    """On the biased images."""
    repair_epochs: Count = 30
    """On the images of the repair alone, by a new optimiser."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 180.0
    """Augmentation: each image is turned by up to so many degrees either way; 0 for none."""


Arm = Literal["biased", "random", "random, equal classes", "random, equal bins", "qdgs", "unbiased"]


@_checked
class RepairConfig:
    """Repair of biased classifiers: `classifier` and `training` serve any images, the rest says
    what the experiment on drawings compares."""

    search: str = ""
    """Config of the search that makes the synthetic images; a path from this file's folder."""
    seeds: Count = 5
    """Trainings, each with drawings, a search and random samples of its own."""
    biases: Annotated[tuple[Fraction, ...], Field(min_length=1)] = (0.98, 0.95, 0.9, 0.85, 0.8)
    """Fractions of training triangles that are red and of squares that are blue."""
    arms: tuple[Arm, ...] = (
        "biased", "random", "random, equal classes", "random, equal bins", "qdgs", "unbiased",
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
    classifier: ClassifierConfig = ClassifierConfig()
    training: TrainingConfig = TrainingConfig()


def load_config(path: Path) -> Config:
    """Reads a TOML file.

    Raises:
        ConfigError: the file is missing, not TOML, or holds unknown keys or bad values.
    """
    return parse_config(_read_toml(path), source=str(path))


def load_repair_config(path: Path) -> RepairConfig:
    """Reads a TOML file; `search` becomes a path from the working directory.

    Raises:
        ConfigError: as `load_config` does.
    """
    values = _read_toml(path)
    if isinstance(values.get("search"), str):
        values["search"] = str(path.parent / values["search"])
    return _validate(RepairConfig, values, source=str(path))


def parse_config(values: dict[str, Any], *, source: str) -> Config:
    """Makes a Config of plain values, with one sentence about the first thing wrong.

    Raises:
        ConfigError: unknown key, missing key or value out of range.
    """
    return _validate(Config, values, source=source)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read the config {path}: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The config {path} is not valid TOML: {error}.") from None


def _validate(kind: type[T], values: dict[str, Any], *, source: str) -> T:
    try:
        return pydantic.TypeAdapter(kind).validate_python(values)
    except pydantic.ValidationError as error:
        raise ConfigError(f"Config {source}: {_explain(error)}.") from None


def save_config(path: Path, config: Config) -> None:
    """Writes a config as TOML; `load_config` gives it back."""
    files.write(path, tomli_w.dumps(dataclasses.asdict(config)))


def _require_text(where: str, key: str, prompt: str) -> None:
    if not all(text.strip() for text in prompt.split("|")):
        raise ValueError(f"the {key} prompt of {where} is empty: describe it in words")


def _explain(error: pydantic.ValidationError) -> str:
    """The first problem of a validation in words; an unknown key explains a missing one."""
    unknown = "unexpected_keyword_argument"
    problem = min(error.errors(include_url=False), key=lambda found: found["type"] != unknown)
    where = ".".join(str(part) for part in problem["loc"] if not str(part).startswith("tuple["))
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    if problem["type"] == unknown:
        return f"unknown key '{where}'{did_you_mean(where.split('.')[-1], _known_keys())}"
    if problem["type"].startswith("missing"):
        return f"the key '{where}' is missing"
    return f"'{where}' {problem['msg'][0].lower()}{problem['msg'][1:]}, got {problem['input']!r}"


def _known_keys() -> list[str]:
    classes = (
        Config, GeneratorConfig, EncoderConfig, ObjectiveConfig, MeasureConfig, SearchConfig,
        RunConfig, BinConfig, ExportConfig, ClassifierConfig, TrainingConfig, RepairConfig,
    )  # fmt: skip
    return [field.name for cls in classes for field in dataclasses.fields(cls)]
