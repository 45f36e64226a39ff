"""Accuracy by log-likelihood per character, as lm-evaluation-harness's `acc_norm`.

Source: Gao et al. The Language Model Evaluation Harness. 2024. doi:10.5281/zenodo.12608602.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pennyweight.task import Answers, Question


@dataclass(frozen=True, kw_only=True)
class AccuracyNormalised:
    """1 where the choice with the highest log-likelihood per character is wrong.

    Characters are Unicode code points of the choice without its delimiter. `accuracy_bytes` divides by bytes; the two
    differ only where choices hold letters outside ASCII.
    """

    name: ClassVar[str] = "accuracy_norm"
    paper: ClassVar[str] = "doi:10.5281/zenodo.12608602"
    needs: ClassVar[frozenset[str]] = frozenset()
    unit: ClassVar[str] = "share of questions"
    reads: ClassVar[str] = "choices"
    lower: ClassVar[float | None] = -1.0
    upper: ClassVar[float | None] = 1.0
    growth: ClassVar[float] = 0.5
    phrase: ClassVar[str] = "length-normalised accuracy falls by at most {bound}"
    percent: ClassVar[bool] = True

    def measure(self, reference: Answers, compressed: Answers, question: Question) -> tuple[float, float]:
        """1 − correct, under each model; the earliest of equally good choices counts as chosen."""
        first, second = reference.chosen(reference.characters), compressed.chosen(compressed.characters)
        return float(first != question.answer), float(second != question.answer)
