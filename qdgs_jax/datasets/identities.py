"""Elites of faces -> identities: a folder of aligned faces for each, as face recognition reads it.

An identity is a cluster of elites of one bin, each at nine latent offsets (Chang et al. 2024, face
domain). An image belongs to it only if a network of faces finds a face and takes it for the person
of the identity's first image.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from qdgs_jax import files, folders, sharding
from qdgs_jax.bins import bins_of, shares, with_bins
from qdgs_jax.config import BinConfig, Config, load_bins
from qdgs_jax.datasets import image_folder
from qdgs_jax.datasets.candidates import (
    SAME_PERSON,
    Accepted,
    Candidates,
    Look,
    accept,
    cluster,
)
from qdgs_jax.datasets.export import (
    Renderer,
    assign_elites,
    elite_columns,
    load_generator,
    require_numbers,
)
from qdgs_jax.datasets.identity_card import identity_card
from qdgs_jax.datasets.image_folder import ImageTable
from qdgs_jax.datasets.manifest import MANIFEST, PARTIAL_MANIFEST
from qdgs_jax.datasets.offsets import LENGTH, STEPS, find_directions
from qdgs_jax.datasets.plan import make_header, make_table
from qdgs_jax.errors import QDGSError
from qdgs_jax.generators import Generator
from qdgs_jax.keys import make_key
from qdgs_jax.runs.results import Elites, load_run
from qdgs_jax.typing import Params

REPORT = "identities.json"
RANDOM = 1024
"""Random latents whose norm is measured."""


@dataclasses.dataclass(frozen=True)
class Identities:
    """What identities.json holds."""

    asked: int
    made: int
    images: int
    images_of_each: tuple[int, float, int]
    """Least, median and most."""
    refused_without_face: int
    """Images of elites and offsets in which no face was found."""
    refused_as_others: int
    """Images that look like another person than the identity's first."""
    refused_identities: int
    """Their first image has no face, or too few others are accepted."""
    alike: float
    """Share of the pairs of identities whose first images look like one person."""
    bins: tuple[dict[str, Any], ...]
    """`name`, and identities `asked` and `made`, of each bin."""
    written: int = 0
    """Images that this call wrote; the others existed already. Not in identities.json."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """For people."""
        low, median, high = self.images_of_each
        told = f"{self.made} identities of {self.asked} that were asked for"
        told += f", with {low} to {high} images each (median {median:g})"
        told += f"; {self.images} images, {self.written} of them new"
        told += f". Refused: {self.refused_as_others} images that look like another person, "
        told += f"{self.refused_without_face} without a face; identities with too few images left: "
        told += (
            f"{self.refused_identities}. Of pairs of identities, {self.alike:.1%} look like one "
        )
        told += "person"
        if lacking := [f"{b['name']} ({b['made']})" for b in self.bins if b["made"] < b["asked"]]:
            told += f". Bins that lack some: {', '.join(lacking)}"
        return f"{told}."


def make_identities(
    run: str | Path,
    out: str | Path,
    *,
    count: int = 100,
    min_objective: float | None = None,
    seed: int = 0,
    bins: Sequence[BinConfig] | str | Path | None = None,
    generator: tuple[Generator, Params] | None = None,
    allow_code: bool = False,
) -> Identities:
    """Renders identities, evenly over the bins of a run, as an ImageFolder with provenance.

    In each bin, up to twice its share of `count` elites are drawn and divided into half as many
    identities by k-means of their latents. An identity's first image is its best elite; its others
    are its elites and their offsets by two directions (`offsets.find_directions`) that are accepted
    as the same person. The same arguments give the same bytes; a call resumes an interrupted one,
    but chooses all images again.

    Args:
        run: folder of a run over a generator of faces.
        out: folder to write: new, or of a call with the same arguments.
        count: identities.
        min_objective: elites below it are left out; the run's `export.min_objective` by default.
        seed: of the draw, of k-means and of the random latents that are compared with.
        bins, generator, allow_code: as in `export`.

    Raises:
        ConfigError: a bin or a number is impossible, or `make assets` has not been run.
        QDGSError: no run in `run`, too few elites, no face in any, other files in `out`, or no
            space.
    """
    run, out = Path(run), Path(out)
    require_numbers(count, seed)
    folders.claim(out, MANIFEST, PARTIAL_MANIFEST, holds="a dataset")
    loaded = load_run(run)
    config, elites = loaded.config, loaded.elites
    if bins is not None:
        given = load_bins(bins) if isinstance(bins, str | Path) else bins
        config = with_bins(config, given)
    regions, asked = bins_of(config), shares(count, len(bins_of(config)))
    floor = config.export.min_objective if min_objective is None else min_objective
    bin, _ = assign_elites(run, loaded, regions, floor)
    source, params = load_generator(run, loaded, generator, allow_code)
    with sharding.local_devices():
        look = Look(source, params, config.search.chunk)
        candidates = cluster(bin, elites.latents, elites.objective, asked, seed)
        directions = offset_directions(
            look, source, elites.latents[np.unique(candidates.row)], seed
        )
        accepted = accept(look, candidates, candidates.latents(elites.latents, directions))
        kept = accepted.kept
        header = make_header(
            config,
            loaded.summary,
            method="identities: elites of a quality-diversity search and their latent offsets",
            count=count,
            seed=seed,
            min_objective=floor,
            archive_sha256=files.sha256(run / "archive.safetensors"),
            networks={name: graph.sha256 for name, graph in look.networks.items()},
            same_person=SAME_PERSON,
            offset_length=round(float(np.linalg.norm(directions[0])), 4),
            plan_sha256=_sha256(kept.identity, kept.row, kept.step, directions),
        )
        report = _report(accepted, regions, asked, bin[kept.row[kept.first]])
        if image_folder.claim(out, header):
            return report
        table = _table(config, header, regions, source, elites, kept, bin)
        latents = kept.latents(elites.latents, directions)
        render = _renderer(look, latents, config.search.chunk)
        counts = report.as_dict()
        del counts["written"]
        texts = {
            REPORT: json.dumps(counts, indent=1) + "\n",
            "README.md": identity_card(header, counts, table),
        }
        written = image_folder.write(
            out, header, table, render, chunk_size=render.size, texts=texts
        )
    return dataclasses.replace(report, written=written)


def offset_directions(
    look: Look, generator: Generator, latents: np.ndarray, seed: int
) -> np.ndarray:
    """The directions [2, D] of offsets of latents [n, D]; see `offsets.find_directions`.

    Args:
        seed: of the random latents whose norm sets the length.

    Raises:
        QDGSError: there are fewer than three latents.
    """
    if len(latents) < 3:
        raise QDGSError(
            f"{len(latents)} elites are too few for directions between them: search longer, or "
            "widen the bins."
        )
    random = generator.sample(make_key(seed, "norm of random latents"), RANDOM)
    length = LENGTH * float(jnp.sqrt(jnp.mean(jnp.sum(random**2, axis=1))))

    def seen(latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _, faces, embeddings = map(np.concatenate, zip(*look.chunks(latents), strict=True))
        return faces, embeddings

    return find_directions(seen, latents, length=length)


def _sha256(*arrays: np.ndarray) -> str:
    """Of a plan: a call that chooses other images does not continue a folder."""
    return hashlib.sha256(b"".join(each.tobytes() for each in arrays)).hexdigest()


def _report(
    accepted: Accepted, bins: Sequence[BinConfig], asked: list[int], bin: np.ndarray
) -> Identities:
    """The report; `bin` is that of each identity."""
    sizes = np.bincount(accepted.kept.identity)
    return Identities(
        asked=sum(asked),
        made=len(sizes),
        images=len(accepted.kept),
        images_of_each=(int(sizes.min()), float(np.median(sizes)), int(sizes.max())),
        refused_without_face=accepted.without_face,
        refused_as_others=accepted.as_others,
        refused_identities=accepted.identities,
        alike=round(accepted.alike, 4),
        bins=tuple(
            {"name": each.name, "asked": share, "made": int((bin == number).sum())}
            for number, (each, share) in enumerate(zip(bins, asked, strict=True))
        ),
    )


def _table(
    config: Config,
    header: dict[str, Any],
    bins: Sequence[BinConfig],
    generator: Generator,
    elites: Elites,
    kept: Candidates,
    bin: np.ndarray,
) -> ImageTable:
    """The table of images, whose labels are identities; `bin` is that of each elite."""
    columns = elite_columns(generator, elites, kept.row)
    table = make_table(
        config, header, bins, bin=bin[kept.row], classes=generator.classes, **columns
    )
    made = len(kept.first)
    return dataclasses.replace(
        table,
        labels=tuple(f"{number:0{max(6, len(str(made)))}d}" for number in range(made)),
        label=kept.identity,
        others={"offset_u": STEPS[kept.step, 0], "offset_v": STEPS[kept.step, 1]},
        whole=True,
    )


def _renderer(look: Look, latents: np.ndarray, chunk_size: int) -> Renderer:
    """Renders the aligned faces of latents [C, D]."""

    def chunk(start: int, size: int) -> np.ndarray:
        return latents[np.minimum(np.arange(start, start + size), len(latents) - 1)]

    return Renderer(lambda *given: look.faces(*given)[1], look.params, chunk, chunk_size)
