"""Planned mixture: bet that the mean degradation is below the margin; the wealth won is the evidence.

Source: Waudby-Smith, Ramdas. Estimating means of bounded random variables by betting. JRSS B 2024. arXiv:2010.09686.
Departs from it: the bets are constants chosen before the data (two planned from a pilot, the rest a dyadic net), mixed
by fixed weights, and they win on one side only. Constant bets make the wealth monotone in the candidate mean, so the
bound is one root and needs no grid of candidates; for independent units the wealth does not depend on their order.

For a candidate mean m and degradations x_i <= cap, each bet multiplies its wealth by

    1 + min(bet, 0.99 / (cap - m_i)) (m_i - x_i),    m_i = m, or the mean of what is left of a finite population.

Every factor is above zero and has conditional mean 1 when m is the true mean, so the mixture E_t is a nonnegative
martingale from 1, and P(E_t >= 1 / alpha at any t) <= alpha (Ville). Stopping whenever one likes costs nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pennyweight.budget import Terms
from pennyweight.errors import InvalidBudget, InvalidMeasurement
from pennyweight.methods.certification.admission import (
    SLACK,
    Array,
    admit,
    conditional_means,
    finite,
    reachable,
    smallest_rejected,
)
from pennyweight.promises import Validity

CHUNK = 8192  # units whose factors are in memory at once; the result does not depend on it


@dataclass(frozen=True, kw_only=True, eq=False)
class Wealth:
    """Wealth of the bets against one candidate mean, after the units seen so far. `update` returns a new one.

    Args:
        mean: the candidate; the bets win when degradations are below it.
        cap: degradations are counted up to this much.
        population: units in the population sampled without replacement (S1), or None for independent units (S2).
        largest: share of the largest bet that cannot lose everything.
        bets: `[bets]`, in one over the unit of the degradation.
        weights: share of the first wealth put on each bet `[bets]`; they add up to one.
        log_products: log wealth of each bet `[bets]`.
        total: sum of the capped degradations seen.
        count: units seen.
    """

    mean: float
    cap: float
    population: int | None
    largest: float
    bets: Array
    weights: Array
    log_products: Array
    total: float = 0.0
    count: int = 0

    @property
    def log_wealth(self) -> float:
        """Log E_t; infinity when the units seen rule the candidate mean out."""
        if self._ruled_out(self.total, self.count):
            return math.inf
        return float(_mix(self.log_products[:, None], self.weights)[0])

    def update(self, x: Array) -> Wealth:
        """Bet on more degradations `[n]`, in the order they were drawn.

        Raises:
            InvalidMeasurement: a value is not finite, or the population has fewer units left.
        """
        return self._play(x)[0]

    def path(self, x: Array) -> Array:
        """Log E after each of the degradations `[n]`; what `update` gives, one unit at a time."""
        return self._play(x)[1]

    def _play(self, x: Array) -> tuple[Wealth, Array]:
        x = np.minimum(finite(x), self.cap)
        if self.population is not None and self.count + len(x) > self.population:
            raise InvalidMeasurement(
                f"{self.count + len(x)} windows were scored of a population of {self.population}",
                expected="each window scored at most once",
                site="certification",
            )
        state, pieces = self, [np.empty(0)]
        for start in range(0, len(x), CHUNK):
            state, piece = state._play_chunk(x[start : start + CHUNK])
            pieces.append(piece)
        return state, np.concatenate(pieces)

    def _play_chunk(self, x: Array) -> tuple[Wealth, Array]:
        # accumulate adds from left to right, so the state does not depend on how the units were cut into batches
        totals = np.add.accumulate(np.concatenate(([self.total], x)))
        counts = self.count + np.arange(len(x) + 1)
        if self.population is None:
            means = np.full(len(x), self.mean)
        else:  # what is left must have this mean for the whole population to have `mean`
            means = (self.population * self.mean - totals[:-1]) / (self.population - counts[:-1])
        room = np.maximum(self.cap - means, np.finfo(np.float64).tiny)  # above zero unless the mean is ruled out
        safe = self.largest / room
        steps = np.empty((len(self.bets), len(x) + 1))
        steps[:, 0] = self.log_products
        steps[:, 1:] = np.log(1.0 + np.minimum(self.bets[:, None], safe) * (means - x))
        logs = np.add.accumulate(steps, axis=1)
        path = _mix(logs[:, 1:], self.weights)
        path[self._ruled_out(totals[1:], counts[1:])] = math.inf
        state = replace(self, log_products=logs[:, -1].copy(), total=float(totals[-1]), count=self.count + len(x))
        return state, path

    def _ruled_out(self, total: Array | float, count: NDArray[np.int64] | int) -> NDArray[np.bool_]:
        """Whether the mean is above what the population can still reach with everything left at the cap."""
        if self.population is None:
            return np.asarray(np.full(np.shape(total), self.mean > self.cap))
        reachable = total + (self.population - np.asarray(count)) * self.cap
        return np.asarray(self.population * (self.mean - SLACK * self.cap) > reachable)


@dataclass(frozen=True, kw_only=True)
class PlannedMixture:
    """One-sided, anytime-valid bound on a mean, from bets planned on a pilot.

    Args:
        largest: share of the largest bet that cannot lose everything, in (0, 1).
        dyadic: bets largest / cap * 2^-k, k = 0 .. dyadic - 1; they limit the loss when the pilot misleads.
        planned: weight of the two bets planned from the pilot, shared equally; the dyadic bets share the rest.
    """

    name: ClassVar[str] = "planned-mixture"
    paper: ClassVar[str] = "arXiv:2010.09686"
    needs: ClassVar[frozenset[str]] = frozenset()
    validity: ClassVar[Validity] = Validity(
        anytime=True, exact=True, scopes=frozenset({"corpus", "source"}), values="capped"
    )
    largest: float = 0.99
    dyadic: int = 7
    planned: float = 0.8

    def bets(self, terms: Terms) -> tuple[Array, Array]:
        """Bets `[bets]` and their weights `[bets]`.

        The planned bet grows the wealth fastest, to second order, if the pilot's mean and deviation are the true ones;
        half of it is the second, since it still grows three quarters as fast and forgives a pilot that saw too little
        spread. A pilot at or above the margin plans nothing: the dyadic bets then take all the weight.

        Raises:
            InvalidBudget: the cap is not above zero and above the margin, or alpha is not in (0, 1).
        """
        if not (0 < terms.cap < math.inf and -math.inf < terms.margin < terms.cap):
            raise InvalidBudget(
                f"a margin of {terms.margin:g} with a cap of {terms.cap:g} leaves nothing to bet on",
                expected="a finite cap above zero and above the margin",
                mend="choose the cap with choose_terms",
                site="certification",
            )
        if not 0 < terms.alpha < 1:
            raise InvalidBudget(
                f"an error level of {terms.alpha:g} means nothing", expected="0 < alpha < 1", site="certification"
            )
        net: Array = self.largest / terms.cap * 0.5 ** np.arange(self.dyadic, dtype=np.float64)
        net_weights: Array = np.full(self.dyadic, 1.0 / self.dyadic)
        gap = terms.margin - terms.pilot_mean
        if gap <= 0 or self.planned == 0:
            return net, net_weights
        plan = min(gap / (terms.pilot_sd**2 + gap**2), self.largest / (terms.cap - terms.margin))
        weights = np.concatenate((np.full(2, self.planned / 2), (1 - self.planned) * net_weights))
        return np.concatenate(([plan / 2, plan], net)), weights

    def start(self, terms: Terms, *, mean: float | None = None) -> Wealth:
        """Start with E_0 = 1 against `mean` (the margin, unless another is given)."""
        bets, weights = self.bets(terms)
        return Wealth(
            mean=terms.margin if mean is None else mean,
            cap=terms.cap,
            population=terms.population,
            largest=self.largest,
            bets=bets,
            weights=weights,
            log_products=np.zeros(len(bets)),
        )

    def certify_at(self, x: Array, terms: Terms) -> int | None:
        """Units after which `mean < margin` is first certified, E_t(margin) >= 1 / alpha; None if it is not.

        Args:
            x: degradations in the order they were drawn `[n]`.
            terms: fixed before the first of them was seen.
        """
        reached = np.flatnonzero(self.start(terms).path(x) >= -math.log(terms.alpha))
        return int(reached[0]) + 1 if len(reached) else None

    def path(self, x: Array, terms: Terms) -> Array:
        """Log E_t against `mean >= margin` after each of the degradations `[n]`.

        Raises:
            InvalidMeasurement: a value is not finite or below the floor, or there are more than the population holds.
            InvalidBudget: the terms leave nothing to bet on.
        """
        x, _ = admit(self, x, terms, None)
        return self.start(terms).path(x)

    def bound(
        self, x: Array, terms: Terms, alpha: float | None = None, *, documents: NDArray[np.int64] | None = None
    ) -> float:
        """U_t, the smallest mean that the degradations `[n]` reject at level alpha (`terms.alpha` by default).

        P(U_t < mean of the capped degradations at any t) <= alpha. After a full pass of a finite population it is that
        mean itself, with no error. `documents` is not used.

        Raises:
            InvalidMeasurement, InvalidBudget: as for `path`.
        """
        x, alpha = admit(self, x, terms, alpha)
        high = reachable(x, terms)  # no mean of values up to the cap is above it
        if len(x) == 0 or len(x) == terms.population:
            return high
        bets, weights = self.bets(terms)
        # no bet against a mean below every value has won, so its wealth is at most 1
        return smallest_rejected(
            lambda mean: self._last_log_wealth(x, terms, mean, bets, weights) + math.log(alpha), float(x.min()), high
        )

    def _last_log_wealth(self, x: Array, terms: Terms, mean: float, bets: Array, weights: Array) -> float:
        """Log E_n at a mean that nothing rules out: what `Wealth` ends with, without the way there."""
        means = conditional_means(x, mean, terms.population)
        logs = np.zeros(len(bets))
        for start in range(0, len(x), CHUNK):
            gain, left = means[start : start + CHUNK] - x[start : start + CHUNK], means[start : start + CHUNK]
            safe = self.largest / np.maximum(terms.cap - left, np.finfo(np.float64).tiny)
            for number, bet in enumerate(bets):  # one row at a time stays in the nearest cache
                logs[number] += np.log(1.0 + np.minimum(bet, safe) * gain).sum()
        return float(_mix(logs[:, None], weights)[0])


def _mix(logs: Array, weights: Array) -> Array:
    """Log of the weighted mean wealth `[n]` from log wealths `[bets, n]`."""
    largest = logs.max(axis=0)
    return np.asarray(largest + np.log(weights @ np.exp(logs - largest)))
