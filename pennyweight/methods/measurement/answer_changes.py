"""Questions on which the models choose different answers, whether or not one of them is right.

Source: Dutta, Krishnan, Kwatra, Ramjee. Accuracy is Not All You Need. NeurIPS 2024. arXiv:2407.09141 ("all flips").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pennyweight.task import Answers, Question


@dataclass(frozen=True, kw_only=True)
class AnswerChanges:
    """1 where the chosen answers differ; at least as many as flips, since one wrong answer can replace another."""

    name: ClassVar[str] = "answer_changes"
    paper: ClassVar[str] = "arXiv:2407.09141"
    needs: ClassVar[frozenset[str]] = frozenset()
    unit: ClassVar[str] = "share of questions"
    reads: ClassVar[str] = "choices"
    lower: ClassVar[float | None] = 0.0
    upper: ClassVar[float | None] = 1.0
    growth: ClassVar[float] = 0.5
    phrase: ClassVar[str] = "at most {bound} of answers change"
    percent: ClassVar[bool] = True

    def measure(self, reference: Answers, compressed: Answers, question: Question) -> tuple[float, float]:
        """Zero for the reference, and for the compressed model whether it chooses another answer."""
        del question
        return 0.0, float(reference.chosen() != compressed.chosen())
