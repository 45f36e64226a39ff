"""Brier difference: how much further from the truth the probabilities of the compressed model lie, unit by unit.

Source: Brier. Verification of forecasts expressed in terms of probability. Monthly Weather Review 1950.
Calibration errors are biased, and by an amount that depends on the sample size, so a difference of two of them cannot
be certified. The Brier score is proper (no wrong probability scores better on average than the right one) and a mean
over units, so its paired difference is a bounded degradation like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pennyweight.errors import InvalidMeasurement
from pennyweight.methods.probability.checks import same_length, sample

SUM = 1e-3  # how far the probabilities of a unit may sum from 1: half-precision softmax is no better


@dataclass(frozen=True, kw_only=True)
class Brier:
    """Squared error of probabilities, compressed minus reference: in [-1, 1] a unit, larger is worse."""

    name: ClassVar[str] = "brier"
    paper: ClassVar[str] = "Brier 1950, Monthly Weather Review 78(1)"
    needs: ClassVar[frozenset[str]] = frozenset()
    unit: ClassVar[str] = "squared probability"
    lowest: ClassVar[float] = -1.0
    highest: ClassVar[float] = 1.0

    def measure(self, reference: ArrayLike, compressed: ArrayLike, outcome: ArrayLike) -> NDArray[np.float64]:
        """The degradation of each unit `[n]`, in [-1, 1].

        Args:
            reference: probabilities of the event `[n]`, or of every class `[n, classes]`.
            compressed: the same, after.
            outcome: whether the event happened, 0 or 1 `[n]`; with classes, the index of the right one `[n]`. (With
                the confidence of the top label, each model has its own: pass the classes instead.)

        Raises:
            InvalidMeasurement: shapes differ, nothing to measure, NaN, probabilities outside [0, 1] or that do not sum
                to 1, outcomes that are no outcome.
        """
        before, after = np.array(reference, dtype=np.float64), np.array(compressed, dtype=np.float64)
        if before.shape != after.shape or before.ndim not in (1, 2) or 0 in before.shape:
            raise InvalidMeasurement(
                f"probabilities of the shapes {list(before.shape)} and {list(after.shape)}",
                expected="two arrays of one shape, [n] or [n, classes], that are not empty",
                mend="score both models on the same units",
                site=self.name,
            )
        return self.score(after, outcome) - self.score(before, outcome)

    def score(self, probability: ArrayLike, outcome: ArrayLike) -> NDArray[np.float64]:
        """Brier score of each unit `[n]`, in [0, 1]; with classes half the sum over them, so that two give the same.

        Raises:
            InvalidMeasurement: as `measure`.
        """
        p = np.array(probability, dtype=np.float64)
        sample(p.ravel(), "probabilities", self.name, low=0.0, high=1.0)
        classes = p.shape[1] if p.ndim == 2 else 2
        y = sample(outcome, "outcomes", self.name, low=0.0, high=classes - 1)
        same_length(self.name, probabilities=p, outcomes=y)
        if (y != np.floor(y)).any():
            raise InvalidMeasurement(
                "an outcome is not a whole number", expected=f"0 to {classes - 1}",
                mend="pass what happened, not a probability of it", site=self.name,
            )  # fmt: skip
        if p.ndim == 1:
            return np.asarray((p - y) ** 2)
        sums = p.sum(axis=1)
        if (np.abs(sums - 1) > SUM).any():
            raise InvalidMeasurement(
                f"the probabilities of a unit sum to {sums[np.abs(sums - 1).argmax()]:.6g}",
                expected=f"1, give or take {SUM:g}", mend="pass softmax outputs, not logits", site=self.name,
            )  # fmt: skip
        errors = (p**2).sum(axis=1) - 2 * p[np.arange(len(p)), y.astype(np.int64)] + 1
        return np.asarray(np.clip(errors / 2, 0.0, 1.0))  # the sums' slack must not break the declared range
