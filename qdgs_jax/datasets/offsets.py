"""Two directions of latents that change faces most, and whose they are least."""

from collections.abc import Callable

import numpy as np
import scipy.linalg

from qdgs_jax.typing import Array

RANK = 64
"""Principal components of the elites among which directions are sought, at most."""
ELITES = 8
"""Whose faces are compared."""
RIDGE = 1.0
"""Change of identity that is added to each direction's, relative to that of a mean component:
without it, directions win that change next to nothing."""
LENGTH = 0.15
"""Of an offset, relative to the root mean square norm of random latents; as in the paper's code."""
STEPS = np.array([(a, b) for a in (0, -1, 1) for b in (0, -1, 1)])
"""Steps along both directions [9, 2]; the first is none."""


def find_directions(
    look: Callable[[np.ndarray], tuple[Array | np.ndarray, Array | np.ndarray]],
    latents: np.ndarray,
    *,
    length: float,
) -> np.ndarray:
    """Two orthogonal directions [2, D] of this length, among the principal components of elites.

    With J and E the Jacobians of a face and of its embedding by the latent, the first is the u that
    maximises u^T A u / u^T (C + r I) u, where A and C are the means of J^T J and E^T E over some
    elites: the leading generalised eigenvector. The second is that among the directions orthogonal
    to the first. Products with the Jacobians are differences over two steps of this length, since
    it is such steps that must keep the identity, and generators without gradients have them too.

    Args:
        look: latents [N, D] -> faces [N, H, W, 3] and unit embeddings [N, E].
        latents: of elites [n, D], of at least 3 that differ.
    """
    _, _, components = np.linalg.svd(latents - latents.mean(axis=0), full_matrices=False)
    basis = components[: min(RANK, len(latents) - 1)]
    chosen = np.linspace(0, len(latents) - 1, min(ELITES, len(latents))).round().astype(int)
    image: np.ndarray = np.zeros((len(basis), len(basis)))
    identity = image.copy()
    for latent in latents[chosen]:
        ends = [look((latent + sign * length * basis).astype(latents.dtype)) for sign in (-1, 1)]
        faces, embeddings = (
            (np.asarray(high, np.float64) - np.asarray(low, np.float64)).reshape(len(basis), -1)
            for low, high in zip(*ends, strict=True)
        )
        image += faces @ faces.T
        identity += embeddings @ embeddings.T
    identity += RIDGE * np.trace(identity) / len(basis) * np.eye(len(basis))

    first = _leading(image, identity)
    others = scipy.linalg.null_space(first[None])  # [R, R - 1]
    second = others @ _leading(others.T @ image @ others, others.T @ identity @ others)
    return length * np.stack([first, second]) @ basis


def _leading(image: np.ndarray, identity: np.ndarray) -> np.ndarray:
    """The unit vector of the largest generalised eigenvalue, its largest entry positive."""
    _, vectors = scipy.linalg.eigh(image, identity)
    found = vectors[:, -1] / np.linalg.norm(vectors[:, -1])
    return found * np.sign(found[np.abs(found).argmax()])
