"""The command `qdgs`: each subcommand calls one public function."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import platformdirs
import tyro
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from qdgs_jax import experiment_commands
from qdgs_jax.config import Config, MeasureConfig, ObjectiveConfig, require_acknowledged
from qdgs_jax.errors import ConfigError, LostProcessError, QDGSError
from qdgs_jax.named_config import named_config
from qdgs_jax.terminal import (
    discard,
    literal,
    open_standard_files,
    progress,
    say,
    show_warning,
    table,
    tell,
)
from qdgs_jax.training.config import TrainConfig

CACHE_BYTES = 4 * 2**30
"""Of compiled programs that are kept."""

Overrides = Annotated[Config, arg(name="")]
TrainOverrides = Annotated[TrainConfig, arg(name="")]


@dataclasses.dataclass(frozen=True)
class Devices:
    """Where a command computes."""

    devices: int | None = None
    """Devices of each process to use; all if not given."""
    distributed: bool = False
    """Run as one of several processes, all started with this command. SLURM, Open MPI, Kubernetes
    and Cloud TPU tell each of them which it is; elsewhere the next three do."""
    coordinator: str | None = None
    """HOST:PORT of process 0, the same for all processes."""
    processes: int | None = None
    """Number of processes."""
    process: int | None = None
    """Which of them this is, from 0."""

    @contextlib.contextmanager
    def used(self) -> Iterator[bool]:
        """Joins the other processes and sets the mesh of devices; yields whether this process is
        the one that reports."""
        named = (self.coordinator, self.processes, self.process)
        if not self.distributed and named != (None, None, None):
            raise ConfigError("--coordinator, --processes and --process need --distributed too.")
        import jax  # slow

        from qdgs_jax import processes, sharding

        if self.distributed:
            processes.start(*named)
        with contextlib.ExitStack() as stack:
            if self.devices is not None:
                stack.enter_context(jax.set_mesh(sharding.limited_mesh(self.devices)))
            yield processes.is_first()


Computing = Annotated[Devices, arg(name="")]

# What `--help` shows as defaults when no config is named.
_ANY_CONFIG = Config(
    objective=ObjectiveConfig(positive="...", negative="..."),
    measures=(MeasureConfig(name="...", low="...", high="..."),),
)


def main() -> None:
    """Runs the command line: status 0, 2 for a mistake in the command, 1 for a failure."""
    open_standard_files()
    keep_programs()
    sys.exit(run_command(sys.argv[1:]))


def can_keep_programs() -> bool:
    """Whether JAX loads kept programs silently: older ones call each of a CPU's an error."""
    version = re.findall(r"\d+", importlib.metadata.version("jax"))
    return tuple(map(int, version[:3])) >= (0, 10, 2)


def keep_programs() -> None:
    """Keeps compiled programs in the user's cache folder; JAX's own variable names another."""
    if can_keep_programs() and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = platformdirs.user_cache_path("qdgs_jax") / "programs"
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
            os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(CACHE_BYTES)


def run_command(arguments: list[str]) -> int:
    """Runs one command; mistakes and failures become one sentence on standard error."""
    warnings.showwarning = show_warning
    if arguments == ["--version"]:
        print(f"qdgs {importlib.metadata.version('qdgs-jax')}")
        return 0
    if arguments[:1] == ["experiment"]:  # its name is part of the command
        arguments = [" ".join(arguments[:2]), *arguments[2:]]
    try:
        config = named_config(arguments, Config, "sample", "baseline", "compile") or _ANY_CONFIG
        tyro.extras.subcommand_cli_from_dict(
            {
                "sample": functools.partial(sample, overrides=config),
                "bins": show_bins,
                "export": export,
                "annotate": annotate,
                "identities": identities,
                "baseline": functools.partial(baseline, overrides=config),
                "train": functools.partial(
                    train, overrides=named_config(arguments, TrainConfig, "train") or TrainConfig()
                ),
                **experiment_commands.commands(arguments),
                "compile": functools.partial(compile_search, overrides=config),
                "models": show_models,
                "measures": show_measures,
                "convert": convert,
                "pretrain": pretrain,
            },
            prog="qdgs",
            description="Quality-Diversity Generative Sampling: balanced synthetic datasets from "
            "biased generators. `qdgs --version` prints the version.",
            args=arguments,
            config=(FlagCreatePairsOff,),
        )
    except QDGSError as error:
        say(str(error))
        if isinstance(error, LostProcessError):  # at the end JAX would wait for it
            sys.stdout.flush()
            os._exit(1)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt as interrupt:
        again = getattr(interrupt, "__notes__", ["run the same command again"])[-1]
        say(f"Interrupted: {again}.")
        return 1
    except BrokenPipeError:  # the reader of our output has gone
        discard(sys.stdout)
        return 1
    except OSError as error:
        say(f"{error.filename or 'A file'} cannot be used ({error.strerror or error}): mend that.")
        return 1
    except Exception as error:
        if not (isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)):
            raise
        say("Memory is exhausted: lower search.chunk_size, search.emitters or the cells.")
        return 1
    return 0


