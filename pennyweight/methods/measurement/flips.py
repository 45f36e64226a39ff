"""Questions whose correctness changed, in either direction.

Source: Dutta, Krishnan, Kwatra, Ramjee. Accuracy is Not All You Need. NeurIPS 2024. arXiv:2407.09141.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pennyweight.task import Answers, Question


@dataclass(frozen=True, kw_only=True)
class Flips:
    """1 where one model is right and the other wrong: two models of equal accuracy can differ on many questions."""

    name: ClassVar[str] = "flips"
    paper: ClassVar[str] = "arXiv:2407.09141"
    needs: ClassVar[frozenset[str]] = frozenset()
    unit: ClassVar[str] = "share of questions"
    reads: ClassVar[str] = "choices"
    lower: ClassVar[float | None] = 0.0
    upper: ClassVar[float | None] = 1.0
    growth: ClassVar[float] = 0.5
    phrase: ClassVar[str] = "at most {bound} of questions change between right and wrong"
    percent: ClassVar[bool] = True

    def measure(self, reference: Answers, compressed: Answers, question: Question) -> tuple[float, float]:
        """Zero for the reference, and for the compressed model whether its correctness differs."""
        before, after = reference.chosen() == question.answer, compressed.chosen() == question.answer
        return 0.0, float(before != after)
