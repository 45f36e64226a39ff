"""Tango's score bound on a drop of accuracy, from the questions on which the two models differ.

Source: Tango. Equivalence test and confidence interval for the difference in proportions for the paired-sample design.
Statistics in Medicine 1998. doi:10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B.
The score is normal only in the limit: at 200 questions and more, misses were 4 to 6 % at a level of 5 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtri

from pennyweight.budget import Terms
from pennyweight.errors import InvalidBudget
from pennyweight.methods.certification.admission import Array, admit
from pennyweight.promises import Validity


@dataclass(frozen=True, kw_only=True)
class Tango:
    """Approximate bound on the mean of -1, 0 and 1, for a number of independent questions fixed beforehand."""

    name: ClassVar[str] = "tango"
    paper: ClassVar[str] = "doi:10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B"
    needs: ClassVar[frozenset[str]] = frozenset()
    validity: ClassVar[Validity] = Validity(anytime=False, exact=False, scopes=frozenset({"source"}), values="ternary")

    def bound(
        self, x: Array, terms: Terms, alpha: float | None = None, *, documents: NDArray[np.int64] | None = None
    ) -> float:
        """Largest drop that the score test does not reject; 1 if nothing was seen.

        Args:
            x: 1 where only the reference is right, -1 where only the compressed model is, else 0 `[n]`.
            terms: the cap must not be below 1.
            alpha: error level, below 1/2; `terms.alpha` by default.
            documents: not used.

        Raises:
            InvalidMeasurement: a value is none of -1, 0 and 1.
            InvalidBudget: a level of 1/2 or more, a cap below 1, or a corpus.
        """
        x, alpha = admit(self, x, terms, alpha)
        if alpha >= 0.5:
            raise InvalidBudget(
                f"an error level of {alpha:g} is no upper bound", expected="alpha < 1/2", mend="0.05", site=self.name
            )
        n, worse, better = len(x), int((x > 0).sum()), int((x < 0).sum())
        # the estimate itself always solves the squared equation when no pair differs: start just above it
        start = (worse - better) / n + 1e-12 if n else 1.0
        if start >= 1:
            return 1.0
        z = -float(ndtri(alpha))

        def excess(drop: float) -> float:
            """Twice the score's numerator against its limit; positive while the drop is not rejected."""
            return worse - better - n * drop + z * _deviation(worse, better, n, drop)

        return min(float(brentq(excess, start, 1.0, xtol=1e-14)) + 1e-13, 1.0)


def _deviation(worse: int, better: int, n: int, drop: float) -> float:
    """Standard deviation of `worse - better` if the true drop is `drop`, at the likeliest share of improvements."""
    b = -worse - better + (2 * n - worse + better) * drop
    c = -better * drop * (1 - drop)
    improvements = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    return math.sqrt(max(n * (2 * improvements + drop * (1 - drop)), 0.0))
