"""Archive -> evenly drawn elites -> images, labels and provenance on disk.

The latent of each image is chosen first, which is cheap. Rendering then works in chunks, so that
memory does not grow with the number of images.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdgs_jax import files, generators, processes, sharding
from qdgs_jax.bins import assign_bins, bins_of, choose_test, draw_evenly, shares, with_bins
from qdgs_jax.config import MAX_IMAGES, BinConfig, Config, load_bins
from qdgs_jax.datasets import image_folder
from qdgs_jax.datasets.balance import BALANCE, Balance, count_balance, read_balance
from qdgs_jax.datasets.card import card
from qdgs_jax.datasets.image_folder import ImageTable
from qdgs_jax.datasets.plan import make_header, make_table
from qdgs_jax.errors import ConfigError, QDGSError
from qdgs_jax.generators import Generator
from qdgs_jax.jacobian import Scores
from qdgs_jax.keys import make_key, row_keys
from qdgs_jax.problem import Problem, load_problem
from qdgs_jax.runs.results import Elites, Run, load_run
from qdgs_jax.typing import Images, Key, Latents, Params


def export(
    run: str | Path,
    out: str | Path,
    *,
    count: int | None = None,
    min_objective: float | None = None,
    seed: int = 0,
    no_repeat: bool = False,
    test_share: float | None = None,
    bins: Sequence[BinConfig] | str | Path | None = None,
    generator: tuple[Generator, Params] | None = None,
    allow_code: bool = False,
) -> Balance:
    """Renders elites of a run, evenly over its bins, as an ImageFolder with provenance.

    Each bin gets its equal share of `count`, whether or not others are empty. Every elite of a bin
    is drawn once before any is drawn twice. An elite in several bins belongs to the first.
    The same arguments give the same bytes; a call resumes an interrupted one. All devices of the
    ambient mesh render, or without one all there are; after `jax.distributed.initialize`, all
    processes call this alike and share the work.

    Args:
        run: folder of a run.
        out: folder to write: new, or of an export with the same arguments.
        count: images; the run's `export.count` by default.
        min_objective: elites below it are left out; the run's `export.min_objective` by default.
        seed: of the draw.
        no_repeat: export no elite twice; a bin with too few elites gets fewer images.
        test_share: share of the images in a folder `test`, in (0, 1), the others in `train`; None:
            one folder. Copies of an elite stay together, and each bin is divided alike, as far as
            its elites allow.
        bins: in place of the config's, or the TOML file of such: see `config.load_bins`.
        generator: the run's generator, with its weights, if the config does not name one.
        allow_code: whether the generator may be a function of another package, which is imported.

    Raises:
        ConfigError: a bin is impossible or cannot be a class folder, `count`, `seed` or
            `test_share` is impossible, or the images are too few to be split.
        QDGSError: no run in `run`, no elite in any bin, other files in `out`, or no space.
    """
    run, out = Path(run), Path(out)
    with _shared_work():
        with processes.errors_shared():
            loaded = load_run(run)
            config, elites = loaded.config, loaded.elites
            if bins is not None:
                given = load_bins(bins) if isinstance(bins, str | Path) else bins
                config = with_bins(config, given)
            count = config.export.count if count is None else count
            floor = config.export.min_objective if min_objective is None else min_objective
            regions = bins_of(config)
            require_numbers(count, seed)
            bin, below = assign_elites(run, loaded, regions, floor)
            rows = draw_evenly(bin, len(regions), count, seed, repeat=not no_repeat)
            part = None if test_share is None else _split(rows, bin[rows], test_share, seed)
            source, params = load_generator(run, loaded, generator, allow_code)
            header = make_header(
                config,
                loaded.summary,
                method="elites of a quality-diversity search, drawn evenly",
                count=count,
                seed=seed,
                min_objective=floor,
                archive_sha256=files.sha256(run / "archive.safetensors"),
                **({"no_repeat": True} if no_repeat else {}),
                **({"test_share": test_share} if test_share is not None else {}),
            )
        if _claim(out, header):
            return read_balance(out)

        columns = elite_columns(source, elites, rows)
        table = make_table(
            config, header, regions, bin=bin[rows], part=part, classes=source.classes, **columns
        )

        def latents(start: int, size: int) -> np.ndarray:
            return elites.latents[np.resize(rows[start : start + size], size)]

        render = Renderer(source.render, params, latents, config.search.chunk)
        asked = shares(count, len(regions))
        balance = count_balance(regions, count, asked, bin, table, below=below)
        return _write(out, header, table, render, balance)


def baseline(
    config: Config,
    out: str | Path,
    *,
    count: int,
    seed: int = 0,
    nearest_bin: bool = False,
    allow_code: bool = False,
) -> Balance:
    """Renders plain random latents into the layout of `export`, without balancing them.

    Each image is scored as the search scores; its label is that of the first bin that holds it, or
    `unlabelled`. A call resumes an interrupted one, but scores all images again.

    Args:
        config: of the search to compare with.
        out: folder to write: new, or of a baseline with the same arguments.
        count: images.
        seed: of latents and crops.
        nearest_bin: label an image that no bin holds by the nearest one.
        allow_code: whether generator, encoder and measures may be functions of other packages,
            which are imported.

    Raises:
        ConfigError: a bin cannot be a class folder, or the config asks for something impossible.
        QDGSError: other files in `out`, or no space.
    """
    out = Path(out)
    with _shared_work():
        with sharding.no_mesh(), processes.errors_shared():
            bins = bins_of(config)
            require_numbers(count, seed)
            problem = load_problem(config, allow_code=allow_code)
            config, generator = problem.config, problem.generator
            header = make_header(
                config,
                problem.provenance(),
                method="plain random sampling"
                + (", labelled by the nearest bin" if nearest_bin else ""),
                count=count,
                seed=seed,
            )
        if _claim(out, header):
            return read_balance(out)

        latent_key = make_key(seed, "latents of random samples")

        def latents(start: int, size: int) -> Latents:
            return generator.sample_rows(row_keys(latent_key, start, size))

        crop_key = make_key(seed, "crops of random samples")
        objective, measures, generator_class = _score(problem, crop_key, latents, count)
        bin = assign_bins(config, bins, measures, nearest=nearest_bin)
        cell = np.asarray(problem.search.archive.index_of(jnp.asarray(measures)))
        table = make_table(
            config,
            header,
            bins,
            bin=bin,
            latent_row=np.arange(count),
            cell=np.where(np.isfinite(measures).all(axis=1), cell, -1),
            objective=objective,
            measures=measures,
            classes=generator.classes,
            generator_class=generator_class,
        )
        size = config.search.chunk
        render = Renderer(generator.render, problem.params["generator"], latents, size)
        balance = count_balance(bins, count, [None] * len(bins), bin, table, below=0)
        return _write(out, header, table, render, balance)


@contextlib.contextmanager
def _shared_work() -> Iterator[None]:
    """Sets the mesh of this process's devices: processes share the chunks of a dataset in turns."""
    again = image_folder.AGAIN
    with sharding.local_devices(), processes.losses_explained(again=again):
        yield


