"""Alpha ledger: the level that is left for the next opening of a held-out text that was opened before.

Source: alpha spending by a convergent series, as in Foster, Stine. Alpha-Investing. JRSS-B 70, 2008; the series is
1 / k^2, not 1 / 2^k: both leave less each time, but the tenth opening still has a hundredth of the level rather than a
thousandth. The chances of a false certificate add up over openings to the sum of the levels.

Where that sum is exact: in scope corpus always, provided that every opening draws a random order of the units of its
own: it is then tested rightly given all that earlier openings showed. In scope source the units are the same each time,
so it is exact when candidates were listed beforehand, or the next was chosen only because the earlier ones failed; a
candidate tuned on the scores of an earlier opening is beyond what any ledger can repair, and wants fresh text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pennyweight.errors import InvalidMethod
from pennyweight.methods.multiplicity.familywise import check_alpha, checked_p_values

RESERVED = 6 / math.pi**2  # so that the whole series adds up to one


@dataclass(frozen=True, kw_only=True)
class AlphaLedger:
    """Give the k-th opening a share of the level that falls as 1/k^2.

    Args:
        reserve: keep some back from the first opening on. False: the first opening gets the whole level, the k-th
            total/k^2, and all openings together stay below 1.645 times the total. True: the k-th gets 6/(pi^2 k^2) of
            it, and all openings together stay below the total.
    """

    name: ClassVar[str] = "alpha-ledger"
    paper: ClassVar[str] = "Foster and Stine 2008, JRSS-B 70(2), 429-444"
    needs: ClassVar[frozenset[str]] = frozenset()
    reserve: bool = False

    def level(self, total: float, opening: int) -> float:
        """Error level of one opening.

        Args:
            total: error level of one certificate, in (0, 1).
            opening: its number, counted from 1.

        Raises:
            InvalidBudget: the total is outside (0, 1).
            InvalidMethod: an opening below 1.
        """
        check_alpha(total, site=self.name)
        self._check_count(opening, least=1)
        return total * (RESERVED if self.reserve else 1.0) / opening**2

    def spent(self, total: float, openings: int) -> float:
        """Sum of the levels of the first `openings` openings; 0 for none.

        Raises:
            InvalidBudget: the total is outside (0, 1).
            InvalidMethod: fewer than no openings.
        """
        check_alpha(total, site=self.name)
        self._check_count(openings, least=0)
        return math.fsum(self.level(total, opening) for opening in range(1, openings + 1))

    def rejected(self, p_values: NDArray[np.float64], alpha: float) -> NDArray[np.bool_]:
        """Reject the k-th of K openings, in the order they were made, at 6 alpha / (pi^2 k^2).

        Here alpha covers all openings together, as everywhere in this room, so both settings test alike.

        Args:
            p_values: one an opening `[K]`, the earliest first.
            alpha: family-wise error level, in (0, 1).

        Returns:
            Whether each is rejected `[K]`.

        Raises:
            InvalidMeasurement: no p-values, or one that is NaN or outside [0, 1].
            InvalidBudget: alpha outside (0, 1).
        """
        p = checked_p_values(p_values, site=self.name)
        check_alpha(alpha, site=self.name)
        return p <= alpha * RESERVED / np.arange(1, len(p) + 1) ** 2

    def _check_count(self, count: int, *, least: int) -> None:
        if count < least:
            raise InvalidMethod(
                f"opening {count} is not one",
                expected=f"a whole number of at least {least}",
                mend="count openings from 1",
                site=self.name,
            )
