"""The factor GPTQ sweeps with: an upper triangular U with (gram + damping)⁻¹ = Uᵀ U."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pennyweight.errors import NotPositiveDefinite

LARGEST_DAMPING = 1.0  # as large as the mean of the diagonal: beyond it the sweep ignores the data altogether


@dataclass(frozen=True, eq=False)
class Factor:
    """U, and what it took to get it.

    Args:
        upper: U, float32, upper triangular, positive diagonal.
        damping: share of mean(diag(gram)) that was added to the diagonal in the end.
        attempts: factorisations tried; 1 means nothing was escalated.
    """

    upper: Float[Tensor, "n n"]
    damping: float
    attempts: int


def inverse_cholesky(gram: Float[Tensor, "n n"], damping: float, order: Int64[Tensor, " n"] | None = None) -> Factor:
    """Factor the inverse of the damped gram matrix, raising the damping tenfold as long as it has no factor.

    The first attempt is in float32; every later one in float64, so that damping is raised for the matrix's sake and not
    for the arithmetic's. Inputs that are never active (a zero on the diagonal) get the mean of the diagonal there:
    their columns then neither receive nor pass on any error. One matrix beside the argument is in memory.

    Args:
        gram: symmetric, mean of x xᵀ.
        damping: share of mean(diag(gram)) added to the diagonal, > 0.
        order: factor the matrix with rows and columns in this order; as they are, by default.

    Raises:
        NotPositiveDefinite: no factor even with the mean of the diagonal added in full, or gram is not finite.
    """
    diagonal = gram.diagonal()
    if not bool(torch.isfinite(diagonal).all()):
        raise NotPositiveDefinite(
            "the gram matrix holds NaN or infinite values",
            expected="finite calibration activations",
            mend="look at the calibration text and at the weights before this site",
        )
    alive = diagonal > 0
    level = float(diagonal[alive].double().mean()) if bool(alive.any()) else 1.0
    share, dtype, attempts = damping, torch.float32, 0
    while share <= LARGEST_DAMPING * (1 + 1e-9):
        attempts += 1
        upper = _factor(gram, order, dtype, share * level, level)
        if upper is not None:
            return Factor(upper.float(), share, attempts)
        if dtype == torch.float64:
            share *= 10
        dtype = torch.float64
    raise NotPositiveDefinite(
        f"the gram matrix has no Cholesky factor with damping up to {LARGEST_DAMPING:g} of its mean diagonal",
        expected="a symmetric positive semidefinite matrix from at least as many tokens as inputs",
        mend="give more calibration text, or choose round_to_nearest for the sites that read this edge",
    )


def damped(gram: Float[Tensor, "n n"], damping: float) -> Float[Tensor, "n n"]:
    """The matrix whose inverse `inverse_cholesky` factors with this damping, in float32."""
    matrix = gram.float().clone()
    diagonal = matrix.diagonal()
    alive = diagonal > 0
    level = float(diagonal[alive].double().mean()) if bool(alive.any()) else 1.0
    diagonal.add_((~alive).float() * level).add_(damping * level)
    return matrix


def _factor(gram: Tensor, order: Tensor | None, dtype: torch.dtype, added: float, level: float) -> Tensor | None:
    damped = gram.to(dtype, copy=True) if order is None else gram[order[:, None], order].to(dtype)
    diagonal = damped.diagonal()
    diagonal.add_((diagonal <= 0).to(dtype) * level).add_(added)
    # In place throughout: the matrix is symmetric, so its transpose is itself in the column order that LAPACK writes.
    factor = damped.mT
    info = torch.empty((), dtype=torch.int32)
    torch.linalg.cholesky_ex(factor, out=(factor, info))
    if int(info) != 0:
        return None
    torch.cholesky_inverse(factor, out=factor)
    torch.linalg.cholesky_ex(factor, upper=True, out=(factor, info))
    if int(info) != 0 or not bool(torch.isfinite(factor.sum())):
        return None
    return factor
