"""Exact bounds of a share, from a number of draws fixed beforehand.

Sources: Clopper, Pearson. The use of confidence or fiducial limits illustrated in the case of the binomial. Biometrika
1934. Hoeffding. Probability inequalities for sums of bounded random variables. JASA 1963, Theorem 1 (for scores that
are not only 0 and 1).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betaincinv


def clopper_pearson(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """Two-sided interval of a probability; each side errs with probability (1 - confidence) / 2 at most.

    Args:
        successes: number seen, in [0, trials].
        trials: independent draws, 1 or more, fixed beforehand.
        confidence: in (0, 1).
    """
    alpha = (1 - confidence) / 2
    low = float(betaincinv(successes, trials - successes + 1, alpha)) if successes > 0 else 0.0
    return low, _upper(successes, trials, alpha)


def upper_bound(values: NDArray[np.float64], confidence: float) -> tuple[float, str]:
    """One-sided upper bound of the mean of independent values in [0, 1] `[n]`, and the name of the rule.

    Zeros and ones get Clopper-Pearson. For values between, its level is not kept; they get Hoeffding's bound in its
    first form, the u above the mean m with n KL(m || u) = log(1 / alpha). With only zeros the two agree.
    The draws need not have one probability in common: with as many from every prompt, both bound the mean over prompts.
    (Such sums spread less than binomial ones: Hoeffding, Annals of Mathematical Statistics 1956.)
    """
    n, alpha = len(values), 1 - confidence
    if np.isin(values, (0.0, 1.0)).all():
        return _upper(int(values.sum()), n, alpha), "clopper-pearson"
    mean, limit = float(values.mean()), math.log(1 / alpha) / n

    def excess(u: float) -> float:
        return mean * math.log(mean / u) + (1 - mean) * math.log((1 - mean) / (1 - u)) - limit

    highest = 1 - 1e-15
    return (1.0 if excess(highest) < 0 else float(brentq(excess, mean, highest, xtol=1e-14))), "hoeffding"


def _upper(successes: int, trials: int, alpha: float) -> float:
    return float(betaincinv(successes + 1, trials - successes, 1 - alpha)) if successes < trials else 1.0
