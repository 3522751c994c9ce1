"""The command `qdgs`: each subcommand is a few lines around one public function."""

import contextlib
import functools
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tqdm import tqdm
from tyro.conf import FlagCreatePairsOff, Positional, arg

from qdgs_jax.config import (
    NOTICES,
    Config,
    MeasureConfig,
    ObjectiveConfig,
    RepairConfig,
    load_config,
    load_repair_config,
)
from qdgs_jax.errors import ConfigError, QDGSError

Overrides = Annotated[Config, arg(name="")]
RepairOverrides = Annotated[RepairConfig, arg(name="")]

# What `--help` shows as defaults when no config is named.
_ANY_CONFIG = Config(
    objective=ObjectiveConfig(positive="...", negative="..."),
    measures=(MeasureConfig(name="...", low="...", high="..."),),
)


def main() -> None:
    """Entry point: exit status 0, 2 for a mistake in what was asked, 1 for what failed."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: list[str]) -> int:
    """Runs one command; mistakes and failures become one sentence on standard error."""
    warnings.showwarning = _show_warning
    try:
        config = _named_config(arguments)
        repair_config = _named_repair_config(arguments)
        tyro.extras.subcommand_cli_from_dict(
            {
                "sample": functools.partial(sample, overrides=config),
                "export": export,
                "baseline": functools.partial(baseline, overrides=config),
                "train": functools.partial(train, overrides=repair_config),
                "convert": convert,
                "pretrain": pretrain,
            },
            prog="qdgs",
            description="Quality-Diversity Generative Sampling: balanced synthetic datasets from "
            "biased generators.",
            args=arguments,
            config=(FlagCreatePairsOff,),
        )
    except QDGSError as error:
        print(f"qdgs: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt as interrupt:
        again = getattr(interrupt, "__notes__", ["run the same command again"])[-1]
        print(f"qdgs: Interrupted: {again}.", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output has gone; flushing it again would raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def sample(
    config: Positional[Path],
    *,
    overrides: Overrides,
    out: Path | None = None,
    resume: bool = False,
    acknowledge_notice: bool = False,
) -> None:
    """Search a generator's latents, into a run folder.

    Args:
        config: TOML file; each of its values can be overridden by an option.
        out: run folder; runs/NAME-OF-THE-CONFIG if not given.
        resume: go on from the last checkpoint of the run folder.
        acknowledge_notice: go on where the config has a notice.
    """
    _require_acknowledged(overrides, acknowledge_notice)
    from qdgs_jax.emitters.cma_es import single_threaded_blas
    from qdgs_jax.runs import sampling as runs  # jax is slow to import: only when there is work

    single_threaded_blas()
    folder = out or Path("runs") / config.stem
    with _progress(overrides.search.generations) as report:
        summary = runs.sample(overrides, folder, resume=resume, report=report)
    _tell(
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
) -> None:
    """Render a balanced dataset from the elites of a run.

    Args:
        run: run folder that `qdgs sample` has finished.
        out: folder of the dataset.
        count: images; the config's export.count if not given.
        min_objective: leave out elites below it; the config's export.min_objective if not given.
        seed: seed of the choice among elites.
    """
    from qdgs_jax.datasets import export as dataset

    balance = dataset.export(run, out, count=count, min_objective=min_objective, seed=seed)
    _tell({"dataset": str(out), **balance.as_dict()}, str(balance))


def baseline(
    config: Positional[Path],
    out: Positional[Path],
    *,
    overrides: Overrides,
    count: int | None = None,
    nearest_bin: bool = False,
    acknowledge_notice: bool = False,
) -> None:
    """Render plain random samples in the layout of `qdgs export`, for comparison.

    Args:
        config: TOML file; each of its values can be overridden by an option.
        out: folder of the dataset.
        count: images; the config's export.count if not given.
        nearest_bin: label images that no bin holds by the nearest one, instead of not at all.
        acknowledge_notice: go on where the config has a notice.
    """
    _require_acknowledged(overrides, acknowledge_notice)
    from qdgs_jax.datasets import export as dataset

    del config  # read into the overrides' defaults
    balance = dataset.baseline(
        overrides,
        out,
        count=count or overrides.export.count,
        seed=overrides.seed,
        nearest_bin=nearest_bin,
    )
    _tell({"dataset": str(out), **balance.as_dict()}, str(balance))


def train(
    config: Positional[Path | None] = None,
    *,
    overrides: RepairOverrides,
    train: Path | None = None,
    repair: Path | None = None,
    test: Path | None = None,
    group: str | None = None,
    out: Path | None = None,
    resume: bool = False,
) -> None:
    """Repair biased classifiers: the experiment of a config, or with your own folders of images.

    Args:
        config: TOML file; each of its values can be overridden by an option.
        train: instead of the experiment: class folders of images to train on.
        repair: class folders of images to go on with.
        test: class folders of images to test on, with a metadata.jsonl.
        group: column of the test's metadata.jsonl that names the groups to be fair to.
        out: folder of the results; runs/NAME-OF-THE-CONFIG or runs/train if not given.
        resume: go on with the results in that folder.
    """
    from qdgs_jax.emitters.cma_es import single_threaded_blas
    from qdgs_jax.evaluation import fairness
    from qdgs_jax.experiments.repair import experiment as repairs

    folder = out or Path("runs") / (config.stem if config else "train")
    if train or repair or test or group:
        if not (train and test and group):
            raise ConfigError("Folders need all of --train, --test and --group: add what lacks.")
        results = repairs.repair_folders(
            overrides, folder, train=train, repair=repair, test=test, group=group, resume=resume
        )
    elif overrides.search:
        single_threaded_blas()
        search = load_config(Path(overrides.search))
        results = repairs.run_experiment(overrides, search, folder, resume=resume)
    else:
        raise ConfigError(
            "Nothing to train on: name a config with `search`, or give --train, --test, --group."
        )
    _tell({"results": str(folder), **results, "table": fairness.table(results["rows"])}, "{table}")


def pretrain(
    model: Positional[Literal["vae", "clip"]], out: Positional[Path], *, seed: int = 0
) -> None:
    """Train a built-in model of the shapes domain anew.

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
    _tell({"model": str(out)}, "Written to {model}")


