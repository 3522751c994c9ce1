"""CMA-ES with a full covariance, for spaces of a few dimensions up to a few hundred.

The strategy of pyribs, on which published results of the CMA-ME family rest: Hansen's tutorial
(arXiv 1604.00772) with weights over a *varying* number of parents. Two departures from the tutorial
are part of those results and are kept: the rank-one term carries c1 twice, and the path p_c is not
divided by sigma. Equation numbers are the tutorial's.

The eigendecomposition of C is most of the work in a hundred dimensions. Any factor of C gives the
same distribution; a Cholesky factor costs a twentieth, and rotates the path p_sigma a little
(Krause et al., "CMA-ES with Optimal Covariance Update and Storage Complexity", NIPS 2016).
"""

import functools
import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import scipy.linalg  # noqa: F401  # loads the BLAS that XLA uses
import threadpoolctl  # type: ignore[import-untyped]
from flax import struct

from qdgs_jax.emitters import select
from qdgs_jax.emitters.normals import standard_normal
from qdgs_jax.sharding import rowwise
from qdgs_jax.typing import Array, Key

Factors = Literal["eigen", "cholesky"]
_CALLS = 16  # of LAPACK in a program, at most


class CMAESState(struct.PyTreeNode):
    """Search distributions N(mean, sigma^2 C) of E emitters, with their evolution paths."""

    mean: Array  # [E, n]
    sigma: Array  # [E]
    covariance: Array  # [E, n, n] C
    path_c: Array  # [E, n]
    path_sigma: Array  # [E, n]
    basis: Array  # [E, n, n] B of C = B D^2 B', of the covariance when it was last decomposed
    variances: Array  # [E, n] diag(D^2), likewise
    evaluations: Array  # [E] int32, since the last restart
    decomposed_at: Array  # [E] int32, evaluations at the last decomposition


