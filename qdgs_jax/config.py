"""The options of a run: frozen dataclasses, read from TOML, changed on the command line."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field

from qdgs_jax import files
from qdgs_jax.errors import did_you_mean
from qdgs_jax.schema import Count, Fraction, Positive, checked, read_toml, validate

Interval = tuple[float, float]
LatentSpace = Literal["auto", "z", "w", "w+"]

NOTICES = {
    "faces": "Images of faces: they depict nobody, but may resemble people in the generator's "
    "training data. Prompts about people measure the encoder's stereotypes, not anybody's traits, "
    "and balanced means balanced under this encoder only. The makers of FFHQ and of CLIP exclude "
    "face recognition from their use: do not use these images for it either."
}
"""Texts that a user acknowledges before a search, by their names in `notice`."""


@checked
class GeneratorConfig:
    """The frozen generator that is sampled."""

    model: str = "shapes-vae"
    """Name of a built-in generator, or path of a checkpoint (file or folder)."""
    latent_space: LatentSpace = "auto"
    """Searched space: the network's inputs `z`, a StyleGAN2's style `w`, or one style for each
    layer, `w+`; `auto`: `w+` for a StyleGAN2, `z` for others."""
    truncation_psi: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Truncation of a StyleGAN2's random styles: 1 for none; lower is cleaner and less varied."""
    precision: Literal["highest", "default", "bf16"] = "highest"
    """Precision of a StyleGAN2's matrix products: float32, the device's default, or bfloat16."""


@checked
class EncoderConfig:
    """The frozen image-text encoder that scores."""

    model: str = "shapes-clip"
    """Name of a built-in encoder, path of a checkpoint, or hub id."""
    precision: Literal["highest", "default", "bf16"] = "highest"
    """Precision of its matrix products: float32, the device's default, or bfloat16."""
    random_crops: bool = True
    """Whether it reads a random square of an image larger than its input, or the whole image."""


@checked
class ObjectiveConfig:
    """Quality, with or without prompts. Several texts in one prompt are separated by `|`."""

    positive: str = ""
    """Prompt of good images; prompts are optional if `typicality` or `regularisation` is set."""
    negative: str = ""
    """Prompt of bad images."""
    typicality: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Weight of the excess Mahalanobis distance to the generator's mean image; 0: none."""
    regularisation: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Weight of the squared distance of latents to a ball around the origin; 0: none."""
    radius: Positive = 0.5
    """Radius of that ball, in mean norms of random latents."""
    uniqueness: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Weight of the distance to recent good images; 0: none."""


@checked
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
    """Cells along this axis of a grid."""

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


@checked
class ArchiveConfig:
    """How the measures are divided into cells."""

    kind: Literal["grid", "cvt"] = "grid"
    """`grid`: by the `cells` of each measure; `cvt`: regions nearest to points that divide the
    ranges evenly, for three and more measures."""
    cells: Count = 1000
    """Cells of a `cvt` archive."""


_ASCENT = ("cma_mega", "cma_maega")
_STRATEGIES = ("cma_me", "cma_mae")
SERVES = {
    "step_size": (*_ASCENT, *_STRATEGIES),
    "optimizer": _ASCENT,
    "line_sigma": ("map_elites_line",),
    "strategy": _STRATEGIES,
    "ranker": (*_ASCENT, *_STRATEGIES),
    "selection": (*_ASCENT, *_STRATEGIES),
    "restart": (*_ASCENT, *_STRATEGIES),
    "learning_rate": ("cma_mae", "cma_maega"),
    "threshold_min": ("cma_mae", "cma_maega"),
    "rematerialise": ("omg_mega", *_ASCENT),
}
"""Options of a search that only some algorithms use -> those algorithms."""