def sample(
    config: Positional[Path],
    *,
    overrides: Overrides,
    out: Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
    acknowledge_notice: bool = False,
    allow_code: bool = False,
    computing: Computing = Devices(),
) -> None:
    """Search a generator's latents and write a run folder.

    Args:
        config: TOML file; each of its values can be overridden by an option.
        out: run folder; runs/NAME-OF-THE-CONFIG if not given.
        resume: continue from the last checkpoint of the run folder, or a finished run for more
            generations.
        dry_run: load, compile and time a few generations, tell memory and seconds that the run
            takes, and write nothing.
        acknowledge_notice: continue although the config has a notice.
        allow_code: import models and measures that are functions of other packages or of the
            working folder.
    """
    _require_read(config, overrides)
    require_acknowledged(overrides.notice, acknowledge_notice)
    from qdgs_jax import sharding  # jax is slow to import

    if dry_run:
        from qdgs_jax.runs import rehearsal

        with computing.used() as reports, progress(0, sharding.devices):
            found = rehearsal.rehearse(overrides, allow_code=allow_code)
        if reports:
            tell({"config": str(config), **found.as_dict()}, literal(str(found)))
        return
    from qdgs_jax.runs import sampling as runs

    folder = out or Path("runs") / config.stem
    generations = overrides.search.generations
    with computing.used() as reports, progress(generations, sharding.devices) as report:
        summary = runs.sample(
            overrides, folder, resume=resume, report=report, allow_code=allow_code
        )
    if reports:
        for sentence in summary["verdict"]["sentences"]:
            say(sentence)
        tell(
            {"run": str(folder), **summary},
            "{elites} elites, coverage {coverage:.1%}, QD score {qd_score:.0f}, best objective "
            "{best_objective:.2f}; {evaluations} evaluations in {seconds_run:.0f} s on {devices} "
            "device(s). Next: "
            "qdgs export {run} DATASET",
        )


def export(
    run: Positional[Path],
    out: Positional[Path],
    *,
    count: int | None = None,
    min_objective: float | None = None,
    seed: int = 0,
    no_repeat: bool = False,
    test_share: float | None = None,
    bins: Path | None = None,
    bin: UseAppendAction[tuple[str, ...]] = (),
    allow_code: bool = False,
    computing: Computing = Devices(),
) -> None:
    """Render a balanced dataset from the elites of a run.

    Args:
        run: run folder that `qdgs sample` has finished.
        out: folder of the dataset.
        count: images; the config's export.count if not given.
        min_objective: leave out elites below it; the config's export.min_objective if not given.
        seed: seed of the choice among elites.
        no_repeat: show no elite twice; bins with too few elites get fewer images.
        test_share: share of the images in a folder `test`, such as 0.2, the others in `train`;
            copies of an elite stay together.
        bins: TOML file of `[[bins]]` tables in place of the config's bins; `qdgs bins RUN` proposes
            some.
        bin: a bin in place of the config's, "NAME:LABEL:measure=low..high,measure2=..high", of
            which ends may be left out. Repeat the option for more bins.
        allow_code: import a generator that is a function of another package or of the working
            folder.
    """
    if bins and bin:
        raise ConfigError("Bins are either those of --bins FILE or each a --bin: give one of them.")
    from qdgs_jax.bins import parse_bin
    from qdgs_jax.datasets import export as dataset

    with computing.used() as reports:
        balance = dataset.export(
            run,
            out,
            count=count,
            min_objective=min_objective,
            seed=seed,
            no_repeat=no_repeat,
            test_share=test_share,
            bins=[parse_bin(each) for each in bin] or bins,
            allow_code=allow_code,
        )
    if reports:
        tell({"dataset": str(out), **balance.as_dict()}, literal(str(balance)))


