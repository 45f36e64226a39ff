"""Accuracy by log-likelihood per byte, as lm-evaluation-harness's `acc_bytes`.

Source: Gao et al. The Language Model Evaluation Harness. 2024. doi:10.5281/zenodo.12608602.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pennyweight.task import Answers, Question


@dataclass(frozen=True, kw_only=True)
class AccuracyBytes:
    """1 where the choice with the highest log-likelihood per byte of its UTF-8 form is wrong.

    Unlike a count of tokens or characters, bytes treat scripts and tokenizers alike. The delimiter is not counted.
    """

    name: ClassVar[str] = "accuracy_bytes"
    paper: ClassVar[str] = "doi:10.5281/zenodo.12608602"
    needs: ClassVar[frozenset[str]] = frozenset()
    unit: ClassVar[str] = "share of questions"
    reads: ClassVar[str] = "choices"
    lower: ClassVar[float | None] = -1.0
    upper: ClassVar[float | None] = 1.0
    growth: ClassVar[float] = 0.5
    phrase: ClassVar[str] = "byte-normalised accuracy falls by at most {bound}"
    percent: ClassVar[bool] = True

    def measure(self, reference: Answers, compressed: Answers, question: Question) -> tuple[float, float]:
        """1 − correct, under each model; the earliest of equally good choices counts as chosen."""
        first, second = reference.chosen(reference.byte_lengths), compressed.chosen(compressed.byte_lengths)
        return float(first != question.answer), float(second != question.answer)
