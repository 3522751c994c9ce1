"""People that networks are trained and tested on: synthetic identities, and real people."""

import contextlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qdgs_jax.bins import bins_of, shares
from qdgs_jax.datasets.candidates import Candidates, accept, cluster, distinct
from qdgs_jax.datasets.class_folders import list_folder
from qdgs_jax.datasets.export import assign_elites
from qdgs_jax.errors import ConfigError, QDGSError
from qdgs_jax.experiments.face_recognition.studio import Studio
from qdgs_jax.image_measures import TONES
from qdgs_jax.runs.results import Run

SPARE = 1.8
"""Identities that are tried for each that is wanted. Of 91 of random latents of `digiface-dcgan`,
53 are left: 10 have too few images of one person, and 28 look like another."""
TEST_SPARE = 2.0
"""The same of a class of skin tone, whose people look more alike."""
AT_ONCE = 2048
"""Random latents whose skin tone is read, until each class has enough for a test."""
MOST = 2**18
"""Of them, at most."""

NOBODY = "No class of skin tone has two identities to test on: use another generator."


class People(NamedTuple):
    """Aligned faces, person after person, and what is known of them."""

    images: np.ndarray  # [N, S, S, 3] uint8
    labels: np.ndarray  # [N] int, each person's number, ascending
    tones: np.ndarray  # [N] int, position in TONES of the person's first image; -1: not read
    about: dict[str, Any]
    """Figures of how they were found, as plain JSON values."""

    @property
    def size(self) -> int:
        """People."""
        return len(np.unique(self.labels))

    def take(self, people: np.ndarray) -> "People":
        """These people, by their numbers, numbered anew in their order."""
        starts = np.searchsorted(self.labels, people)
        ends = np.searchsorted(self.labels, people, side="right")
        parts = [np.arange(*each) for each in zip(starts, ends, strict=True)]
        rows, labels = np.concatenate(parts), np.arange(len(people)).repeat(ends - starts)
        return People(self.images[rows], labels, self.tones[rows], self.about)

    @property
    def tone_of(self) -> np.ndarray:
        """Tone of each person [size]."""
        return self.tones[np.unique(self.labels, return_index=True)[1]]


def make_people(
    studio: Studio,
    bin: np.ndarray,
    latents: np.ndarray,
    objective: np.ndarray,
    *,
    bins: int,
    count: int,
    images: int,
    seed: int,
    spare: float = SPARE,
) -> People:
    """Distinct identities with as many images each, of latents [n, D], evenly over bins.

    They are found as by `datasets.identities`: clusters of latents and their offsets, of which an
    embedding says that they show one person. An identity with fewer images, or that looks like one
    before it, is left out.

    Args:
        bin: of each latent [n], -1 for none.
        objective: [n]; an identity's first image is that of its best latent.
        count: people at most. The first ones are as even over bins as all are.
        spare: identities that are tried for each of them.

    Raises:
        QDGSError: nobody is found.
    """
    asked = shares(math.ceil(spare * count), bins)
    candidates = cluster(bin, latents, objective, asked, seed)
    accepted = accept(studio.look, candidates, candidates.latents(latents, studio.directions))
    kept = accepted.kept
    enough = np.bincount(kept.identity) >= images
    new = enough.copy()
    new[enough] = distinct(accepted.embeddings[enough])
    people = in_turns(np.flatnonzero(new), bin[kept.row[kept.first[new]]])[:count]
    if not len(people):
        raise QDGSError(
            f"None of {len(candidates.first)} identities has {images} images of one face: lower "
            "`images`, or search for better faces."
        )
    chosen = kept.take(draw_images(kept, people, images, seed))
    tones = studio.tones(latents[chosen.row[::images]])
    about = {
        "tried": len(candidates.first),
        "without_face": accepted.without_face, "as_others": accepted.as_others,
        "too_few_images": accepted.identities + int((~enough).sum()),
        "doubles": int(enough.sum() - new.sum()),
    }  # fmt: skip
    return People(
        studio.faces(chosen.latents(latents, studio.directions)),
        np.arange(len(people)).repeat(images), tones.repeat(images), about,
    )  # fmt: skip


def in_turns(people: np.ndarray, bin: np.ndarray) -> np.ndarray:
    """People [n], the first of each bin, the second of each, and so on."""
    turn = np.array([(bin[:place] == each).sum() for place, each in enumerate(bin)], int)
    return people[np.lexsort((bin, turn))]


