"""Expected shortfall (CVaR): the mean of the worst share of units, with an exact upper bound.

Source: Massart. The tight constant in the Dvoretzky-Kiefer-Wolfowitz inequality. Annals of Probability 1990;
Anderson. Confidence limits for the expected value of an arbitrary bounded random variable. 1969 (integrating the band).
Also Scholten, Günnemann, Schwinn. ICLR 2025. arXiv:2410.03523. With F(x) >= F_n(x) - sqrt(log(1/alpha) / 2n) for all x
at once, CVaR_q = low + (1/q) ∫ min(q, 1 - F(x)) dx over [low, cap] is largest on the lower edge of that band.
Departs from them: the integral is exact, over the steps of F_n, and needs no grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pennyweight.errors import InvalidMeasurement, InvalidMethod
from pennyweight.methods.probability.checks import inside, sample


@dataclass(frozen=True, kw_only=True)
class Shortfall:
    """How bad the worst units are.

    Args:
        estimate: mean of the worst share of the units seen.
        bound: upper bound of the same in the source the units are drawn from; exact, scope source.
        share: what counts as worst.
        cap: upper limit of the degradation; the bound says nothing above it.
        confidence: of the bound, for a number of units fixed beforehand.
        count: units.
    """

    estimate: float
    bound: float
    share: float
    cap: float
    confidence: float
    count: int


@dataclass(frozen=True, kw_only=True)
class ExpectedShortfall:
    """Mean degradation of the worst units.

    The band costs sqrt(log(1/alpha) / 2n) / share of the range: with few units or a small share the bound is the cap.

    Args:
        share: of units that count as the worst, in (0, 1]; with 1 it is the mean, and the bound Anderson's.
        confidence: of the bound, in [0.5, 1).
    """

    name: ClassVar[str] = "expected-shortfall"
    paper: ClassVar[str] = "arXiv:2410.03523"
    needs: ClassVar[frozenset[str]] = frozenset()
    share: float = 0.05
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.share != 1:
            inside(self.share, "share", self.name, low=0.0, high=1.0)
        inside(self.confidence, "confidence", self.name, low=0.0, high=1.0)
        if self.confidence < 0.5:
            raise InvalidMethod(
                f"confidence is {self.confidence}", expected="0.5 or more: the one-sided band is not proven below",
                mend="set confidence=0.95", site=self.name,
            )  # fmt: skip

    def measure(self, degradation: ArrayLike, *, low: float, cap: float) -> Shortfall:
        """The expected shortfall of independent units.

        Args:
            degradation: of each unit, in [low, cap] `[n]`.
            low: lower limit of the degradation, known beforehand; 0 for a divergence.
            cap: upper limit, known beforehand. For an unbounded metric clip first, and speak of the capped value.

        Raises:
            InvalidMeasurement: no units, NaN, values outside [low, cap], or limits that are no interval.
        """
        if not (math.isfinite(low) and math.isfinite(cap) and low < cap):
            raise InvalidMeasurement(
                f"limits [{low}, {cap}]", expected="two finite numbers, the lower first",
                mend="declare the range of the metric", site=self.name,
            )  # fmt: skip
        x = np.sort(sample(degradation, "degradations", self.name, low=low, high=cap))
        band = math.sqrt(math.log(1 / (1 - self.confidence)) / (2 * len(x)))
        return Shortfall(
            estimate=self._integral(x, 0.0, low, cap), bound=self._integral(x, band, low, cap), share=self.share,
            cap=cap, confidence=self.confidence, count=len(x),
        )  # fmt: skip

    def _integral(self, x: NDArray[np.float64], band: float, low: float, cap: float) -> float:
        """The formula above, from sorted values, with F_n lowered by the band."""
        above = 1 - np.arange(len(x) + 1) / len(x) + band  # 1 - F on each step between neighbouring values
        lengths = np.diff(np.concatenate([[low], x, [cap]]))
        return low + float(lengths @ np.clip(above, 0.0, self.share)) / self.share
