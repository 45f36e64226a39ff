"""Alpha split: share one error level among K printed bounds, so that all of them hold together.

Source: Bonferroni's inequality with weights; Rosenthal, Rubin. Ensemble-Adjusted p Values. Psychological Bulletin 94,
1983. The chance that any bound is wrong is at most the sum of the chances of each, whatever their dependence. The
weights are fixed before the data are seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pennyweight.errors import InvalidMethod
from pennyweight.methods.multiplicity.familywise import check_alpha, checked_p_values


@dataclass(frozen=True, kw_only=True)
class AlphaSplit:
    """Give each of K claims a share of the error level, and test it at its share.

    Args:
        weights: what each claim gets, relative to the others, in the order of the claims; > 0, no unit. Without any,
            every claim gets the same, which is Bonferroni's test: p <= alpha/K, or for e-values E >= K/alpha.

    Raises:
        InvalidMethod: a weight that is not above zero and finite.
    """

    name: ClassVar[str] = "alpha-split"
    paper: ClassVar[str] = "Rosenthal and Rubin 1983, Psychological Bulletin 94(3), 540-541"
    needs: ClassVar[frozenset[str]] = frozenset()
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.weights:
            _checked_weights(self.weights)

    def split(self, total: float, weights: Sequence[float] | ArrayLike) -> NDArray[np.float64]:
        """Levels in proportion to the weights, with a sum that never exceeds the total, not even by rounding.

        Args:
            total: error level of all bounds together, in (0, 1).
            weights: one a bound `[K]`, > 0.

        Returns:
            The level of each bound `[K]`; the exact sum of these float64 numbers is at most `total`.

        Raises:
            InvalidBudget: the total is outside (0, 1).
            InvalidMethod: no weights, one that is not above zero and finite, or one that leaves a level of zero.
        """
        check_alpha(total, site=self.name)
        w = _checked_weights(weights)
        w = w / w.max()  # so that the sum of large weights stays finite
        shares: NDArray[np.float64] = total * (w / math.fsum(w))
        if not (shares > 0).all():
            raise InvalidMethod(
                f"claim {int(np.argmin(shares))} gets an error level of zero",
                expected="weights that float64 can tell from zero, next to the largest",
                mend="give this claim more weight, or do not print a bound for it",
                site=self.name,
            )
        excess = sum(map(Fraction, shares.tolist())) - Fraction(total)
        if excess > 0:  # a few last bits: the largest share gives them up
            largest = int(np.argmax(shares))
            target = Fraction(float(shares[largest])) - excess
            share = float(target)
            shares[largest] = share if Fraction(share) <= target else math.nextafter(share, 0.0)
        return shares

    def rejected(self, p_values: NDArray[np.float64], alpha: float) -> NDArray[np.bool_]:
        """Reject each hypothesis whose p-value is at most its own share. The weights go by position.

        Args:
            p_values: one a hypothesis `[K]`, in the order of `weights`.
            alpha: family-wise error level, in (0, 1).

        Returns:
            Whether each is rejected `[K]`.

        Raises:
            InvalidMeasurement: no p-values, or one that is NaN or outside [0, 1].
            InvalidBudget: alpha outside (0, 1).
            InvalidMethod: another number of weights than of p-values.
        """
        p = checked_p_values(p_values, site=self.name)
        if self.weights and len(self.weights) != len(p):
            raise InvalidMethod(
                f"{len(self.weights)} weights for {len(p)} claims",
                expected="one weight a claim, or none for equal shares",
                mend=f"give {len(p)} weights",
                site=self.name,
            )
        return p <= self.split(alpha, self.weights or np.ones(len(p)))


def _checked_weights(weights: Sequence[float] | ArrayLike) -> NDArray[np.float64]:
    w = np.asarray(weights, dtype=np.float64)
    if w.ndim != 1 or len(w) == 0 or not ((w > 0) & (w < math.inf)).all():
        raise InvalidMethod(
            f"{w.tolist()} are not weights",
            expected="finite numbers above zero, one a claim",
            mend="leave out a claim that shall get nothing",
            site=AlphaSplit.name,
        )
    return w