def draw_images(kept: Candidates, people: np.ndarray, images: int, seed: int) -> np.ndarray:
    """Rows of each identity's first image and of others at random, as many of each."""
    random = np.random.default_rng(seed)
    rows = []
    for each in people:
        own = np.flatnonzero(kept.identity == each)
        rows += [own[:1], np.sort(random.choice(own[1:], images - 1, replace=False))]
    return np.concatenate(rows)


def of_elites(
    studio: Studio, folder: Path, run: Run, *, count: int, images: int, seed: int
) -> People:
    """Identities of a run's elites, evenly over its bins; `folder` is the run's."""
    config, elites = run.config, run.elites
    regions = bins_of(config)
    bin, _ = assign_elites(folder, run, regions, config.export.min_objective)
    return make_people(
        studio, bin, elites.latents, elites.objective,
        bins=len(regions), count=count, images=images, seed=seed,
    )  # fmt: skip


def of_random(studio: Studio, *, count: int, images: int, seed: int) -> People:
    """Identities of random latents."""
    tried = 2 * math.ceil(SPARE * count)
    latents = studio.sample(seed, "latents of random identities", tried)
    zeros = np.zeros(tried, int)
    return make_people(studio, zeros, latents, zeros, bins=1, count=count, images=images, seed=seed)


def to_test(studio: Studio, *, count: int, images: int, seed: int) -> People:
    """Identities of random latents that are not those of `of_random`, equally many of each class of
    skin tone, `count` at most."""
    wanted = 2 * math.ceil(TEST_SPARE * count)
    latents, tones = np.zeros((0, studio.generator.latent_size), np.float32), np.zeros(0, int)
    while np.bincount(tones, minlength=len(TONES)).min() < wanted and len(tones) < MOST:
        more = studio.sample(seed, f"latents to test on, from {len(tones)}", AT_ONCE)
        latents = np.concatenate([latents, more])
        tones = np.concatenate([tones, studio.tones(more)])
    found = []
    for tone in np.unique(tones):
        # Pairs are within a class, so its people must be distinct, and not those of all classes.
        bin = np.where(tones == tone, 0, -1)
        with contextlib.suppress(QDGSError):  # nobody in this class
            found.append(
                make_people(
                    studio, bin, latents, np.zeros(len(bin)),
                    bins=1, count=count, images=images, seed=seed, spare=TEST_SPARE,
                )
            )  # fmt: skip
    if not found:
        raise QDGSError(NOBODY)
    sizes = np.cumsum([0] + [each.size for each in found])
    joined = People(
        np.concatenate([each.images for each in found]),
        np.concatenate([start + each.labels for start, each in zip(sizes, found, strict=False)]),
        np.concatenate([each.tones for each in found]),
        {TONES[each.tones[0]]: {"made": each.size, **each.about} for each in found},
    )
    people = joined.take(equal_classes(joined.tone_of, count))
    shares_of = {tone: float((tones == each).mean()) for each, tone in enumerate(TONES)}
    return people._replace(about={**joined.about, "random_latents": shares_of})


def equal_classes(tone: np.ndarray, count: int) -> np.ndarray:
    """People [n] of given tones, as many of each class, at most `count`; of a class that has not
    two, none.

    Raises:
        QDGSError: no class has two.
    """
    found = [np.flatnonzero(tone == each) for each in range(len(TONES))]
    whole = [each for each in found if len(each) > 1]
    if not whole:
        raise QDGSError(NOBODY)
    least = min(count, *map(len, whole))
    return np.concatenate([each[:least] for each in whole])


def read_real(studio: Studio, folder: Path) -> People:
    """The faces of a folder of people; images in which none is found are left out.

    Raises:
        ConfigError: there are fewer than four people.
        QDGSError: an image cannot be read.
    """
    paths, names, _ = list_folder(folder)
    found, faces = studio.read(paths)
    known = sorted({name for name, has_face in zip(names, found, strict=True) if has_face})
    if len(known) < 4:
        raise ConfigError(
            f"{folder} shows the faces of {len(known)} people: four are needed to fine-tune on "
            "some and to test on others."
        )
    rows = np.flatnonzero(found)
    labels = np.searchsorted(known, np.array(names)[rows])
    order = np.argsort(labels, kind="stable")
    about = {"people": len(known), "without_face": int((~found).sum())}
    return People(faces[rows[order]], labels[order], np.full(len(rows), -1), about)


def split(people: People, share: float, seed: int) -> tuple[People, People]:
    """Some people, and all others: two at least on both sides."""
    order = np.random.default_rng(seed).permutation(people.size)
    some = min(max(round(share * len(order)), 2), len(order) - 2)
    return people.take(np.sort(order[:some])), people.take(np.sort(order[some:]))
