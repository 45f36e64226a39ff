"""Terms of a certificate, chosen on the selection split before the certification split is opened.

The planned mixture needs about n = log(1/alpha) (2 sd^2 / gap^2 + (cap - margin) / gap) windows on average, where gap
is the margin less the mean. The first part is the price of the noise, as for a test of fixed size with 80 % power; the
second is the price of the cap, since no bet may exceed one over cap - margin.
"""

from __future__ import annotations

import math
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from pennyweight.budget import Terms
from pennyweight.errors import InfeasibleBudget, InvalidBudget, InvalidMeasurement

CAP_OVER_LARGEST = 2.0  # cap over the largest pilot value: a new window rarely exceeds it
CAP_OVER_MARGIN = 5.0  # cap over margin: below this the claim would be about little more than the cap itself
PATIENCE = 3.0  # windows allowed over windows expected; 95 % of the runs that end at all end before


def choose_terms(
    pilot: NDArray[np.float64], margin: float, *, confidence: float, population: int | None, tail_share: float = 0.2,
    lower: float | None = None, upper: float | None = None, discrete: bool = False, claims: int = 1,
    scope: str | None = None, available: int | None = None,
) -> Terms:  # fmt: skip
    """Fix cap, error levels and the largest number of units from a pilot.

    The margin is tested at the level a claim would have alone: a gate that asks for all claims needs no correction
    (intersection-union). The printed bounds are to hold together, so each gets an equal share of the level.

    Args:
        pilot: degradation of each unit of the selection split `[n]`, in the unit of the margin.
        margin: the claim will be `mean degradation < margin`; > 0.
        confidence: of all statements together: capped means and shares above the caps.
        population: units in the certification split (scope corpus), or None (scopes source, asymptotic).
        tail_share: share of the error level spent on the units above the cap.
        lower: smallest degradation a unit can have, or None.
        upper: largest degradation a unit can have, or None.
        discrete: a unit is one question, worth a few values only: the cap is then the upper limit itself.
        claims: bounds that are printed together.
        scope: `corpus`, `source` or `asymptotic`; by default what the population says.
        available: units there are, where the population is None.

    Raises:
        InvalidMeasurement: fewer than two pilot units, or one that is not finite.
        InvalidBudget: a margin, confidence or share that means nothing.
        InfeasibleBudget: the pilot is at or above the margin, or the units available cannot carry the claim, and no
            finite population ends the search.
    """
    pilot = _pilot(pilot)
    if not (math.isfinite(margin) and margin > 0 and 0 < confidence < 1 and 0 < tail_share < 1 and claims >= 1):
        raise InvalidBudget(
            f"margin {margin:g}, confidence {confidence:g} and tail share {tail_share:g} make no claim",
            expected="a margin above zero, a confidence and a share between 0 and 1",
            site="certification",
        )
    if upper is not None and margin >= upper:
        raise InvalidBudget(
            f"a margin of {margin:g} is met by every model: no unit can lose more than {upper:g}",
            expected=f"a margin between 0 and {upper:g}",
            mend="allow less",
            site="certification",
        )
    total = 1 - confidence
    mean, sd, cap = float(pilot.mean()), float(pilot.std(ddof=1)), choose_cap(pilot, margin)
    tail_alpha = tail_share * total
    if upper is not None and (discrete or cap >= upper):
        cap, tail_alpha = upper, 0.0
    alpha = total - tail_alpha
    needed = needed_windows(mean, sd, margin, cap, alpha)
    limit = population if population is not None else available
    n_max = PATIENCE * needed if limit is None else min(PATIENCE * needed, limit)
    if population is None and (math.isinf(needed) or (available is not None and needed > available)):
        _refuse(pilot, margin, needed, available, alpha, upper if discrete else None)
    return Terms(
        margin=margin, cap=cap, pilot_mean=mean, pilot_sd=sd, alpha=alpha, tail_alpha=tail_alpha / claims,
        population=population, n_max=math.ceil(n_max), floor=lower,
        bound_alpha=None if claims == 1 else alpha / claims,
        scope=scope or ("source" if population is None else "corpus"),
    )  # fmt: skip


