"""Cholesky's factor of an inverse, from the definition."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def upper_factor_of_inverse(matrix: Array) -> Array:
    """U with matrix⁻¹ = Uᵀ U, upper triangular with a positive diagonal; row by row (Cholesky–Banachiewicz)."""
    inverse = np.linalg.inv(matrix)
    n = len(inverse)
    lower = np.zeros((n, n))
    for i in range(n):
        for j in range(i + 1):
            rest = inverse[i, j] - sum(lower[i, k] * lower[j, k] for k in range(j))
            lower[i, j] = np.sqrt(rest) if i == j else rest / lower[j, j]
    return lower.T
