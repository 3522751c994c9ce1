"""Face recognition, pre-trained on identities of elites, on random identities, and not at all.

A folder of results, from which an interrupted call resumes:

plan.json                           configs, checksums, device and versions
search-SEED/                        the run of the arm `qdgs`
results/seed-SEED-ARM.safetensors   aligned faces of its identities; ARM `test`: of the test's
results/seed-SEED-ARM.json          figures of an arm
weights/seed-SEED-ARM/              network.safetensors, and checkpoints until there are figures
results.json                        figures of all seeds and arms, and their differences
table.md                            the same as tables
"""

import dataclasses
import functools
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from qdgs_jax import files, generators, provenance, sharding
from qdgs_jax.config import Config
from qdgs_jax.errors import ConfigError
from qdgs_jax.evaluation.results import claimed_results, remembered, remembered_json
from qdgs_jax.experiments.face_recognition import people, report
from qdgs_jax.experiments.face_recognition.arms import run_arm
from qdgs_jax.experiments.face_recognition.config import FacePretrainingConfig
from qdgs_jax.experiments.face_recognition.people import People
from qdgs_jax.experiments.face_recognition.studio import Studio
from qdgs_jax.experiments.searches import finished_run


def run_experiment(
    config: FacePretrainingConfig,
    search: Config,
    out: Path,
    *,
    resume: bool = False,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Pre-trains a network on each arm's identities, and tests who it takes for one person.

    Args:
        config: arms, trainings and tests; its `search` is not read.
        search: the search, to whose seed each seed is added. Its generator makes all faces.
        out: folder to write, or with `resume` to continue in.
        allow_code: whether generator, encoder and measures may be functions of other packages.

    Returns:
        The contents of results.json.

    Raises:
        ConfigError: the folder holds other results, `make assets` has not been run, or there are
            too few real people or images.
        QDGSError: a search was interrupted, there are no faces, a file of the folder is damaged, or
            no space.
    """
    with sharding.local_devices():
        studio = make_studio(config, search, allow_code=allow_code)
        real = people.read_real(studio, Path(config.real)) if config.real else None
        planned = plan(config, search, studio, real)
        with claimed_results(out, planned, resume=resume):
            experiment = _Experiment(config, search, studio, real, out, allow_code)
            seeds = range(config.seed, config.seed + config.seeds)
            rows = [row for seed in seeds for row in experiment.run_seed(seed)]
            results = {
                **planned, **provenance.environment(), **provenance.occasion(),
                **report.summarise(rows), "rows": rows,
            }  # fmt: skip
            files.write(out / "table.md", table(results))
            files.write(out / "results.json", json.dumps(results, indent=1) + "\n")
    return results


def table(results: dict[str, Any]) -> str:
    """The contents of results.json as tables."""
    return report.table(results)


def make_studio(
    config: FacePretrainingConfig, search: Config, *, allow_code: bool = False
) -> Studio:
    """Loads the search's generator, and the networks that find faces."""
    options = dataclasses.asdict(search.generator)
    generator, params = generators.load(**options, allow_code=allow_code)
    chunk = search.search.chunk_size
    return Studio(generator, params, 16 if chunk == "auto" else chunk, config.network.image_size)


def plan(
    config: FacePretrainingConfig, search: Config, studio: Studio, real: People | None
) -> dict[str, Any]:
    """The contents of plan.json: both configs without paths, and checksums.

    Raises:
        ConfigError: the images of the real people to fine-tune on may not fill a batch.
    """
    values = dataclasses.asdict(config)
    del values["search"], values["real"]
    of_real = None
    if real:
        least = people.split(real, config.tuned, config.seed)[0]
        if len(least.labels) < config.tuning.batch_size:
            raise ConfigError(
                f"{len(least.labels)} images of real people to fine-tune on are fewer than a batch "
                f"of {config.tuning.batch_size}: lower tuning.batch_size."
            )
        pixels = hashlib.sha256(real.images.tobytes() + real.labels.tobytes()).hexdigest()
        of_real = {**real.about, "sha256": pixels}
    models = {name: graph.sha256 for name, graph in studio.look.networks.items()}
    planned = {
        "config": values, "search": dataclasses.asdict(search),
        "models": {"generator": studio.generator.sha256, **models}, "real": of_real,
    }  # fmt: skip
    plain: dict[str, Any] = json.loads(json.dumps(planned))  # lists in place of tuples
    return plain


@dataclasses.dataclass(frozen=True)
class _Experiment:
    config: FacePretrainingConfig
    search: Config
    studio: Studio
    real: People | None
    out: Path
    allow_code: bool

    def run_seed(self, seed: int) -> list[dict[str, Any]]:
        """Figures of each arm, from their files or found now."""
        test = self._people(seed, "test")
        found: dict[str, People] = {
            arm: self._people(seed, arm) for arm in self.config.arms if arm != "none"
        }
        count = min((each.size for each in found.values()), default=0)  # as many in all arms
        rows = []
        for arm in self.config.arms:
            identities = found[arm].take(np.arange(count)) if arm in found else None
            folder = self.out / f"weights/seed-{seed}-{arm}"
            run = functools.partial(run_arm, self.config, seed, identities, test, self.real, folder)
            row = remembered_json(self.out / f"results/seed-{seed}-{arm}.json", run)
            for checkpoints in ("pre-training", "fine-tuning"):
                shutil.rmtree(folder / checkpoints, ignore_errors=True)
            rows.append({"seed": seed, "arm": arm, **row})
        return rows

    def _people(self, seed: int, name: str) -> People:
        path = self.out / f"results/seed-{seed}-{name}.safetensors"
        return remembered(path, People, functools.partial(self._find_people, seed, name))

    def _find_people(self, seed: int, name: str) -> People:
        config = self.config
        if name == "test":
            return people.to_test(
                self.studio, count=config.test_identities, images=config.images, seed=seed
            )
        options = {"count": config.identities, "images": config.images, "seed": seed}
        if name == "random":
            return people.of_random(self.studio, **options)
        folder = self.out / f"search-{seed}"
        search = dataclasses.replace(self.search, seed=self.search.seed + seed)
        run = finished_run(search, folder, f"search {seed}", allow_code=self.allow_code)
        return people.of_elites(self.studio, folder, run, **options)