def _claim(out: Path, header: dict[str, Any]) -> bool:
    """`image_folder.claim` by process 0, for a plan that all processes have alike."""
    processes.require_same(plan=header)
    return processes.first(lambda: image_folder.claim(out, header))


def _score(
    problem: Problem, key: Key, latents: Callable[[int, int], Latents], count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Objective [count], measures [count, M] and the generator's class [count] of latents, which
    are made chunk by chunk; the class is 0 if there is none."""
    params = sharding.on_all_devices(problem.params)
    size = problem.config.search.chunk
    rows = size * sharding.devices()

    def score_rows(params: Params, keys: Key, latents: Latents) -> Scores:
        return problem.score.score_rows(params, keys, latents, ())[0]

    # Keys are made apart, so that a device runs the same program, however many there are.
    score = jax.jit(sharding.rowwise(score_rows, size))

    values = np.zeros((count, 2 + len(problem.config.measures)), np.float32)
    with processes.errors_shared():
        for number, start in enumerate(range(0, count, rows)):
            if processes.is_mine(number):
                keys = row_keys(key, start, rows)
                some = latents(start, rows)
                scores = jax.device_get(score(params, keys, some))
                classes = problem.generator.class_of(some)
                scored = np.column_stack([scores.objective, scores.measures, classes])
                values[start : start + rows] = scored[: count - start]
    values = processes.summed(values)  # of zeros and one process's scores
    return values[:, 0], values[:, 1:-1], values[:, -1].astype(int)


def assign_elites(
    path: Path, run: Run, bins: Sequence[BinConfig], floor: float
) -> tuple[np.ndarray, int]:
    """Bin of each elite, [n], -1 for none, and the number of elites below the floor.

    Raises:
        QDGSError: no elite is in a bin.
    """
    bin = assign_bins(run.config, bins, run.elites.measures)
    below = run.elites.objective < floor
    bin[below] = -1
    if (bin < 0).all():
        raise QDGSError(
            f"None of the {len(bin)} elites of {path} can be exported, {below.sum()} because of an "
            f"objective below {floor:g} and the others because no bin holds them: lower "
            "`min_objective`, widen the bins, or search longer."
        )
    return bin, int(below.sum())


def elite_columns(generator: Generator, elites: Elites, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of an `ImageTable` for images of these elites."""
    return {
        "latent_row": rows,
        "cell": elites.index[rows],
        "objective": elites.objective[rows],
        "measures": elites.measures[rows],
        "generator_class": np.asarray(generator.class_of(elites.latents))[rows],
    }


def load_generator(
    path: Path, run: Run, own: tuple[Generator, Params] | None, allow_code: bool
) -> tuple[Generator, Params]:
    """The generator that a run searched, and its weights.

    Raises:
        ConfigError: it is not there, or not allowed.
        QDGSError: it has other weights.
    """
    generator, params = (
        generators.checked(*own)
        if own
        else generators.load(**dataclasses.asdict(run.config.generator), allow_code=allow_code)
    )
    if generator.sha256 != run.summary["generator"]["sha256"]:
        raise QDGSError(
            f"The generator {generator.name} has other weights than those that the run {path} "
            "searched: restore them, or search again."
        )
    return generator, params


def _split(rows: np.ndarray, bin: np.ndarray, share: float, seed: int) -> np.ndarray:
    if not 0 < share < 1:
        raise ConfigError(f"A test share of {share:g} is impossible: choose one between 0 and 1.")
    test = choose_test(rows, bin, share, seed)
    if not 0 < test.sum() < len(rows):
        raise ConfigError(
            f"{len(rows)} images of {len(np.unique(rows))} elites are too few for a test share of "
            f"{share:g}: raise `count`, choose another share, or search longer."
        )
    return test.astype(int)


def require_numbers(count: int, seed: int) -> None:
    """Raises a ConfigError for a count of images or a seed that is impossible."""
    if count < 1:
        raise ConfigError(f"A dataset of {count} images is impossible: ask for 1 or more.")
    if count > MAX_IMAGES:
        raise ConfigError(f"{count} images are more than {MAX_IMAGES:,}: ask for fewer.")
    if seed < 0:
        raise ConfigError(f"The seed {seed} is negative: choose 0 or more.")
    if seed >= 2**32:
        raise ConfigError(f"The seed {seed} is too large: choose one below 2^32.")


class Renderer:
    """Position -> the chunk of uint8 images that begins there, a part of it on each device.

    A device always computes `chunk_size` images at once, so that any number of devices gives the
    same bytes.
    """

    def __init__(
        self,
        render: Callable[[Params, Latents], Images],
        params: Params,
        latents: Callable[[int, int], Latents | np.ndarray],
        chunk_size: int,
    ) -> None:
        """`latents` are those of a position and a number of images."""

        def pixels(params: Params, latents: Latents) -> jax.Array:
            images = render(params, latents)
            return jnp.round(255 * jnp.clip(images, 0, 1)).astype(jnp.uint8)

        self.size = chunk_size * sharding.devices()
        self._latents, self._params = latents, sharding.on_all_devices(params)
        self._pixels = jax.jit(sharding.rowwise(pixels, chunk_size))

    def __call__(self, start: int) -> np.ndarray:
        return np.asarray(self._pixels(self._params, self._latents(start, self.size)))


def _write(
    out: Path, header: dict[str, Any], table: ImageTable, render: Renderer, balance: Balance
) -> Balance:
    counts = balance.as_dict()
    del counts["written"]
    texts = {
        BALANCE: json.dumps(counts, indent=1) + "\n",
        "README.md": card(header, counts, table),
    }
    written = image_folder.write(out, header, table, render, chunk_size=render.size, texts=texts)
    return dataclasses.replace(balance, written=written)