@checked
class SearchConfig:
    """The quality-diversity search; the defaults are the paper's, except that emitters are many."""

    algorithm: Literal[
        "map_elites",
        "map_elites_line",
        "cma_me",
        "cma_mae",
        "omg_mega",
        "cma_mega",
        "cma_maega",
    ] = "cma_maega"
    """`...mega` and `...maega` use gradients; `..._mae` and `..._maega` anneal the thresholds."""
    generations: Count = 400
    """Generations; each evaluates `emitters` x `batch_size` latents, and `emitters` more for
    their gradients."""
    emitters: Count = 8
    batch_size: Annotated[int, Field(ge=2)] = 15
    """Latents of each emitter in a generation."""
    sigma0: Positive = 0.5
    """Initial standard deviation of gradient coefficients, or of latents without gradients."""
    step_size: Positive = 0.5
    """Learning rate of the ascent on latents (`cma_mega`, `cma_maega`, strategy `openai_es`)."""
    optimizer: Literal["adam", "ascent"] = "adam"
    """Optimiser of that ascent (`cma_mega`, `cma_maega`): Adam, or plain gradient ascent."""
    line_sigma: Positive = 0.2
    """Standard deviation of the step towards another elite (`map_elites_line`)."""
    strategy: Literal["cma_es", "cholesky_cma_es", "sep_cma_es", "lm_ma_es", "openai_es"] = "cma_es"
    """Strategy of `cma_me` and `cma_mae`: full CMA-ES, CMA-ES by Cholesky factors (as good, and
    faster from about thirty dimensions), or one for more than a few hundred dimensions."""
    ranker: Literal["auto", "imp", "2imp", "obj", "rd"] = "auto"
    """Key by which a batch is ranked; here and in the next two, `auto` is the algorithm's own."""
    selection: Literal["auto", "filter", "mu"] = "auto"
    """Parents: `filter`: solutions that the archive accepted; `mu`: the best half."""
    restart: Literal["auto", "basic", "no_improvement"] | Count = "auto"
    """When an emitter restarts: if its strategy stops, if nothing was accepted, or every N
    generations."""
    learning_rate: Fraction = 0.02
    """Archive learning rate alpha (`cma_mae`, `cma_maega`): 0 optimises, 1 explores."""
    threshold_min: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """Objective that an elite must exceed (`cma_mae`, `cma_maega`)."""
    initial_samples: Count = 512
    """Random latents; emitters start from the best of them."""
    chunk_size: Count = 64
    """Latents rendered and embedded at once; bounds memory."""
    rematerialise: bool = False
    """Whether images are rendered again for their gradients, instead of keeping activations. It
    saves memory on accelerators, but none on a CPU."""

    def __post_init__(self) -> None:
        for name, algorithms in SERVES.items():
            if self.algorithm not in algorithms and self._changes(name):
                raise ValueError(
                    f"search.{name} has no effect with algorithm '{self.algorithm}', only with "
                    f"{', '.join(algorithms)}: leave it out"
                )
        if (
            self.algorithm in _STRATEGIES
            and self.strategy != "openai_es"
            and self._changes("step_size")
        ):
            raise ValueError(
                f"search.step_size has no effect with strategy '{self.strategy}', only with "
                "openai_es: leave it out"
            )

    def _changes(self, name: str) -> bool:
        """Whether an option has another value than its default."""
        return getattr(self, name) != type(self).__dataclass_fields__[name].default


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

    name: str
    label: str
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

    count: Count = 1000
    """Images in the dataset."""
    min_objective: float = -math.inf
    """Elites with a lower objective are left out."""
    bins: tuple[BinConfig, ...] = ()
    """Regions to fill equally; without any, images are drawn evenly from all filled cells."""


@checked
class Config:
    """All options of a run: the same config on the same device gives the same archive."""

    objective: ObjectiveConfig
    measures: tuple[MeasureConfig, ...]
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
        if not (wordless and (objective.typicality or objective.regularisation)):
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
        return bool(self.objective.positive) or not all(m.function for m in self.measures)


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


def save_config(path: Path, config: Config) -> None:
    """Writes a config as TOML, which `load_config` reads."""
    files.write(path, tomli_w.dumps(dataclasses.asdict(config)))


def _require_text(where: str, key: str, prompt: str) -> None:
    if not all(text.strip() for text in prompt.split("|")):
        raise ValueError(f"the {key} prompt of {where} is empty: describe it in words")
