"""The command `qdgs`: each subcommand calls one public function."""

import functools
import importlib.metadata
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from qdgs_jax.config import (
    NOTICES,
    Config,
    MeasureConfig,
    ObjectiveConfig,
    load_config,
)
from qdgs_jax.errors import ConfigError, QDGSError
from qdgs_jax.experiments.repair.config import RepairConfig
from qdgs_jax.named_config import named_config
from qdgs_jax.terminal import discard, open_standard_files, progress, say, show_warning, tell
from qdgs_jax.training.config import TrainConfig

Overrides = Annotated[Config, arg(name="")]
TrainOverrides = Annotated[TrainConfig, arg(name="")]
RepairOverrides = Annotated[RepairConfig, arg(name="")]

# What `--help` shows as defaults when no config is named.
_ANY_CONFIG = Config(
    objective=ObjectiveConfig(positive="...", negative="..."),
    measures=(MeasureConfig(name="...", low="...", high="..."),),
)


def main() -> None:
    """Runs the command line: status 0, 2 for a mistake in the command, 1 for a failure."""
    open_standard_files()
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: list[str]) -> int:
    """Runs one command; mistakes and failures become one sentence on standard error."""
    warnings.showwarning = show_warning
    if arguments == ["--version"]:
        print(f"qdgs {importlib.metadata.version('qdgs-jax')}")
        return 0
    if arguments[:1] == ["experiment"]:  # its name is part of the command
        arguments = [" ".join(arguments[:2]), *arguments[2:]]
    try:
        config = named_config(arguments, Config, "sample", "baseline") or _ANY_CONFIG
        tyro.extras.subcommand_cli_from_dict(
            {
                "sample": functools.partial(sample, overrides=config),
                "export": export,
                "baseline": functools.partial(baseline, overrides=config),
                "train": functools.partial(
                    train, overrides=named_config(arguments, TrainConfig, "train") or TrainConfig()
                ),
                "experiment repair": functools.partial(
                    repair_experiment,
                    overrides=named_config(arguments, RepairConfig, "experiment repair")
                    or RepairConfig(),
                ),
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
    acknowledge_notice: bool = False,
    allow_code: bool = False,
) -> None:
    """Search a generator's latents and write a run folder.

    Args:
        config: TOML file; each of its values can be overridden by an option.
        out: run folder; runs/NAME-OF-THE-CONFIG if not given.
        resume: continue from the last checkpoint of the run folder, or a finished run for more
            generations.
        acknowledge_notice: continue although the config has a notice.
        allow_code: import measures that are functions of other packages or of the working folder.
    """
    _require_read(config, overrides)
    _require_acknowledged(overrides, acknowledge_notice)
    from qdgs_jax.runs import sampling as runs  # jax is slow to import

    folder = out or Path("runs") / config.stem
    with progress(overrides.search.generations) as report:
        summary = runs.sample(
            overrides, folder, resume=resume, report=report, allow_code=allow_code
        )
    tell(
        {"run": str(folder), **summary},
        "{elites} elites, coverage {coverage:.1%}, QD score {qd_score:.0f}, best objective "
        "{best_objective:.2f}; {evaluations} evaluations in {seconds_run:.0f} s. Next: "
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
    """
    from qdgs_jax.datasets import export as dataset

    balance = dataset.export(
        run,
        out,
        count=count,
        min_objective=min_objective,
        seed=seed,
        no_repeat=no_repeat,
        test_share=test_share,
    )
    tell({"dataset": str(out), **balance.as_dict()}, str(balance))


def baseline(
    config: Positional[Path],
    out: Positional[Path],
    *,
    overrides: Overrides,
    count: int | None = None,
    nearest_bin: bool = False,
    acknowledge_notice: bool = False,
    allow_code: bool = False,
) -> None:
    """Render plain random samples in the layout of `qdgs export`, for comparison.

    Args:
        config: TOML file; each of its values can be overridden by an option.
        out: folder of the dataset.
        count: images; the config's export.count if not given.
        nearest_bin: label images that no bin holds by the nearest bin; otherwise as `unlabelled`.
        acknowledge_notice: continue although the config has a notice.
        allow_code: import measures that are functions of other packages or of the working folder.
    """
    _require_read(config, overrides)
    _require_acknowledged(overrides, acknowledge_notice)
    from qdgs_jax.datasets import export as dataset

    balance = dataset.baseline(
        overrides,
        out,
        count=overrides.export.count if count is None else count,
        seed=overrides.seed,
        nearest_bin=nearest_bin,
        allow_code=allow_code,
    )
    tell({"dataset": str(out), **balance.as_dict()}, str(balance))


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
    from qdgs_jax.evaluation.repair import repair_folders

    results = repair_folders(
        overrides, out, train=train, repair=repair, test=test, group=group, resume=resume
    )
    _tell_results(out, results)


def repair_experiment(
    config: Positional[Path],
    *,
    overrides: RepairOverrides,
    out: Path | None = None,
    resume: bool = False,
    allow_code: bool = False,
) -> None:
    """Repair classifiers trained on colour-biased drawings by fine-tuning (QDGS, shapes domain).

    Args:
        config: TOML file; each of its values can be overridden by an option.
        out: folder of the results; runs/NAME-OF-THE-CONFIG if not given.
        resume: continue with the results in that folder.
        allow_code: import measures that are functions of other packages or of the working folder.
    """
    from qdgs_jax.experiments.repair import experiment

    if not overrides.search:
        raise ConfigError(f"{config} names no `search` that makes its images: add one.")
    folder = out or Path("runs") / config.stem
    search = load_config(Path(overrides.search))
    results = experiment.run_experiment(
        overrides, search, folder, resume=resume, allow_code=allow_code
    )
    _tell_results(folder, results)


def _tell_results(folder: Path, results: dict[str, Any]) -> None:
    from qdgs_jax.evaluation import fairness

    tell({"results": str(folder), **results, "table": fairness.table(results["rows"])}, "{table}")


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


def _require_acknowledged(config: Config, acknowledged: bool) -> None:
    """Refuses a config with a notice until the notice is acknowledged."""
    if config.notice and not acknowledged:
        raise ConfigError(f"{NOTICES[config.notice]} Continue with --acknowledge-notice.")


def _require_read(config: Path, overrides: Config) -> None:
    """Refuses to run with placeholders where a config was named but not found."""
    if overrides.objective == _ANY_CONFIG.objective:
        raise ConfigError(f"The config {config} must come before options of several values.")
