"""Archive -> evenly drawn elites -> images, labels and provenance on disk.

Which latent each image shows is decided first, which is cheap; rendering then streams over it in
chunks, so that memory does not grow with the images.
"""

import dataclasses
import importlib.metadata
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdgs_jax import generators
from qdgs_jax.config import BinConfig, Config
from qdgs_jax.datasets import image_folder
from qdgs_jax.datasets.card import card
from qdgs_jax.datasets.image_folder import ImageTable
from qdgs_jax.errors import ConfigError, QDGSError
from qdgs_jax.generators import Generator
from qdgs_jax.models.checkpoint import sha256
from qdgs_jax.problem import load_problem
from qdgs_jax.runs import sampling as runs
from qdgs_jax.typing import Latents, Params

UNLABELLED = "unlabelled"
"""Class folder of random samples that lie in no bin."""
EVERYTHING = BinConfig(name="all", label="all", where={})
"""The one bin of a config without bins."""


@dataclass(frozen=True)
class BinBalance:
    """What was asked of a bin, and what it got."""

    name: str
    label: str
    asked: int | None
    """Images; None in a baseline, where nothing steers their number."""
    got: int
    available: int
    """Elites in the bin; in a baseline, random samples in the bin."""
    distinct: int
    """Different elites among the images: fewer than `got` where elites had to be repeated."""