@dataclass(frozen=True)
class CMAES:
    """A strategy for each of E emitters; see `Strategy` in `qdgs_jax.emitters`.

    Attributes:
        batch_size: B, solutions of an emitter in a generation; at least 2.
        sigma0: initial step size.
        factors: of B D^2 B': `eigen`: B orthogonal, as in pyribs; `cholesky`: B triangular with a
            unit diagonal. The latter's ratio of variances bounds C's condition from below.
    """

    batch_size: int
    sigma0: float
    factors: Factors = "eigen"

    def init(self, mean: Array) -> CMAESState:
        """Isotropic distributions of step size sigma0 about `mean` [E, n]."""
        E, n = mean.shape
        return CMAESState(
            mean=mean,
            sigma=jnp.full(E, self.sigma0, mean.dtype),
            covariance=jnp.tile(jnp.eye(n, dtype=mean.dtype), (E, 1, 1)),
            path_c=jnp.zeros_like(mean),
            path_sigma=jnp.zeros_like(mean),
            basis=jnp.tile(jnp.eye(n, dtype=mean.dtype), (E, 1, 1)),
            variances=jnp.ones_like(mean),
            evaluations=jnp.zeros(E, jnp.int32),
            decomposed_at=jnp.zeros(E, jnp.int32),
        )

    def ask(self, state: CMAESState, key: Key) -> tuple[CMAESState, Array]:
        """Solutions [E, B, n]."""
        E, n = state.mean.shape
        shape = (E, self.batch_size, n)
        return self.ask_with_normals(state, standard_normal(key, shape, state.mean.dtype))

    def ask_with_normals(self, state: CMAESState, normals: Array) -> tuple[CMAESState, Array]:
        """`ask`, with the standard normal draws [E, B, n] given: m + sigma B D z (eq. 38-40)."""
        state = self.decompose(state)
        scale = state.sigma[:, None] * jnp.sqrt(state.variances)
        steps = jnp.matmul(normals * scale[:, None], state.basis.mT, precision="highest")
        return state, state.mean[:, None] + steps

    def tell(self, state: CMAESState, solutions: Array, order: Array, parents: Array) -> CMAESState:
        """Updates by `solutions` [E, B, n], as asked; without a parent, only counts them.

        Args:
            order: [E, B], rows of the solutions, best first.
            parents: [E], number of parents, which are the best solutions.
        """
        adapted = jax.vmap(self._adapt)(
            state.replace(evaluations=state.evaluations + self.batch_size),
            solutions,
            recombination_weights(order, parents, solutions.dtype),
        )
        return select(parents > 0, adapted, state.replace(evaluations=adapted.evaluations))

    def should_stop(self, state: CMAESState) -> Array:
        """Whether a distribution is degenerate: ill-conditioned, or too small to move; [E].

        pyribs' condition of 1e14 is close to what float64 resolves; float32 resolves less.
        """
        largest, smallest = state.variances.max(axis=-1), state.variances.min(axis=-1)
        condition = min(1e14, 0.5 / float(jnp.finfo(largest.dtype).eps))
        return (largest > condition * smallest) | (state.sigma * jnp.sqrt(largest) < 1e-11)

    def _adapt(self, state: CMAESState, solutions: Array, w: Array) -> CMAESState:
        """One emitter's update by its solutions [B, n] of weights [B]."""
        n = solutions.shape[-1]
        mueff = 1 / (w**2).sum()  # eq. 8
        cc = (4 + mueff / n) / (n + 4 + 2 * mueff / n)  # eq. 56
        cs = (mueff + 2) / (n + mueff + 5)  # eq. 55
        c1, cmu = _learning_rates(n, mueff)
        damping = 1 + 2 * jnp.maximum(0, jnp.sqrt((mueff - 1) / (n + 1)) - 1) + cs  # eq. 55

        deviations = solutions - state.mean[None]
        step = jnp.matmul(w, deviations, precision="highest")  # eq. 42
        whitened = self._whitened(state, step)
        path_sigma = (1 - cs) * state.path_sigma + (
            jnp.sqrt(cs * (2 - cs) * mueff) / state.sigma * whitened
        )  # eq. 43
        length = (path_sigma**2).sum() / n
        started = 1 - (1 - cs) ** (2 * state.evaluations / self.batch_size)
        hsig = (length / started < 2 + 4 / (n + 1)).astype(step.dtype)
        path_c = (1 - cc) * state.path_c + hsig * jnp.sqrt(cc * (2 - cc) * mueff) * step  # eq. 45

        rank_mu = jnp.matmul((w[:, None] * deviations).T, deviations, precision="highest")
        c1a = c1 * (1 - (1 - hsig) * cc * (2 - cc))
        covariance = (
            (1 - c1a - cmu) * state.covariance
            + c1**2 * jnp.outer(path_c, path_c)  # tutorial: c1
            + cmu / state.sigma**2 * rank_mu
        )  # eq. 47
        return state.replace(
            mean=state.mean + step,
            sigma=state.sigma * jnp.exp(jnp.minimum(1, cs / damping * (length - 1) / 2)),  # eq. 44
            covariance=covariance,
            path_c=path_c,
            path_sigma=path_sigma,
        )

    def _whitened(self, state: CMAESState, step: Array) -> Array:
        """C^-1/2 `step` [n]; by Cholesky factors up to a rotation, D^-1 B^-1 `step`."""
        deviations = jnp.sqrt(state.variances)
        if self.factors == "cholesky":
            whitened = jax.lax.linalg.triangular_solve(
                state.basis, step[:, None], left_side=True, lower=True, unit_diagonal=True
            )
            return whitened[:, 0] / deviations
        whitened = jnp.matmul(step, state.basis, precision="highest") / deviations
        return jnp.matmul(state.basis, whitened, precision="highest")

    def decompose(self, state: CMAESState) -> CMAESState:
        """Renews the factors of C for which enough evaluations have passed.

        0.5 n B / ((c1 + cmu) n^2) of them, for half the batch as parents. All emitters of a device
        share one condition, because under `vmap` skipping would become a select. If restarts have
        put them out of step, only a quarter or a half of them is decomposed.
        """
        return rowwise(lambda _, state: self._decompose(state))((), state)

    def _decompose(self, state: CMAESState) -> CMAESState:
        (E, n), parents = state.mean.shape, self.batch_size // 2
        raw = [math.log(parents + 0.5) - math.log(i) for i in range(1, parents + 1)]
        c1, cmu = _learning_rates(n, sum(raw) ** 2 / sum(w**2 for w in raw))
        gap = 0.5 * self.batch_size / ((c1 + cmu) * n)
        due = state.evaluations > state.decomposed_at + gap

        def renew(count: int, state: CMAESState) -> tuple[Array, Array]:
            # Those that are due come first.
            rows = slice(None) if count == E else jax.lax.top_k(due.astype(jnp.int32), count)[1]
            C = state.covariance[rows]
            C = jnp.maximum(C, C.mT)  # forces symmetry
            variances, basis = _ldl(C) if self.factors == "cholesky" else _eigh(C)
            # Below this is rounding error, which 1 / sqrt would blow up. In float32 coefficients
            # get there; in float64 the strategy stops before, see `should_stop`.
            floor = jnp.finfo(C.dtype).eps * variances.max(axis=-1, keepdims=True)
            variances = jnp.maximum(jnp.abs(variances), floor)
            renewed = (
                state.basis.at[rows].set(basis, unique_indices=True),
                state.variances.at[rows].set(variances, unique_indices=True),
            )
            return select(due, renewed, (state.basis, state.variances))

        def keep(state: CMAESState) -> tuple[Array, Array]:
            return state.basis, state.variances

        counts = sorted({max(1, E // 4), max(1, E // 2), E})
        basis, variances = jax.lax.switch(
            jnp.searchsorted(jnp.array([0, *counts]), due.sum()),
            [keep, *(functools.partial(renew, count) for count in counts)],
            state,
        )
        return state.replace(
            basis=basis,
            variances=variances,
            decomposed_at=jnp.where(due, state.evaluations, state.decomposed_at),
        )


def _eigh(C: Array) -> tuple[Array, Array]:
    """Eigenvalues [E, n] and eigenbases [E, n, n] of symmetric matrices [E, n, n].

    On a CPU, XLA may decompose a batch on one core, but runs separate calls in parallel. Before
    these, scipy's BLAS, which XLA calls, is limited to one thread for the rest of the process: with
    more threads it can hang. (Below LAPACK's block size of 32, BLAS does not thread.)
    """

    def one(C: Array) -> tuple[Array, Array]:
        eigenvalues, eigenbasis = jnp.linalg.eigh(C, symmetrize_input=False)
        return eigenvalues, eigenbasis

    def side_by_side(C: Array) -> tuple[Array, Array]:
        parts = [one(part) for part in jnp.array_split(C, min(len(C), _CALLS))]
        eigenvalues, eigenbases = zip(*parts, strict=True)
        return jnp.concatenate(eigenvalues), jnp.concatenate(eigenbases)

    if C.shape[-1] < 32:
        return one(C)
    _keep_blas_to_one_thread()
    return jax.lax.platform_dependent(C, cpu=side_by_side, default=one)


def _ldl(C: Array) -> tuple[Array, Array]:
    """Pivots [E, n] and unit triangular factors [E, n, n] of symmetric matrices [E, n, n].

    For a matrix that is not positive definite within rounding, all are 0, and `should_stop` is
    true.
    """
    L = jnp.linalg.cholesky(C, symmetrize_input=False)
    diagonal = jnp.diagonal(L, axis1=-2, axis2=-1)
    return jnp.nan_to_num(diagonal**2), jnp.nan_to_num(L / diagonal[:, None])


def _keep_blas_to_one_thread() -> None:
    """Sets scipy's BLAS to one thread; if scipy has none of its own, the BLAS that it shares."""
    libraries = threadpoolctl.ThreadpoolController().select(user_api="blas")
    paths = [info["filepath"] for info in libraries.info() if "scipy" in info["filepath"]]
    (libraries.select(filepath=paths) if paths else libraries).limit(limits=1)


def recombination_weights(order: Array, parents: Array, dtype: jnp.dtype) -> Array:
    """Weights of rows [E, B], of sum 1; the first `parents` [E] of `order` [E, B] are parents.

    The i-th best has w_i ~ log(parents + 1/2) - log(i). Without a parent all weights are 0.
    """
    rank = jnp.arange(1, order.shape[-1] + 1, dtype=dtype)[None]
    parents = parents[:, None]
    raw = jnp.where(rank <= parents, jnp.log(parents + 0.5) - jnp.log(rank), 0).astype(dtype)
    weights = raw / jnp.where(parents > 0, raw.sum(axis=-1, keepdims=True), 1)
    return jnp.put_along_axis(jnp.zeros_like(weights), order, weights, axis=-1, inplace=False)


def _learning_rates(n: int, mueff: Array | float) -> tuple[Array | float, Array]:
    """c1 and cmu of the covariance."""
    c1 = 2 / ((n + 1.3) ** 2 + mueff)  # eq. 57
    return c1, jnp.minimum(1 - c1, 2 * (mueff - 2 + 1 / mueff) / ((n + 2) ** 2 + mueff))  # eq. 58
