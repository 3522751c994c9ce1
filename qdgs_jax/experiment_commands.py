"""The commands `qdgs experiment NAME`: a config file names a search, whose notice comes first."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from qdgs_jax.config import Config, load_config, require_acknowledged
from qdgs_jax.errors import ConfigError
from qdgs_jax.experiments.annotated_faces.config import AnnotatedFacesConfig
from qdgs_jax.experiments.face_recognition.config import FacePretrainingConfig
from qdgs_jax.experiments.repair.config import RepairConfig
from qdgs_jax.named_config import EXPERIMENTS, named_config
from qdgs_jax.terminal import literal, tell


@dataclasses.dataclass(frozen=True)
class Options:
    """Those of all experiments."""

    out: Path | None = None
    """Folder of the results; runs/NAME-OF-THE-CONFIG if not given."""
    resume: bool = False
    """Continue with the results in that folder."""
    acknowledge_notice: bool = False
    """Continue although there is a notice."""
    allow_code: bool = False
    """Import models and measures that are functions of other packages or of the working folder."""

    def search_of(self, config: Path, overrides: Any, notice: str = "") -> Config:
        """The search that an experiment's config names, once its notice is acknowledged.

        Args:
            notice: that of the experiment, where its search has none.
        """
        if not overrides.search:
            raise ConfigError(f"{config} names no `search`: add one.")
        search = load_config(Path(overrides.search))
        require_acknowledged(search.notice or notice, self.acknowledge_notice)
        return search

    def run(self, config: Path, overrides: Any, search: Config, experiment: Any) -> None:
        """Runs an experiment, a module, and prints its tables."""
        folder = self.out or Path("runs") / config.stem
        results = experiment.run_experiment(
            overrides, search, folder, resume=self.resume, allow_code=self.allow_code
        )
        text = experiment.table(results)
        tell({"results": str(folder), **results, "table": text}, "{table}")


Given = Annotated[Options, arg(name="")]


def repair(
    config: Positional[Path],
    *,
    overrides: Annotated[RepairConfig, arg(name="")],
    options: Given = Options(),
) -> None:
    """Repair classifiers trained on colour-biased drawings by fine-tuning (QDGS, shapes domain).

    Args:
        config: TOML file; each of its values can be overridden by an option.
    """
    search = options.search_of(config, overrides)
    from qdgs_jax.experiments.repair import experiment  # jax is slow to import

    options.run(config, overrides, search, experiment)


def annotated_faces(
    config: Positional[Path],
    *,
    overrides: Annotated[AnnotatedFacesConfig, arg(name="")],
    options: Given = Options(),
) -> None:
    """Find faces of all groups by rejection, by guidance and by a search (arXiv 2308.03495).

    Args:
        config: TOML file; each of its values can be overridden by an option.
    """
    search = options.search_of(config, overrides)
    from qdgs_jax.experiments.annotated_faces import experiment

    options.run(config, overrides, search, experiment)


def face_recognition(
    config: Positional[Path],
    *,
    overrides: Annotated[FacePretrainingConfig, arg(name="")],
    options: Given = Options(),
    dry_run: bool = False,
) -> None:
    """Pre-train face recognition on a search's identities and on random ones (QDGS, face domain).

    Args:
        config: TOML file; each of its values can be overridden by an option.
        dry_run: load, compile and time a few steps, tell what would be done and the memory and
            seconds that it takes, and write nothing.
    """
    search = options.search_of(config, overrides, notice="faces")
    if dry_run:
        from qdgs_jax.experiments.face_recognition import rehearsal

        found = rehearsal.rehearse(overrides, search, allow_code=options.allow_code)
        tell({"config": str(config), **found.as_dict()}, literal(str(found)))
        return
    from qdgs_jax.experiments.face_recognition import experiment

    options.run(config, overrides, search, experiment)


COMMANDS: dict[str, Callable[..., None]] = {
    "repair": repair,
    "annotated_faces": annotated_faces,
    "face_recognition": face_recognition,
}


def commands(arguments: list[str]) -> dict[str, Callable[..., None]]:
    """The commands by their names; a config file among the arguments of one is its defaults."""
    found: dict[str, Callable[..., None]] = {}
    for name, command in COMMANDS.items():
        kind = EXPERIMENTS[name]
        overrides = named_config(arguments, kind, f"experiment {name}") or kind()
        found[f"experiment {name}"] = functools.partial(command, overrides=overrides)
    return found
