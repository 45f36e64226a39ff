"""Maurer and Pontil's empirical Bernstein bound: the spread seen, and a price for having had to estimate it.

Source: Maurer, Pontil. Empirical Bernstein bounds and sample variance penalization. COLT 2009. arXiv:0907.3740,
Theorem 4.
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
class MaurerPontil:
    """Exact bound for a number of independent units fixed beforehand, with the sample deviation s.

    mean + s sqrt(2 log(2 / alpha) / n) + 7 range log(2 / alpha) / (3 (n - 1)).
    """

    name: ClassVar[str] = "maurer-pontil"
    paper: ClassVar[str] = "arXiv:0907.3740"
    needs: ClassVar[frozenset[str]] = frozenset()
    validity: ClassVar[Validity] = Validity(anytime=False, exact=True, scopes=frozenset({"source"}), values="bounded")

    def bound(
        self, x: Array, terms: Terms, alpha: float | None = None, *, documents: NDArray[np.int64] | None = None
    ) -> float:
        """Upper bound of the mean; the cap with fewer than two units, which have no spread.

        Args:
            x: degradations `[n]`, as many as were planned.
            terms: floor and cap are used.
            alpha: error level; `terms.alpha` by default.
            documents: not used.

        Raises:
            InvalidMeasurement: values that are not finite or below the floor, or terms without a floor.
            InvalidBudget: a level or a cap that means nothing, or a corpus.
        """
        x, alpha = admit(self, x, terms, alpha)
        high, n = reachable(x, terms), len(x)
        if n < 2 or terms.floor is None:
            return high
        level = math.log(2 / alpha)
        spread = float(x.std(ddof=1)) * math.sqrt(2 * level / n)
        return min(high, math.fsum(x) / n + spread + 7 * (terms.cap - terms.floor) * level / (3 * (n - 1)))
