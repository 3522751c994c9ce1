"""CMA-ES in full, for spaces of a few dimensions up to a few hundred.

The strategy of pyribs, which the published results of the CMA-ME family rest on: Hansen's tutorial
(arXiv 1604.00772) with weights over a *varying* number of parents. Two departures from the tutorial
are part of those results and are kept: the rank-one term carries c1 twice, and the path p_c is not
divided by sigma. Equation numbers are the tutorial's.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct

from qdgs_jax.typing import Array


@dataclass(frozen=True)
class CMAES:
    """Sizes and step size of the strategy.

    Attributes:
        dimension: n, length of a solution.
        batch_size: lambda, solutions a generation; at least 2.
        sigma0: initial step size.
    """

    dimension: int
    batch_size: int
    sigma0: float

    @property
    def evaluations_between_eigendecompositions(self) -> float:
        """0.5 n lambda / ((c1 + cmu) n^2), for half the batch as parents."""
        parents = self.batch_size // 2
        raw = [math.log(parents + 0.5) - math.log(i) for i in range(1, parents + 1)]
        mueff = sum(raw) ** 2 / sum(w**2 for w in raw)
        n = self.dimension
        c1 = 2 / ((n + 1.3) ** 2 + mueff)
        cmu = min(1 - c1, 2 * (mueff - 2 + 1 / mueff) / ((n + 2) ** 2 + mueff))
        return 0.5 * n * self.batch_size / ((c1 + cmu) * n**2)


class CMAESState(struct.PyTreeNode):
    """Search distribution N(mean, sigma^2 C) with its evolution paths."""

    mean: Array  # [n]
    sigma: Array  # []
    covariance: Array  # [n, n]
    path_c: Array  # [n]
    path_sigma: Array  # [n]
    eigenbasis: Array  # [n, n] B, of the covariance when it was last decomposed
    eigenvalues: Array  # [n] diag(D^2), likewise
    evaluations: Array  # [] int32, since the last restart
    decomposed_at: Array  # [] int32, evaluations at the last decomposition


def init(es: CMAES, mean: Array) -> CMAESState:
    """A round distribution of step size sigma0 about `mean` [n]."""
    n, dtype = es.dimension, mean.dtype
    return CMAESState(
        mean=mean,
        sigma=jnp.asarray(es.sigma0, dtype),
        covariance=jnp.eye(n, dtype=dtype),
        path_c=jnp.zeros(n, dtype),
        path_sigma=jnp.zeros(n, dtype),
        eigenbasis=jnp.eye(n, dtype=dtype),
        eigenvalues=jnp.ones(n, dtype),
        evaluations=jnp.zeros((), jnp.int32),
        decomposed_at=jnp.zeros((), jnp.int32),
    )


def decompose(es: CMAES, state: CMAESState) -> CMAESState:
    """Renews the eigendecomposition of a batch of strategies where enough evaluations passed.

    Takes states with a leading axis, because under `vmap` the skipping would become a select.
    """
    gap = es.evaluations_between_eigendecompositions
    due = state.evaluations > state.decomposed_at + gap

    def renew(state: CMAESState) -> CMAESState:
        C = jnp.maximum(state.covariance, state.covariance.mT)  # forces symmetry
        eigenvalues, eigenbasis = jnp.linalg.eigh(C, symmetrize_input=False)
        return state.replace(
            covariance=jnp.where(due[:, None, None], C, state.covariance),
            eigenbasis=jnp.where(due[:, None, None], eigenbasis, state.eigenbasis),
            eigenvalues=jnp.where(due[:, None], jnp.abs(eigenvalues), state.eigenvalues),
            decomposed_at=jnp.where(due, state.evaluations, state.decomposed_at),
        )

    return jax.lax.cond(due.any(), renew, lambda state: state, state)


def ask(state: CMAESState, normals: Array) -> Array:
    """Solutions [N, n] from standard normal draws [N, n]: m + sigma B D z (eq. 38-40)."""
    scaled = state.sigma * normals * jnp.sqrt(state.eigenvalues)
    return state.mean + jnp.matmul(scaled, state.eigenbasis.T, precision="highest")


def recombination_weights(batch_size: int, parents: Array, dtype: jnp.dtype) -> Array:
    """Weights [batch_size] of ranked solutions, positive for the first `parents`, of sum 1.

    w_i ~ log(parents + 1/2) - log(i). With no parent all are 0.
    """
    rank = jnp.arange(1, batch_size + 1, dtype=dtype)
    raw = jnp.where(rank <= parents, jnp.log(parents + 0.5) - jnp.log(rank), 0)
    return raw / jnp.where(parents > 0, raw.sum(), 1)


def tell(es: CMAES, state: CMAESState, ranked: Array, parents: Array) -> CMAESState:
    """Adapts to `ranked` solutions [batch_size, n], best first, of which the first are parents.

    Without a parent only the evaluations are counted.
    """
    n = es.dimension
    evaluations = state.evaluations + es.batch_size
    w = recombination_weights(es.batch_size, parents, ranked.dtype)
    mueff = 1 / jnp.where(parents > 0, (w**2).sum(), 1)  # eq. 8

    cc = (4 + mueff / n) / (n + 4 + 2 * mueff / n)  # eq. 56
    cs = (mueff + 2) / (n + mueff + 5)  # eq. 55
    c1 = 2 / ((n + 1.3) ** 2 + mueff)  # eq. 57
    cmu = jnp.minimum(1 - c1, 2 * (mueff - 2 + 1 / mueff) / ((n + 2) ** 2 + mueff))  # eq. 58
    damping = 1 + 2 * jnp.maximum(0, jnp.sqrt((mueff - 1) / (n + 1)) - 1) + cs  # eq. 55

    mean = jnp.matmul(w, ranked, precision="highest")  # eq. 42
    y = mean - state.mean
    inverse_root = _inverse_root(state)
    path_sigma = (1 - cs) * state.path_sigma + jnp.sqrt(
        cs * (2 - cs) * mueff
    ) / state.sigma * jnp.matmul(inverse_root, y, precision="highest")  # eq. 43
    length = (path_sigma**2).sum() / n
    started = 1 - (1 - cs) ** (2 * evaluations / es.batch_size)
    hsig = (length / started < 2 + 4 / (n + 1)).astype(mean.dtype)
    path_c = (1 - cc) * state.path_c + hsig * jnp.sqrt(cc * (2 - cc) * mueff) * y  # eq. 45

    deviations = ranked - state.mean
    rank_mu = jnp.matmul((w[:, None] * deviations).T, deviations, precision="highest")
    c1a = c1 * (1 - (1 - hsig) * cc * (2 - cc))
    covariance = (
        (1 - c1a - cmu) * state.covariance
        + c1**2 * jnp.outer(path_c, path_c)  # tutorial: c1
        + cmu * rank_mu / state.sigma**2
    )  # eq. 47
    sigma = state.sigma * jnp.exp(jnp.minimum(1, cs / damping * (length - 1) / 2))  # eq. 44

    adapted = state.replace(
        mean=mean, sigma=sigma, covariance=covariance, path_c=path_c, path_sigma=path_sigma
    )
    return jax.tree.map(lambda new, old: jnp.where(parents > 0, new, old), adapted, state).replace(
        evaluations=evaluations
    )


def should_stop(state: CMAESState) -> Array:
    """Whether the distribution is degenerate: ill-conditioned, or too small to move."""
    largest, smallest = state.eigenvalues.max(), state.eigenvalues.min()
    return (largest > 1e14 * smallest) | (state.sigma * jnp.sqrt(largest) < 1e-11)


def _inverse_root(state: CMAESState) -> Array:
    """C^(-1/2) of the decomposed covariance, [n, n]."""
    B = state.eigenbasis
    root = jnp.matmul(B / jnp.sqrt(state.eigenvalues), B.T, precision="highest")
    return jnp.maximum(root, root.T)  # forces symmetry
