"""Brier score of the choices: how far their probabilities are from certainty about the right one.

Source: Brier. Verification of forecasts expressed in terms of probability. Monthly Weather Review 78(1), 1950.
Departs from it: half of its sum of squares, so that a score lies between 0 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pennyweight.task import Answers, Question


@dataclass(frozen=True, kw_only=True)
class ChoiceBrier:
    """½ Σ (probability − [right])² with the probabilities a softmax of the log-likelihoods of the choices."""

    name: ClassVar[str] = "choice_brier"
    paper: ClassVar[str] = "doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2"
    needs: ClassVar[frozenset[str]] = frozenset()
    unit: ClassVar[str] = "score per question"
    reads: ClassVar[str] = "choices"
    lower: ClassVar[float | None] = -1.0
    upper: ClassVar[float | None] = 1.0
    growth: ClassVar[float] = 0.5
    phrase: ClassVar[str] = "the Brier score rises by at most {bound}"
    percent: ClassVar[bool] = False

    def measure(self, reference: Answers, compressed: Answers, question: Question) -> tuple[float, float]:
        """Score under each model; lower is better."""
        return _score(reference, question), _score(compressed, question)


def _score(answers: Answers, question: Question) -> float:
    likelihoods = np.array(answers.log_likelihoods, dtype=np.float64)
    probabilities = np.exp(likelihoods - likelihoods.max())
    probabilities /= probabilities.sum()
    right = np.arange(len(probabilities)) == question.answer
    return float(min(1.0, 0.5 * np.square(probabilities - right).sum()))