def identities(
    run: Positional[Path],
    out: Positional[Path],
    *,
    count: int = 100,
    min_objective: float | None = None,
    seed: int = 0,
    bins: Path | None = None,
    acknowledge_notice: bool = False,
    allow_code: bool = False,
) -> None:
    """Render identities from the elites of a run over faces, a folder of aligned faces for each.

    Args:
        run: run folder that `qdgs sample` has finished.
        out: folder of the dataset.
        count: identities.
        min_objective: leave out elites below it; the config's export.min_objective if not given.
        seed: seed of the choice among elites.
        bins: TOML file of `[[bins]]` tables in place of the config's bins.
        acknowledge_notice: continue although there is a notice.
        allow_code: import a generator that is a function of another package or of the working
            folder.
    """
    require_acknowledged("faces", acknowledge_notice)
    from qdgs_jax.datasets.identities import make_identities

    made = make_identities(
        run, out, count=count, min_objective=min_objective, seed=seed, bins=bins,
        allow_code=allow_code,
    )  # fmt: skip
    tell({"dataset": str(out), **made.as_dict()}, literal(str(made)))


def annotate(folder: Positional[Path], *, acknowledge_notice: bool = False) -> None:
    """Add to a folder's metadata.jsonl what networks read from the faces of its images.

    Args:
        folder: images of anybody, or a dataset of `qdgs export`.
        acknowledge_notice: continue although there is a notice.
    """
    require_acknowledged("readings", acknowledge_notice)
    from qdgs_jax.datasets import annotations

    annotated = annotations.annotate(folder)
    tell({"dataset": str(folder), **annotated.as_dict()}, literal(str(annotated)))


def show_bins(
    run: Positional[Path],
    *,
    split: Literal["quantiles", "equal"] = "quantiles",
    parts: int = 2,
    measures: tuple[str, ...] = (),
    min_objective: float | None = None,
    out: Path | None = None,
) -> None:
    """Show how the elites of a run lie in measures and bins, and propose bins to export.

    Args:
        run: run folder that `qdgs sample` has finished.
        split: divide measures into parts of equally many elites, or of equal width.
        parts: of each measure.
        measures: names of those to divide; all if not given.
        min_objective: leave out elites below it; the config's export.min_objective if not given.
        out: new TOML file for the proposed bins, for `qdgs export --bins`.
    """
    from qdgs_jax import bins, files
    from qdgs_jax.runs.results import load_run

    if out and out.exists():
        raise ConfigError(f"{out} exists already: name another file.")
    loaded = load_run(run)
    config, elites = loaded.config, loaded.elites
    floor = config.export.min_objective if min_objective is None else min_objective
    found = bins.survey(
        config, elites.objective, elites.measures,
        min_objective=floor, split=split, parts=parts, names=measures,
    )  # fmt: skip
    if out:
        files.write(out, found["toml"])
    counts = [{key: each[key] for key in ("bin", "label", "elites")} for each in found["bins"]]
    below = found["below_min_objective"]
    text = [
        f"{found['elites']} elites"
        + (f", {below} of them below min_objective ({floor:g}) and left out here" if below else ""),
        table(found["measures"]),
        table(counts) + f"\nin no bin: {found['outside_bins']}",
        f"Proposed for `qdgs export {run} DATASET --bins {out or 'FILE'}`:",
        found["toml"].rstrip(),
    ]
    tell({"run": str(run), **found}, literal("\n\n".join(text)))


def baseline(
    config: Positional[Path],
    out: Positional[Path],
    *,
    overrides: Overrides,
    count: int | None = None,
    nearest_bin: bool = False,
    acknowledge_notice: bool = False,
    allow_code: bool = False,
    computing: Computing = Devices(),
) -> None:
    """Render plain random samples in the layout of `qdgs export`, for comparison.

    Args:
        config: TOML file; each of its values can be overridden by an option.
        out: folder of the dataset.
        count: images; the config's export.count if not given.
        nearest_bin: label images that no bin holds by the nearest bin; otherwise as `unlabelled`.
        acknowledge_notice: continue although the config has a notice.
        allow_code: import models and measures that are functions of other packages or of the
            working folder.
    """
    _require_read(config, overrides)
    require_acknowledged(overrides.notice, acknowledge_notice)
    from qdgs_jax.datasets import export as dataset

    with computing.used() as reports:
        balance = dataset.baseline(
            overrides,
            out,
            count=overrides.export.count if count is None else count,
            seed=overrides.seed,
            nearest_bin=nearest_bin,
            allow_code=allow_code,
        )
    if reports:
        tell({"dataset": str(out), **balance.as_dict()}, literal(str(balance)))