def _refuse(
    pilot: NDArray[np.float64], margin: float, needed: float, available: int | None, alpha: float, cap: float | None
) -> NoReturn:
    """Say that the claim cannot be carried, and which one could."""
    mean = float(pilot.mean())
    if available is None:
        raise InfeasibleBudget(
            f"the pilot loses {mean:g} and the margin is {margin:g}",
            expected="a pilot mean below the margin",
            mend="allow a larger loss, or certify one finite text, where a full pass always gives an answer",
            site="certification",
        )
    least = smallest_margin(pilot, available, alpha, cap)
    offer = f"a margin of {least:.3g}" if math.isfinite(least) else "more units"
    raise InfeasibleBudget(
        f"a margin of {margin:g} needs about {needed:,.0f} independent units and there are {available:,}",
        expected=f"{offer}, or more text",
        mend="allow that much, give more text, or certify this text itself, where a full pass always answers: "
        "--scope corpus",
        site="certification",
    )


def choose_cap(pilot: NDArray[np.float64], margin: float) -> float:
    """Largest degradation that is counted in full, from the pilot `[n]`; above the margin."""
    return max(CAP_OVER_LARGEST * float(pilot.max()), CAP_OVER_MARGIN * margin)


def needed_windows(pilot_mean: float, pilot_sd: float, margin: float, cap: float, alpha: float) -> float:
    """Windows after which the margin is certified, on average; infinite if the pilot mean is at or above the margin."""
    gap = margin - pilot_mean
    if gap <= 0:
        return math.inf
    spread = pilot_sd / gap  # the ratio is squared, not its parts: a tiny gap squared would be zero
    return -math.log(alpha) * (2 * spread * spread + (cap - margin) / gap)


def smallest_margin(pilot: NDArray[np.float64], n: int, alpha: float, cap: float | None = None) -> float:
    """Smallest margin that n units can be expected to certify, with the cap given or the one `choose_terms` takes.

    Returns:
        The margin in the unit of the pilot. Zero if every margin above zero can be; infinite if none can, which is so
        below about 4 log(1/alpha) windows, because the cap is never less than five margins.

    Raises:
        InvalidMeasurement: fewer than two pilot windows, or one that is not finite.
    """
    pilot = _pilot(pilot)
    mean, sd = float(pilot.mean()), float(pilot.std(ddof=1))

    def excess(margin: float) -> float:
        return needed_windows(mean, sd, margin, choose_cap(pilot, margin) if cap is None else cap, alpha) - n

    # the windows needed fall from infinity (or from their value at zero) to 4 log(1/alpha), or with a cap of its own to
    # nearly none as the margin reaches it: they cross n once
    if cap is None and n <= -math.log(alpha) * (CAP_OVER_MARGIN - 1):
        return math.inf
    if cap is not None and (mean >= cap or excess(math.nextafter(cap, -math.inf)) > 0):
        return math.inf
    scale = max(abs(mean), sd, float(np.abs(pilot).max()), float(np.finfo(np.float64).tiny))
    low = max(mean, 0.0) + 1e-9 * scale
    if excess(low) <= 0:
        return low if mean > 0 else 0.0
    high = low + scale if cap is None else math.nextafter(cap, -math.inf)
    while cap is None and excess(high) > 0:
        high *= 2
    return float(brentq(excess, low, high, xtol=1e-12 * scale))


def _pilot(pilot: NDArray[np.float64]) -> NDArray[np.float64]:
    pilot = np.asarray(pilot, dtype=np.float64)
    if pilot.ndim != 1 or len(pilot) < 2 or not np.isfinite(pilot).all():
        raise InvalidMeasurement(
            f"a pilot of shape {list(pilot.shape)} cannot be planned with",
            expected="two finite degradations or more, one a window",
            mend="give the selection split more text",
            site="certification",
        )
    return pilot
