"""Terms of a certificate, chosen on the selection split before the certification split is opened.

The planned mixture needs about n = log(1/alpha) (2 sd^2 / gap^2 + (cap - margin) / gap) windows on average, where gap
is the margin less the mean. The first part is the price of the noise, as for a test of fixed size with 80 % power; the
second is the price of the cap, since no bet may exceed one over cap - margin.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from pennyweight.budget import Terms
from pennyweight.errors import InfeasibleBudget, InvalidBudget, InvalidMeasurement

CAP_OVER_LARGEST = 2.0  # cap over the largest pilot value: a new window rarely exceeds it
CAP_OVER_MARGIN = 5.0  # cap over margin: below this the claim would be about little more than the cap itself
PATIENCE = 3.0  # windows allowed over windows expected; 95 % of the runs that end at all end before


def choose_terms(
    pilot: NDArray[np.float64], margin: float, *, confidence: float, population: int | None, tail_share: float = 0.2
) -> Terms:
    """Fix cap, error levels and the largest number of windows from a pilot.

    Args:
        pilot: degradation of each window of the selection split `[n]`, in the unit of the margin.
        margin: the claim will be `mean degradation < margin`; > 0.
        confidence: of the two statements together, capped mean and share above the cap.
        population: windows in the certification split (scope S1), or None for independent windows (scope S2).
        tail_share: share of the error level spent on the windows above the cap.

    Raises:
        InvalidMeasurement: fewer than two pilot windows, or one that is not finite.
        InvalidBudget: a margin, confidence or share that means nothing.
        InfeasibleBudget: the pilot is at or above the margin and no finite population ends the search.
    """
    pilot = _pilot(pilot)
    if not (math.isfinite(margin) and margin > 0 and 0 < confidence < 1 and 0 < tail_share < 1):
        raise InvalidBudget(
            f"margin {margin:g}, confidence {confidence:g} and tail share {tail_share:g} make no claim",
            expected="a margin above zero, a confidence and a share between 0 and 1",
            site="certification",
        )
    total = 1 - confidence
    mean, sd, cap = float(pilot.mean()), float(pilot.std(ddof=1)), choose_cap(pilot, margin)
    tail_alpha = tail_share * total
    alpha = total - tail_alpha
    n_max = PATIENCE * needed_windows(mean, sd, margin, cap, alpha)
    if population is not None:
        n_max = min(n_max, population)
    if math.isinf(n_max):
        raise InfeasibleBudget(
            f"the pilot loses {mean:g} and the margin is {margin:g}",
            expected="a pilot mean below the margin",
            mend="allow a larger loss, or certify one finite text, where a full pass always gives an answer",
            site="certification",
        )
    return Terms(
        margin=margin, cap=cap, pilot_mean=mean, pilot_sd=sd, alpha=alpha, tail_alpha=tail_alpha,
        population=population, n_max=math.ceil(n_max),
    )  # fmt: skip


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


def smallest_margin(pilot: NDArray[np.float64], n: int, alpha: float) -> float:
    """Smallest margin that n windows can be expected to certify, with the cap `choose_terms` would take.

    Returns:
        The margin in the unit of the pilot. Zero if every margin above zero can be; infinite if none can, which is so
        below about 4 log(1/alpha) windows, because the cap is never less than five margins.

    Raises:
        InvalidMeasurement: fewer than two pilot windows, or one that is not finite.
    """
    pilot = _pilot(pilot)
    mean, sd = float(pilot.mean()), float(pilot.std(ddof=1))

    def excess(margin: float) -> float:
        return needed_windows(mean, sd, margin, choose_cap(pilot, margin), alpha) - n

    # the windows needed fall from infinity (or from their value at zero) to 4 log(1/alpha): they cross n once
    if n <= -math.log(alpha) * (CAP_OVER_MARGIN - 1):
        return math.inf
    scale = max(abs(mean), sd, float(np.abs(pilot).max()), np.finfo(np.float64).tiny)
    low = max(mean, 0.0) + 1e-9 * scale
    if excess(low) <= 0:
        return low if mean > 0 else 0.0
    high = low + scale
    while excess(high) > 0:
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
