"""Clopper and Pearson's bound on a share: invert the exact distribution of the count.

Source: Clopper, Pearson. The use of confidence or fiducial limits illustrated in the case of the binomial. Biometrika
1934. doi:10.1093/biomet/26.4.404. For a finite population the count is hypergeometric and is inverted the same way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, gammaln

from pennyweight.budget import Terms
from pennyweight.methods.certification.admission import Array, admit
from pennyweight.promises import Validity

ROUNDING = 1e-7  # share of the level by which a probability from log-gamma functions may be off; millions of units


@dataclass(frozen=True, kw_only=True)
class ClopperPearson:
    """Exact bound on a share, for a number of units fixed beforehand: flips, disagreements, windows above a cap."""

    name: ClassVar[str] = "clopper-pearson"
    paper: ClassVar[str] = "doi:10.1093/biomet/26.4.404"
    needs: ClassVar[frozenset[str]] = frozenset()
    validity: ClassVar[Validity] = Validity(
        anytime=False, exact=True, scopes=frozenset({"corpus", "source"}), values="binary"
    )

    def bound(
        self, x: Array, terms: Terms, alpha: float | None = None, *, documents: NDArray[np.int64] | None = None
    ) -> float:
        """Upper bound of the share of ones; 1 if nothing was seen, the share itself after a full pass.

        Args:
            x: zeros and ones `[n]`, as many as were planned.
            terms: population is used; the cap must not be below 1.
            alpha: error level; `terms.alpha` by default.
            documents: not used.

        Raises:
            InvalidMeasurement: a value is neither 0 nor 1.
            InvalidBudget: a level that means nothing, or a cap below 1.
        """
        x, alpha = admit(self, x, terms, alpha)
        n, ones = len(x), round(float(x.sum()))
        if terms.population is not None:
            return _most_ones(ones, n, terms.population, alpha) / terms.population
        return 1.0 if ones == n else float(betaincinv(ones + 1, n - ones, 1 - alpha))


def _most_ones(ones: int, n: int, population: int, alpha: float) -> int:
    """Largest number of ones in the population with which so few among n are not rarer than alpha."""
    low, high = ones, population - n + ones  # the least and the most that what was seen leaves possible
    while low < high:  # the probability falls with the number: halve the range
        middle = (low + high + 1) // 2
        if _probability_of_at_most(ones, n, population, middle) > alpha * (1 - ROUNDING):
            low = middle
        else:
            high = middle - 1
    return low


def _probability_of_at_most(ones: int, n: int, population: int, total: int) -> float:
    """P(at most `ones` ones among n) when `total` of the population are ones."""
    k = np.arange(max(0, n - (population - total)), ones + 1, dtype=np.float64)
    logs = _choose(total, k) + _choose(population - total, n - k) - _choose(population, np.array(float(n)))
    return math.fsum(np.exp(logs))


def _choose(n: int, k: Array) -> Array:
    return np.asarray(gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(n - k + 1.0))
