"""Hedged capital: bet on both sides of a candidate mean with bets that follow the spread seen so far.

Source: Waudby-Smith, Ramdas. Estimating means of bounded random variables by betting. JRSS B 2024. arXiv:2010.09686,
section 4; without replacement as in the same authors' arXiv:2006.04347 (NeurIPS 2020).
Departs from it: a one-sided claim uses only the capital that wins when the mean is lower, at the full level. The
larger of the two capitals is also large when the mean lies far above the candidate, which is no evidence for the claim.

The bets do not depend on the candidate m, only their truncation at share / (cap - m) does. Each factor is then
nondecreasing in m: its derivative is the bet, or share (cap - x) / (cap - m)^2 where the bet is truncated. So the
capital is monotone in m and the bound is one root; no grid of candidates is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pennyweight.budget import Terms
from pennyweight.errors import InvalidMethod
from pennyweight.methods.certification.admission import (
    Array,
    admit,
    conditional_means,
    mirrored,
    reachable,
    ruled_out,
    smallest_rejected,
)
from pennyweight.methods.certification.predictable_plug_in import plug_in_bets
from pennyweight.promises import Validity


@dataclass(frozen=True, kw_only=True)
class HedgedCapital:
    """Anytime-valid bound from adaptive bets; needs no pilot, but a floor as well as a cap.

    Args:
        share: of the largest bet that cannot lose everything, in (0, 1).
        theta: share of the level of an `interval` spent on its lower end, in (0, 1); a one-sided bound has no use
            for it.
    """

    name: ClassVar[str] = "hedged-capital"
    paper: ClassVar[str] = "arXiv:2010.09686"
    needs: ClassVar[frozenset[str]] = frozenset()
    validity: ClassVar[Validity] = Validity(
        anytime=True, exact=True, scopes=frozenset({"corpus", "source"}), values="bounded"
    )
    share: float = 0.5
    theta: float = 0.5

    def __post_init__(self) -> None:
        if not (0 < self.share < 1 and 0 < self.theta < 1):
            raise InvalidMethod(
                f"share {self.share:g} and theta {self.theta:g} are no shares",
                expected="both between 0 and 1",
                site=self.name,
            )

    def bound(
        self, x: Array, terms: Terms, alpha: float | None = None, *, documents: NDArray[np.int64] | None = None
    ) -> float:
        """Smallest mean that the degradations rejected at any time so far (the running minimum of the bounds).

        Args:
            x: degradations in the order they were drawn `[n]`.
            terms: floor, cap and population are used.
            alpha: error level; `terms.alpha` by default.
            documents: not used.

        Raises:
            InvalidMeasurement: values that are not finite or below the floor, or terms without a floor.
            InvalidBudget: a level or a cap that means nothing.
        """
        x, alpha = admit(self, x, terms, alpha)
        high = reachable(x, terms)
        if len(x) == 0 or len(x) == terms.population:
            return high
        bets = _bets(x, terms, alpha)
        # no bet against a mean below every value has won, so the search may start there
        return smallest_rejected(
            lambda mean: float(self._log_capital(x, bets, terms, mean).max()) + math.log(alpha), float(x.min()), high
        )

    def path(self, x: Array, terms: Terms) -> Array:
        """Log of the capital against `mean >= margin` after each unit `[n]`; infinite once the margin is impossible.

        Raises:
            InvalidMeasurement, InvalidBudget: as for `bound`.
        """
        x, alpha = admit(self, x, terms, None)
        path = self._log_capital(x, _bets(x, terms, alpha), terms, terms.margin)
        path[ruled_out(x, terms.margin, terms)] = math.inf
        return path

    def interval(self, x: Array, terms: Terms, alpha: float | None = None) -> tuple[float, float]:
        """Two-sided interval at every stopping time, where max(theta K+, (1 - theta) K-) stays below 1 / alpha.

        That is: K+ below 1 / (theta alpha), which is a lower end at that level, and K- below 1 / ((1 - theta) alpha).

        Raises:
            InvalidMeasurement, InvalidBudget: as for `bound`.
        """
        x, alpha = admit(self, x, terms, alpha)
        lower = -self.bound(-x, mirrored(terms), self.theta * alpha)
        return lower, self.bound(x, terms, (1 - self.theta) * alpha)

    def _log_capital(self, x: Array, bets: Array, terms: Terms, mean: float) -> Array:
        means = conditional_means(x, mean, terms.population)
        room = np.maximum(terms.cap - means, np.finfo(np.float64).tiny)  # above zero unless the mean is ruled out
        path: Array = np.add.accumulate(np.log1p(np.minimum(bets, self.share / room) * (means - x)))
        return path


def _bets(x: Array, terms: Terms, alpha: float) -> Array:
    """Bets in one over the unit of the degradation `[n]`."""
    width = terms.cap - (terms.cap if terms.floor is None else terms.floor)
    return plug_in_bets((terms.cap - x) / width, alpha)[0] / width
