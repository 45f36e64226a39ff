"""Accuracy on multiple-choice questions: the choice with the highest log-likelihood, as lm-evaluation-harness's `acc`.

Source: Gao et al. The Language Model Evaluation Harness. 2024. doi:10.5281/zenodo.12608602.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pennyweight.task import Answers, Question


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """1 where the most likely choice is wrong; the difference of two models is the fall in accuracy."""

    name: ClassVar[str] = "accuracy"
    paper: ClassVar[str] = "doi:10.5281/zenodo.12608602"
    needs: ClassVar[frozenset[str]] = frozenset()
    unit: ClassVar[str] = "share of questions"
    reads: ClassVar[str] = "choices"
    lower: ClassVar[float | None] = -1.0
    upper: ClassVar[float | None] = 1.0
    growth: ClassVar[float] = 0.5
    phrase: ClassVar[str] = "accuracy falls by at most {bound}"
    percent: ClassVar[bool] = True

    def measure(self, reference: Answers, compressed: Answers, question: Question) -> tuple[float, float]:
        """1 − correct, under each model; the earliest of equally likely choices counts as chosen."""
        return float(reference.chosen() != question.answer), float(compressed.chosen() != question.answer)