def _require_acknowledged(config: Config, acknowledged: bool) -> None:
    """Tells the config's notice, if it has one, to those who have not read it yet."""
    if config.notice and not acknowledged:
        raise ConfigError(f"{NOTICES[config.notice]} Go on with --acknowledge-notice.")


def _named_config(arguments: list[str]) -> Config:
    """The config file among the arguments; its values are the defaults of the options."""
    if arguments[:1] not in (["sample"], ["baseline"]):
        return _ANY_CONFIG
    named = [path for path in arguments[1:] if path.endswith(".toml")]
    first = [path for path in arguments[1:2] if not path.startswith("-")]
    return load_config(Path((named or first)[0])) if named or first else _ANY_CONFIG


def _named_repair_config(arguments: list[str]) -> RepairConfig:
    """The same for `train`, which can do without a file."""
    named = arguments[:1] == ["train"] and [
        path for path in arguments[1:2] if not path.startswith("-")
    ]
    return load_repair_config(Path(named[0])) if named else RepairConfig()


@contextlib.contextmanager
def _progress(generations: int) -> Iterator[Callable[[dict[str, float]], None] | None]:
    """A progress bar on a terminal; silence elsewhere (metrics.csv has it all)."""
    if not sys.stderr.isatty():
        yield None
        return
    with tqdm(total=generations, unit="gen", dynamic_ncols=True) as bar:
        before = {"evaluations": 0.0, "seconds": 0.0}

        def report(row: dict[str, float]) -> None:
            nonlocal before
            speed = (row["evaluations"] - before["evaluations"]) / max(
                row["seconds"] - before["seconds"], 1e-9
            )
            before = row
            if bar.n == 0:
                bar.initial = bar.n = int(row["generation"])  # a resumed run starts further on
            bar.set_postfix_str(
                f"{speed:.0f} eval/s, QD score {row['qd_score']:.0f}, "
                f"coverage {row['coverage']:.1%}",
                refresh=False,
            )
            bar.update(int(row["generation"]) - bar.n)

        yield report


def _tell(result: dict[str, Any], sentence: str) -> None:
    """The result in a sentence on a terminal, as one line of JSON elsewhere."""
    print(sentence.format(**result) if sys.stdout.isatty() else json.dumps(result))


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"qdgs: {message}", file=sys.stderr)
