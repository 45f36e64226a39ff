"""Expected calibration error: how far confidence is from accuracy, with the bias of small samples taken out.

Source: Guo, Pleiss, Sun, Weinberger. On Calibration of Modern Neural Networks. ICML 2017. arXiv:1706.04599 (bins);
Kumar, Liang, Ma. Verified Uncertainty Calibration. NeurIPS 2019. arXiv:1909.10155 (debiased estimators); Gupta et al.
Calibration of Neural Networks using Splines. ICLR 2021. arXiv:2006.12800 (the error without bins).
Departs from them: equal confidences are never parted by a bin's edge, so the order of the units leaves no trace.
The plug-in estimate of a perfectly calibrated model is not zero: with 15 bins about .05 for 500 units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pennyweight.errors import InvalidMeasurement
from pennyweight.methods.probability.binomial import clopper_pearson
from pennyweight.methods.probability.checks import at_least, inside, same_length, sample
from pennyweight.numerics.random import derived_seed

LEAST = 2  # units in a bin, below which its variance is unknown


@dataclass(frozen=True, kw_only=True)
class CalibrationBin:
    """One point of a reliability curve.

    Args:
        confidence: mean over its units.
        accuracy: share of them that are right.
        count: units.
        low: lower end of the Clopper-Pearson interval of the accuracy.
        high: upper end. Each bin has its own; they do not hold jointly. They treat units as independent; where units
            are positions of a text, neighbours are not, and the intervals are too short.
    """

    confidence: float
    accuracy: float
    count: int
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class CalibrationError:
    """Description of a model's calibration; an estimate, no certificate.

    Args:
        plug_in: Σ n_b/n |mean confidence - accuracy|; biased upwards, the more the fewer units.
        debiased: the same with the bias that resampling the accuracies shows taken off; may be slightly below zero.
        squared: Σ n_b/n (mean confidence - accuracy)^2 without bias; may be below zero.
        ks: Kolmogorov-Smirnov calibration error, without bins.
        count: units measured.
        curve: bins by rising confidence.
        confidence: of the intervals in `curve`.
        notes: what was merged, and why.
    """

    plug_in: float
    debiased: float
    squared: float
    ks: float
    count: int
    curve: tuple[CalibrationBin, ...]
    confidence: float
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ExpectedCalibrationError:
    """Compare the confidence of the top label with how often it is right.

    Args:
        bins: number of bins, 1 or more.
        equal_mass: bins of equally many units; otherwise of equal width on [0, 1].
        resamples: draws of the accuracies that estimate the bias, 1 or more.
        confidence: of each bin's interval, in (0, 1).
    """

    name: ClassVar[str] = "expected-calibration-error"
    paper: ClassVar[str] = "arXiv:1909.10155"
    needs: ClassVar[frozenset[str]] = frozenset()
    bins: int = 15
    equal_mass: bool = True
    resamples: int = 1000
    confidence: float = 0.95

    def __post_init__(self) -> None:
        at_least(self.bins, "bins", self.name, least=1)
        at_least(self.resamples, "resamples", self.name, least=1)
        inside(self.confidence, "confidence", self.name, low=0.0, high=1.0)

    def measure(self, confidence: ArrayLike, correct: ArrayLike, *, seed: int | str = 0) -> CalibrationError:
        """The calibration of a model on some units.

        Args:
            confidence: probability of the top label, in [0, 1] `[n]`.
            correct: whether it was right, 0 or 1 `[n]`.
            seed: of the resampling.

        Raises:
            InvalidMeasurement: fewer than two units, unequal lengths, NaN, values outside their range.
        """
        q = sample(confidence, "confidences", self.name, low=0.0, high=1.0, least=LEAST)
        y = sample(correct, "outcomes", self.name, low=0.0, high=1.0, least=LEAST)
        same_length(self.name, confidences=q, outcomes=y)
        if not np.isin(y, (0.0, 1.0)).all():
            raise InvalidMeasurement(
                "an outcome is neither 0 nor 1", expected="0 for wrong, 1 for right",
                mend="pass whether the top label was right, not its score", site=self.name,
            )  # fmt: skip
        order = np.argsort(q, kind="stable")
        q, y = q[order], y[order]
        starts, notes = self._starts(q)
        counts = np.diff(np.append(starts, len(q))).astype(np.float64)
        mean_q, mean_y = np.add.reduceat(q, starts) / counts, np.add.reduceat(y, starts) / counts
        weight, variance = counts / len(q), mean_y * (1 - mean_y)
        plug_in = float(weight @ np.abs(mean_q - mean_y))
        noise = np.random.Generator(np.random.PCG64(derived_seed(seed, self.name)))
        drawn = mean_y + np.sqrt(variance / counts) * noise.standard_normal((self.resamples, len(counts)))
        curve = []
        for i, count in enumerate(counts.astype(int)):
            low, high = clopper_pearson(round(float(mean_y[i] * counts[i])), int(count), self.confidence)
            curve.append(
                CalibrationBin(
                    confidence=float(mean_q[i]), accuracy=float(mean_y[i]), count=int(count), low=low, high=high
                )
            )
        last_of_ties = np.append(q[1:] != q[:-1], True)
        return CalibrationError(
            plug_in=plug_in,
            debiased=2 * plug_in - float((np.abs(mean_q - drawn) @ weight).mean()),
            squared=float(weight @ ((mean_q - mean_y) ** 2 - variance / (counts - 1))),
            ks=float(np.abs(np.cumsum(y - q)[last_of_ties]).max() / len(q)),
            count=len(q),
            curve=tuple(curve),
            confidence=self.confidence,
            notes=notes,
        )

    def _starts(self, q: NDArray[np.float64]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Index of the first unit of each bin, from sorted confidences; every bin has two units or more."""
        bins = np.arange(self.bins)
        bounds = q[bins * len(q) // self.bins] if self.equal_mass else bins / self.bins
        bounds[0] = 0.0
        # left of all its equals, so that equal confidences stay together; unique, so that empty bins vanish
        starts = np.unique(np.searchsorted(q, bounds, side="left"))
        starts = starts[starts < len(q)]
        kept, merged = [0], 0
        for start in starts[1:].tolist():
            if start - kept[-1] >= LEAST and len(q) - start >= LEAST:
                kept.append(start)
            else:
                merged += 1
        note = f"{merged} bins with fewer than {LEAST} units were merged with a neighbour"
        return np.array(kept, dtype=np.int64), ((note,) if merged else ())