def compile_search(
    config: Positional[Path],
    *,
    overrides: Overrides,
    topology: str,
    emitters: int | None = None,
    batch_size: int | None = None,
    allow_code: bool = False,
) -> None:
    """Compile a search for chips that are not there, and say whether it fits into their memory.

    Args:
        config: TOML file; each of its values can be overridden by an option.
        topology: chip and layout, such as v5e:4x4 or h100:8; a wrong name lists those known.
        emitters: in place of search.emitters.
        batch_size: in place of search.batch_size.
        allow_code: import models and measures that are functions of other packages or of the
            working folder.
    """
    _require_read(config, overrides)
    from qdgs_jax.compilation.programs import compile_for

    search = dataclasses.replace(
        overrides.search,
        emitters=overrides.search.emitters if emitters is None else emitters,
        batch_size=overrides.search.batch_size if batch_size is None else batch_size,
    )
    report = compile_for(
        dataclasses.replace(overrides, search=search), topology, allow_code=allow_code
    )
    tell({"config": str(config), **report.as_dict()}, literal(str(report)))
    if not report.fits:
        raise QDGSError(report.problem())


def train(
    config: Positional[Path | None] = None,
    *,
    overrides: TrainOverrides,
    train: Path | None = None,
    test: Path | None = None,
    group: str | None = None,
    repair: Path | None = None,
    out: Path = Path("runs/train"),
    resume: bool = False,
) -> None:
    """Train a classifier on a folder of images, fine-tune it with another, and test it by group.

    Args:
        config: TOML file; each of its values can be overridden by an option.
        train: class folders of images to train on.
        repair: class folders of images to fine-tune with.
        test: class folders of images to test on, with a metadata.jsonl.
        group: column of the test's metadata.jsonl that names the groups to compare.
        out: folder of the results.
        resume: continue with the results in that folder.
    """
    del config  # read into the overrides' defaults
    if not (train and test and group):
        raise ConfigError(
            "Folders of images need all of --train, --test and --group: add what is missing, or "
            "run an experiment by `qdgs experiment repair CONFIG`."
        )
    from qdgs_jax.evaluation import fairness
    from qdgs_jax.evaluation.repair import repair_folders

    results = repair_folders(
        overrides, out, train=train, repair=repair, test=test, group=group, resume=resume
    )
    tell({"results": str(out), **results, "table": fairness.table(results["rows"])}, "{table}")


def pretrain(
    model: Positional[Literal["vae", "clip"]], out: Positional[Path], *, seed: int = 0
) -> None:
    """Train a built-in model of the shapes domain.

    Args:
        model: the colour-biased VAE, or the small CLIP.
        out: folder for its weights and model card.
        seed: seed of drawings, initial weights and batches.
    """
    from qdgs_jax.shapes import clip_training, vae_training

    if model == "vae":
        vae_training.train_vae(out, seed=seed)
    else:
        clip_training.train_clip(out, seed=seed)


def show_models() -> None:
    """List built-in generators and encoders, and the files that are read."""
    from qdgs_jax import catalogue

    found = catalogue.models()
    tables = "\n\n".join(table(rows) for rows in found.values())
    tell(found, literal(f"{tables}\n\nOthers are functions `package.module:function`."))


def show_measures() -> None:
    """List built-in functions of images for `function` of a config's measures."""
    from qdgs_jax import catalogue

    found = catalogue.measures()
    other = "Others are functions `package.module:function`, and pairs of prompts."
    tell({"measures": found}, literal(f"{table(found)}\n\n{other}"))


def convert(
    kind: Positional[Literal["clip", "stylegan2"]], source: Positional[str], out: Positional[Path]
) -> None:
    """Rewrite a foreign checkpoint as safetensors and config.json; nothing in it is executed.

    Args:
        kind: what the checkpoint holds.
        source: file, folder or hub id of a CLIP; .pkl of a StyleGAN2 from NVIDIA's PyTorch code.
        out: folder to write, which loads by its path.
    """
    if kind == "clip":
        from qdgs_jax import encoders

        encoders.convert(source, out)
    else:
        from qdgs_jax.models import stylegan2

        stylegan2.convert(source, out)
    tell({"model": str(out)}, "Written to {model}")


def _require_read(config: Path, overrides: Config) -> None:
    """Refuses to run with placeholders where a config was named but not found."""
    if overrides.objective == _ANY_CONFIG.objective:
        raise ConfigError(f"The config {config} must come before options of several values.")
