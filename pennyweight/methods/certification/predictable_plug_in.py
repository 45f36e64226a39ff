"""Predictable plug-in empirical Bernstein: a closed form that adapts to the spread and holds at every stopping time.

Source: Waudby-Smith, Ramdas. Estimating means of bounded random variables by betting. JRSS B 2024. arXiv:2010.09686,
Theorem 2; without replacement as in the same authors' arXiv:2006.04347 (NeurIPS 2020).

With y = (cap - x) / (cap - floor) in [0, 1], bets l_i and running means m_i that know only the past, and
psi(l) = -log(1 - l) - l,

    log E_t = sum_i l_i (y_i - mu_i) - (y_i - m_{i-1})^2 psi(l_i),    mu_i = mu, or the mean of what is left,

is the log of a nonnegative supermartingale from 1 when mu is the mean of y (Fan's inequality). It is linear in mu, so
the bound is a quotient of two sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pennyweight.budget import Terms
from pennyweight.errors import InvalidMethod
from pennyweight.methods.certification.admission import Array, admit, conditional_means, reachable, ruled_out
from pennyweight.promises import Validity


@dataclass(frozen=True, kw_only=True)
class PredictablePlugIn:
    """Anytime-valid bound in closed form, for values with a floor and a cap.

    Args:
        largest: bets are at most this much, in (0, 1); the range of the values is 1.
    """

    name: ClassVar[str] = "predictable-plug-in"
    paper: ClassVar[str] = "arXiv:2010.09686"
    needs: ClassVar[frozenset[str]] = frozenset()
    validity: ClassVar[Validity] = Validity(
        anytime=True, exact=True, scopes=frozenset({"corpus", "source"}), values="bounded"
    )
    largest: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.largest < 1:
            raise InvalidMethod(
                f"a largest bet of {self.largest:g} is out of range", expected="0 < largest < 1", site=self.name
            )

    def bound(
        self, x: Array, terms: Terms, alpha: float | None = None, *, documents: NDArray[np.int64] | None = None
    ) -> float:
        """Smallest of the upper bounds after each unit so far: each holds, and they hold together.

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
        y, bets, price, width = self._plan(x, terms, alpha)
        # log E at the mean 0 of y, and what one unit of mean takes off it
        offset = np.add.accumulate(bets * (y - conditional_means(y, 0.0, terms.population)) - price)
        slope = np.add.accumulate(bets * _share(len(y), terms.population))
        lower = float(((offset + math.log(alpha)) / slope).max())
        return min(high, terms.cap - width * lower)

    def path(self, x: Array, terms: Terms) -> Array:
        """Log of the e-process against `mean >= margin` after each unit `[n]`; infinite once the margin is impossible.

        Raises:
            InvalidMeasurement, InvalidBudget: as for `bound`.
        """
        x, alpha = admit(self, x, terms, None)
        y, bets, price, width = self._plan(x, terms, alpha)
        means = conditional_means(y, (terms.cap - terms.margin) / width, terms.population)
        path: Array = np.add.accumulate(bets * (y - means) - price)
        path[ruled_out(x, terms.margin, terms)] = math.inf
        return path

    def _plan(self, x: Array, terms: Terms, alpha: float) -> tuple[Array, Array, Array, float]:
        """Mirror the degradations into [0, 1] `[n]`; with bets `[n]`, their price `[n]`, and the range of a unit."""
        width = terms.cap - (terms.cap if terms.floor is None else terms.floor)
        y = (terms.cap - x) / width
        bets, means = plug_in_bets(y, alpha)
        bets = np.minimum(bets, self.largest)
        return y, bets, (y - means) ** 2 * (-np.log1p(-bets) - bets), width


def plug_in_bets(y: Array, alpha: float) -> tuple[Array, Array]:
    """Bets `[n]` and running means `[n]` for values in [0, 1], each from the values before it alone.

    The bets shrink like 1 / sqrt(t log t), which spends the level evenly over all times. One made-up value, with mean
    1/2 and variance 1/4, stands before the first.
    """
    n = np.arange(1, len(y) + 1)
    means = (0.5 + np.add.accumulate(y)) / (n + 1)
    variances = (0.25 + np.add.accumulate((y - means) ** 2)) / (n + 1)
    past_means, past_variances = np.concatenate(([0.5], means)), np.concatenate(([0.25], variances))
    bets = np.sqrt(-2 * math.log(alpha) / (past_variances[:-1] * n * np.log1p(n)))
    return bets, past_means[:-1]


def _share(count: int, population: int | None) -> Array:
    """How much the mean of what is left moves with the mean of the whole, before each unit `[n]`."""
    return np.ones(count) if population is None else population / (population - np.arange(count, dtype=np.float64))