@dataclass(frozen=True)
class Balance:
    """What balance.json holds."""

    asked: int
    """Images."""
    got: int
    """Fewer than `asked` where bins were empty: no other bin takes their share."""
    available: int
    """Elites of the run; in a baseline, random samples."""
    below_min_objective: int
    """How many of them were left out for their objective."""
    outside_bins: int
    """How many of the others lie in no bin."""
    bins: tuple[BinBalance, ...]
    empty_bins: tuple[str, ...]
    written: int = 0
    """Images that this call wrote; the others were there before. Not in balance.json."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        done = f"{self.got} images, {self.written} of them new"
        if not self.written:
            done = f"All {self.got} images were there already, nothing changed"
        if self.empty_bins:
            done += f"; {self.asked} were asked for, but these bins are empty: "
            done += ", ".join(self.empty_bins)
        return f"{done}."


def export(
    run: Path,
    out: Path,
    *,
    count: int | None = None,
    min_objective: float | None = None,
    seed: int = 0,
) -> Balance:
    """Renders elites of a run, evenly over its bins, as an ImageFolder with provenance.

    Each bin gets its equal share of `count`, whether or not others are empty. Within a bin no elite
    is drawn twice before each was drawn once. An elite in several bins belongs to the first.
    The same arguments give the same bytes; a call continues what an interrupted one began.

    Args:
        run: folder of a run.
        out: folder to write: new, or of an export with the same arguments.
        count: images; the run's `export.count` by default.
        min_objective: elites below it are left out; the run's `export.min_objective` by default.
        seed: of the draw.

    Raises:
        ConfigError: a bin cannot be a class folder, or `count` or `seed` is too small.
        QDGSError: no run in `run`, no elite in any bin, other files in `out`, or no space.
    """
    loaded = runs.load_run(run)
    config, elites = loaded.config, loaded.elites
    count = config.export.count if count is None else count
    floor = config.export.min_objective if min_objective is None else min_objective
    bins = _bins(config)
    _require_numbers(count, seed)
    bin = assign_bins(config, bins, elites.measures)
    below = elites.objective < floor
    bin[below] = -1
    if (bin < 0).all():
        raise QDGSError(
            f"None of the {len(bin)} elites of {run} can be exported, {below.sum()} for an "
            f"objective below {floor:g} and the others because no bin holds them: lower "
            "`min_objective`, widen the bins, or search longer."
        )

    generator, params = generators.load(**dataclasses.asdict(config.generator))
    if generator.sha256 != loaded.summary["generator"]["sha256"]:
        raise QDGSError(
            f"The generator {generator.name} has other weights than the run {run} searched: "
            "bring those back, or search again."
        )
    header = _header(
        config,
        loaded.summary,
        method="elites of a quality-diversity search, drawn evenly",
        count=count,
        seed=seed,
        min_objective=floor,
        archive_sha256=sha256(run / "archive.safetensors"),
    )
    if image_folder.claim(out, header):
        return _read_balance(out)

    rows = draw_evenly(bin, len(bins), count, seed)
    table = _table(
        config,
        header,
        bins,
        bin=bin[rows],
        latent_row=rows,
        cell=elites.index[rows],
        objective=elites.objective[rows],
        measures=elites.measures[rows],
    )
    size = config.search.chunk_size

    def latents(start: int) -> np.ndarray:
        return elites.latents[np.resize(rows[start : start + size], size)]

    balance = _balance(bins, count, shares(count, len(bins)), bin, table, below=int(below.sum()))
    return _write(out, header, table, _renderer(generator, params, latents), size, balance)


def baseline(
    config: Config, out: Path, *, count: int, seed: int = 0, nearest_bin: bool = False
) -> Balance:
    """Renders plain random latents as `export` renders elites: the same layout, nothing steered.

    Each image is scored as the search scores; its label is that of the first bin that holds it, or
    `unlabelled`. A call continues what an interrupted one began, but scores everything again.

    Args:
        config: of the search to compare with.
        out: folder to write: new, or of a baseline with the same arguments.
        count: images.
        seed: of latents and crops.
        nearest_bin: label an image that no bin holds by the nearest one.

    Raises:
        ConfigError: a bin cannot be a class folder, or the config asks for something impossible.
        QDGSError: other files in `out`, or no space.
    """
    bins = _bins(config)
    _require_numbers(count, seed)
    problem = load_problem(config)
    config, generator = problem.config, problem.generator
    header = _header(
        config,
        runs.provenance(generator, problem.encoder, config),
        method="plain random sampling" + (", labelled by the nearest bin" if nearest_bin else ""),
        count=count,
        seed=seed,
    )
    if image_folder.claim(out, header):
        return _read_balance(out)

    size = config.search.chunk_size
    latent_key, score_key = jax.random.split(jax.random.key(seed))

    def latents(start: int) -> Latents:
        return generator.sample(jax.random.fold_in(latent_key, start), size)

    score = jax.jit(problem.score)
    objective = np.empty(count, np.float32)
    measures = np.empty((count, len(config.measures)), np.float32)
    for start in range(0, count, size):
        key = jax.random.fold_in(score_key, start)
        scores, _ = jax.device_get(score(problem.params, key, latents(start), ()))
        end = min(start + size, count)
        objective[start:end] = scores.objective[: end - start]
        measures[start:end] = scores.measures[: end - start]

    bin = assign_bins(config, bins, measures, nearest=nearest_bin)
    cell = np.asarray(problem.search.archive.index_of(jnp.asarray(measures)))
    table = _table(
        config,
        header,
        bins,
        bin=bin,
        latent_row=np.arange(count),
        cell=np.where(np.isfinite(measures).all(axis=1), cell, -1),
        objective=objective,
        measures=measures,
    )
    render = _renderer(generator, problem.params["generator"], latents)
    balance = _balance(bins, count, [None] * len(bins), bin, table, below=0)
    return _write(out, header, table, render, size, balance)


def assign_bins(
    config: Config, bins: Sequence[BinConfig], measures: np.ndarray, *, nearest: bool = False
) -> np.ndarray:
    """Number of the first bin that holds each row of measures [n, M], [n]; -1 for none.

    With `nearest`, what no bin holds belongs to the nearest one, if it is finite. Distances are
    Euclidean, in spans of each measure's range.
    """
    names = [measure.name for measure in config.measures]
    inside = np.ones((len(bins), len(measures)), bool)
    squared = np.zeros(inside.shape)  # distances to the bins
    for number, bin in enumerate(bins):
        for name, (low, high) in bin.where.items():
            column = names.index(name)
            values, (start, end) = measures[:, column], config.measures[column].ends
            inside[number] &= (low <= values) & (values < high)
            with np.errstate(invalid="ignore"):  # inf - inf: such a row is near to no bin
                squared[number] += ((np.clip(values, low, high) - values) / (end - start)) ** 2
    near = nearest & np.isfinite(measures).all(axis=1)
    other = np.where(near, squared.argmin(axis=0), -1)
    return np.where(inside.any(axis=0), inside.argmax(axis=0), other)


def shares(count: int, bins: int) -> list[int]:
    """`count` in equal parts; the first parts take the remainder."""
    return [count // bins + (number < count % bins) for number in range(bins)]


def draw_evenly(bin: np.ndarray, bins: int, count: int, seed: int) -> np.ndarray:
    """Rows of elites, bin after bin, each with its share of `count`; nothing for an empty bin.

    Every elite of a bin is drawn once before any is drawn twice, and so on.

    Args:
        bin: bin of each elite, [n], -1 for none.
    """
    drawn = []
    for number, share in enumerate(shares(count, bins)):
        random = np.random.default_rng((seed, number))
        members = np.flatnonzero(bin == number)
        passes = -(-share // len(members)) if len(members) else 0
        rounds = [random.permutation(members) for _ in range(passes)]
        drawn.append(np.concatenate([members[:0], *rounds])[:share])
    return np.concatenate(drawn)


def _require_numbers(count: int, seed: int) -> None:
    if count < 1:
        raise ConfigError(f"A dataset of {count} images is impossible: ask for 1 or more.")
    if seed < 0:
        raise ConfigError(f"The seed {seed} is negative: choose 0 or more.")


def _bins(config: Config) -> tuple[BinConfig, ...]:
    """The bins to fill, whose labels can be names of folders everywhere."""
    for bin in config.export.bins:
        if not re.fullmatch(r"\w([\w +,()=-]*[\w)])?", bin.label):
            raise ConfigError(
                f"The label '{bin.label}' of bin '{bin.name}' cannot be the name of a class "
                "folder: use letters, digits, spaces, '-' and '_'."
            )
    return config.export.bins or (EVERYTHING,)


def _header(config: Config, made: dict[str, Any], **plan: Any) -> dict[str, Any]:
    """The manifest but for its files: the plan, what scored the latents, what rendered them."""
    packages = ("qdgs-jax", "jax", "jaxlib", "numpy", "pillow")
    header = {
        "made_by": f"qdgs-jax {importlib.metadata.version('qdgs-jax')}",
        "synthetic": True,
        "digital_source_type": image_folder.DIGITAL_SOURCE_TYPE,
        **plan,
        "generator": made["generator"],
        "encoder": made["encoder"],
        "precision": made["precision"],
        "scored_with": {"device": made["device"], "versions": made["versions"]},
        "rendered_with": {
            "device": f"{jax.devices()[0].device_kind} x {jax.device_count()}",
            "versions": {package: importlib.metadata.version(package) for package in packages},
        },
        "config": dataclasses.asdict(config),
    }
    # JSON knows no infinity: an open end of an interval is null.
    return json.loads(json.dumps(header), parse_constant=lambda _: None)


def _table(
    config: Config,
    header: dict[str, Any],
    bins: Sequence[BinConfig],
    *,
    bin: np.ndarray,
    **columns: np.ndarray,
) -> ImageTable:
    """What each image shows; its label follows from its bin."""
    names = {bin.label for bin in bins} | ({UNLABELLED} if (bin < 0).any() else set())
    labels = sorted(names)
    of_bin = [labels.index(bin.label) for bin in bins]
    of_bin.append(labels.index(UNLABELLED) if UNLABELLED in names else -1)  # bin -1
    models = {
        role: f"{header[role]['name']}@{header[role]['sha256'][:12]}"
        for role in ("generator", "encoder")
        if header[role]
    }
    return ImageTable(
        labels=tuple(labels),
        label=np.array(of_bin)[bin],
        bins=tuple(bin.name for bin in bins),
        bin=bin,
        measure_names=tuple(measure.name for measure in config.measures),
        constants={**models, "seed": header["seed"], "synthetic": True},
        **columns,
    )


def _balance(
    bins: Sequence[BinConfig],
    count: int,
    asked: Sequence[int | None],
    available: np.ndarray,
    table: ImageTable,
    *,
    below: int,
) -> Balance:
    """Counts a plan; `available` is the bin of each elite or sample, -1 for none."""
    counted = tuple(
        BinBalance(
            name=bin.name,
            label=bin.label,
            asked=asked[number],
            got=int((table.bin == number).sum()),
            available=int((available == number).sum()),
            distinct=len(np.unique(table.latent_row[table.bin == number])),
        )
        for number, bin in enumerate(bins)
    )
    return Balance(
        asked=count,
        got=len(table),
        available=len(available),
        below_min_objective=below,
        outside_bins=int((available < 0).sum()) - below,
        bins=counted,
        empty_bins=tuple(bin.name for bin in counted if not bin.available),
    )


def _renderer(
    generator: Generator, params: Params, latents: Callable[[int], Latents | np.ndarray]
) -> Callable[[int], np.ndarray]:
    """start -> the chunk of uint8 images that begins there; compiled once."""

    @jax.jit
    def pixels(params: Params, latents: Latents) -> jax.Array:
        images = generator.render(params, latents)
        return jnp.round(255 * jnp.clip(images, 0, 1)).astype(jnp.uint8)

    return lambda start: np.asarray(pixels(params, latents(start)))


def _write(
    out: Path,
    header: dict[str, Any],
    table: ImageTable,
    render: Callable[[int], np.ndarray],
    chunk_size: int,
    balance: Balance,
) -> Balance:
    counts = balance.as_dict()
    del counts["written"]
    texts = {
        "balance.json": json.dumps(counts, indent=1) + "\n",
        "README.md": card(header, counts),
    }
    written = image_folder.write(out, header, table, render, chunk_size=chunk_size, texts=texts)
    return dataclasses.replace(balance, written=written)


def _read_balance(out: Path) -> Balance:
    counts = json.loads((out / "balance.json").read_text())
    bins = tuple(BinBalance(**bin) for bin in counts.pop("bins"))
    return Balance(**{**counts, "bins": bins, "empty_bins": tuple(counts["empty_bins"])})
