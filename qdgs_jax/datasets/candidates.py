"""Which images may show an identity, and which of them do, as networks of faces see them."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from qdgs_jax import blazeface, faceres, sharding
from qdgs_jax.bins import draw_evenly
from qdgs_jax.datasets import copies
from qdgs_jax.datasets.offsets import STEPS
from qdgs_jax.errors import QDGSError
from qdgs_jax.generators import Generator
from qdgs_jax.models import tfjs
from qdgs_jax.typing import Array, Images, Latents, Params

SAME_PERSON = 0.566
"""Least cosine of the embeddings of one person's aligned faces: 1 % of ORL's pairs of two people
and 98.8 % of its pairs of one person are above it (`benchmarks/faceres_on_orl.py`)."""
LEAST = 2
"""Images of an identity: with one there is nothing to recognise."""
ROWS = 1024
"""Identities that are compared with all others at once."""

Program = Callable[[Params, np.ndarray], Any]


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Images of elites and of their offsets, identity after identity; each begins with its best."""

    identity: np.ndarray  # [C] int
    row: np.ndarray  # [C] int, among the elites
    step: np.ndarray  # [C] int, position in STEPS

    def __len__(self) -> int:
        return len(self.identity)

    def take(self, kept: np.ndarray) -> "Candidates":
        """Those at these positions."""
        return Candidates(self.identity[kept], self.row[kept], self.step[kept])

    @property
    def first(self) -> np.ndarray:
        """Position of each identity's first image."""
        return np.flatnonzero(np.diff(self.identity, prepend=-1))

    def latents(self, elites: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Latents [C, D] of elites [n, D], moved along directions [2, D]."""
        moved: np.ndarray = elites[self.row] + STEPS[self.step] @ directions
        return moved.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Accepted:
    """The candidates that are shown, and what became of the others."""

    kept: Candidates
    """With identities numbered from 0."""
    without_face: int
    """Candidates, likewise the next."""
    as_others: int
    identities: int
    """Refused: the first image has no face, or fewer than `LEAST` are accepted."""
    embeddings: np.ndarray  # [n, E], unit, of the first image of each identity that is kept

    @property
    def alike(self) -> float:
        """Share of the pairs of identities whose first images look like one person."""
        own = self.embeddings
        parts = (own[i : i + ROWS] @ own.T > SAME_PERSON for i in range(0, len(own), ROWS))
        others = sum(int(part.sum()) for part in parts) - len(own)
        return others / max(len(own) * (len(own) - 1), 1)


class Look:
    """Latents -> probabilities of faces, the aligned faces, and their embeddings.

    All devices of the ambient mesh compute, each `chunk_size` latents at once.
    """

    def __init__(self, generator: Generator, params: Params, chunk_size: int) -> None:
        """Loads the networks; raises a ConfigError if `make assets` has not fetched them."""
        loaded = {module.NAME: module.load() for module in (blazeface, faceres)}
        weights = {name: params for name, (_, params) in loaded.items()}
        self.networks: dict[str, tfjs.Graph] = {name: graph for name, (graph, _) in loaded.items()}
        self.params = sharding.on_all_devices({**weights, "generator": params})
        self._generator = generator
        self._chunk_size = chunk_size
        self._look = self.program(self._all)

    def faces(self, params: Params, latents: Latents) -> tuple[Array, Images]:
        """Probabilities [N] and aligned faces [N, 112, 112, 3] of latents [N, D]."""
        return self.faces_on(params, blazeface.canvases(self.images(params, latents)))

    def images(self, params: Params, latents: Latents) -> Images:
        """Images of latents [N, D]."""
        return self._generator.render(params["generator"], latents)

    def faces_on(self, params: Params, canvases: Images) -> tuple[Array, Images]:
        """Probabilities [N] and aligned faces [N, 112, 112, 3] of canvases [N, 256, 256, 3]."""
        graph = self.networks[blazeface.NAME]
        found, points = blazeface.find(graph, params[blazeface.NAME], canvases)
        return found, blazeface.align(canvases, points)

    def _all(self, params: Params, latents: Latents) -> tuple[Array, Images, Array]:
        found, faces = self.faces(params, latents)
        graph = self.networks[faceres.NAME]
        return found, faces, faceres.embed(graph, params[faceres.NAME], faces)

    def chunks(self, latents: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
        """What is seen of latents [n, D], a part of the rows at a time."""
        yield from self.mapped(self._look, latents)

    @property
    def at_once(self) -> int:
        """Rows that all devices compute at once."""
        return self._chunk_size * sharding.devices()

    def program(self, function: Callable[[Params, Array], tuple[Array, ...]]) -> Program:
        """Compiles a function of the weights and of rows, for `mapped`."""
        return jax.jit(sharding.rowwise(function, self._chunk_size))

    def mapped(self, program: Program, rows: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
        """Results of a program for rows [n, ...], a part of them at a time."""
        size = self.at_once
        for start in range(0, len(rows), size):
            some = np.minimum(np.arange(start, start + size), len(rows) - 1)
            results = jax.device_get(program(self.params, rows[some]))
            yield tuple(each[: len(rows) - start] for each in results)


def cluster(
    bin: np.ndarray, latents: np.ndarray, objective: np.ndarray, asked: list[int], seed: int
) -> Candidates:
    """Draws up to twice as many elites of each bin as identities are asked of it, and divides them
    into half as many by k-means."""
    from sklearn.cluster import KMeans  # type: ignore[import-untyped]  # slow to import

    rows = draw_evenly(bin, len(asked), 2 * sum(asked), seed, repeat=False)
    members: list[np.ndarray] = []
    for number, share in enumerate(asked):
        here = rows[bin[rows] == number]
        k = min(share, -(-len(here) // 2))
        if k:
            found = KMeans(k, n_init=10, random_state=seed).fit_predict(latents[here])
            clusters = [here[found == each] for each in range(k)]
            members += [each[np.argsort(-objective[each], kind="stable")] for each in clusters]
    sizes = [len(STEPS) * len(each) for each in members]
    return Candidates(
        identity=np.arange(len(members)).repeat(sizes),
        row=np.concatenate(members).repeat(len(STEPS)),
        step=np.tile(np.arange(len(STEPS)), sum(map(len, members))),
    )


def accept(look: Look, candidates: Candidates, latents: np.ndarray) -> Accepted:
    """Keeps candidates that show a face, that of their identity's first image.

    Args:
        latents: of the candidates, [C, D].

    Raises:
        QDGSError: none is kept.
    """
    seen = look.chunks(latents[candidates.first])
    own = np.concatenate([embeddings for _, _, embeddings in seen])  # [identities, E]
    found, cosines = [], []
    for start, (probability, _, embeddings) in _numbered(look.chunks(latents)):
        persons = own[candidates.identity[start : start + len(embeddings)]]
        found.append(probability >= blazeface.FOUND)
        cosines.append(np.sum(persons * embeddings, axis=1))
    has_face, is_same = np.concatenate(found), np.concatenate(cosines) > SAME_PERSON
    accepted = has_face & is_same
    sizes = np.bincount(candidates.identity, accepted).astype(int)
    whole = (sizes >= LEAST) & has_face[candidates.first]
    if not whole.any():
        raise QDGSError(
            f"No identity has {LEAST} images with a face: look at the images of `qdgs export`, and "
            "search again for better ones."
        )
    kept = candidates.take(np.flatnonzero(accepted & whole[candidates.identity]))
    return Accepted(
        dataclasses.replace(kept, identity=np.arange(whole.sum()).repeat(sizes[whole])),
        without_face=int((~has_face).sum()),
        as_others=int((has_face & ~is_same).sum()),
        identities=int((~whole).sum()),
        embeddings=own[whole],
    )


def _numbered(
    chunks: Iterator[tuple[np.ndarray, ...]],
) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
    """Chunks with the positions of their first rows."""
    start = 0
    for chunk in chunks:
        yield start, chunk
        start += len(chunk[0])


def distinct(embeddings: np.ndarray, same_person: float = SAME_PERSON) -> np.ndarray:
    """Which of unit embeddings [n, E] are of another person than all those before that are, [n]."""
    return copies.distinct(embeddings, math.sqrt(2 - 2 * same_person))  # |a - b|^2 = 2 - 2 cos
