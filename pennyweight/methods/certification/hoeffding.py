"""Hoeffding's bound: the range and the number of units, nothing else.

Source: Hoeffding. Probability inequalities for sums of bounded random variables. JASA 1963.
doi:10.1080/01621459.1963.10500830. Theorem 2; Theorem 4 extends it to sampling without replacement.
It ignores the spread, so it needs about (range / deviation)^2 / 4 times the units of a bound that does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pennyweight.budget import Terms
from pennyweight.methods.certification.admission import Array, admit, reachable
from pennyweight.promises import Validity


@dataclass(frozen=True, kw_only=True)
class Hoeffding:
    """Exact bound for a number of units fixed beforehand; mean + range sqrt(log(1 / alpha) / (2 n))."""

    name: ClassVar[str] = "hoeffding"
    paper: ClassVar[str] = "doi:10.1080/01621459.1963.10500830"
    needs: ClassVar[frozenset[str]] = frozenset()
    validity: ClassVar[Validity] = Validity(
        anytime=False, exact=True, scopes=frozenset({"corpus", "source"}), values="bounded"
    )

    def bound(
        self, x: Array, terms: Terms, alpha: float | None = None, *, documents: NDArray[np.int64] | None = None
    ) -> float:
        """Upper bound of the mean; of a population, never above what it can still reach.

        Args:
            x: degradations `[n]`, as many as were planned.
            terms: floor, cap and population are used.
            alpha: error level; `terms.alpha` by default.
            documents: not used.

        Raises:
            InvalidMeasurement: values that are not finite or below the floor, or terms without a floor.
            InvalidBudget: a level or a cap that means nothing.
        """
        x, alpha = admit(self, x, terms, alpha)
        high = reachable(x, terms)
        if len(x) == 0 or terms.floor is None:
            return high
        error = (terms.cap - terms.floor) * math.sqrt(-math.log(alpha) / (2 * len(x)))
        return min(high, math.fsum(x) / len(x) + error)
