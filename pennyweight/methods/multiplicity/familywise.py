"""What the methods of this room share: their contract, the checks of what they are given, and p-values from e-values.

A p-value is a number with P(p <= a) <= a for every a when its null hypothesis is true. An e-value is a nonnegative
number with mean at most 1 then, so by Markov's inequality 1/E is a p-value; for an e-process, by Ville's, so is one
over the largest value it ever had.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pennyweight.errors import InvalidBudget, InvalidMeasurement


class Familywise(Protocol):
    """A rule that rejects hypotheses and rarely a true one."""

    def rejected(self, p_values: NDArray[np.float64], alpha: float) -> NDArray[np.bool_]:
        """Which of K hypotheses are rejected, with family-wise error at most alpha."""


def checked_p_values(p_values: ArrayLike, *, site: str, dimensions: int = 1) -> NDArray[np.float64]:
    """P-values as float64, checked; the argument itself when nothing had to be converted, so it is not written to.

    Raises:
        InvalidMeasurement: none are given, one is NaN or outside [0, 1], or the shape has other dimensions.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != dimensions or p.size == 0:
        raise InvalidMeasurement(
            f"p-values of shape {list(p.shape)}",
            expected=f"one p-value a hypothesis, in an array of {dimensions} dimension{'s' if dimensions > 1 else ''}",
            mend="give the p-value of at least one hypothesis",
            site=site,
        )
    wrong = ~((p >= 0) & (p <= 1))  # written so that NaN is wrong
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise InvalidMeasurement(
            f"p-value {first} is {p.flat[first]:g}",
            expected="numbers from 0 to 1",
            mend="an e-value E becomes a p-value as min(1, 1/E)",
            site=site,
        )
    return p


def check_alpha(alpha: float, *, site: str) -> None:
    """Check an error level.

    Raises:
        InvalidBudget: it is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise InvalidBudget(
            f"an error level of {alpha:g} means nothing",
            expected="a number between 0 and 1, such as 0.05",
            mend="use one minus the confidence",
            site=site,
        )


def p_from_e(e_values: ArrayLike) -> NDArray[np.float64]:
    """P-values min(1, 1/E) from e-values, of any shape; an infinite e-value gives 0.

    Raises:
        InvalidMeasurement: an e-value is NaN or negative.
    """
    e = np.asarray(e_values, dtype=np.float64)
    if not (e >= 0).all():
        raise InvalidMeasurement(
            "an e-value is NaN or negative",
            expected="numbers from 0 to infinity",
            mend="take the wealth of a betting process, not its logarithm; p_from_log_e takes the logarithm",
            site="e-value",
        )
    return 1 / np.maximum(e, 1.0)


def p_from_log_e(log_e_values: ArrayLike) -> NDArray[np.float64]:
    """P-values min(1, exp(-log E)) from logarithms of e-values, of any shape; no e-value is too large.

    Raises:
        InvalidMeasurement: a logarithm is NaN.
    """
    log_e = np.asarray(log_e_values, dtype=np.float64)
    if np.isnan(log_e).any():
        raise InvalidMeasurement(
            "the logarithm of an e-value is NaN", expected="numbers, or an infinity of either sign", site="e-value"
        )
    return np.exp(-np.maximum(log_e, 0.0))
