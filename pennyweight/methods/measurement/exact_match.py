"""Exact match of generated answers, with the options of lm-evaluation-harness's `exact_match`.

Source: Gao et al. The Language Model Evaluation Harness. 2024. doi:10.5281/zenodo.12608602 (its metric, and its regex
filter for `extract`).
Departs from it: white space around an answer is dropped by default, because a model's text starts with the space that
separates it from the question; `strip=False` compares as the harness does without a filter.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pennyweight.errors import InvalidMethod
from pennyweight.task import Answers, Question

INVALID = "[invalid]"  # what the harness takes for the answer when `extract` matches nothing


@dataclass(frozen=True, kw_only=True)
class ExactMatch:
    """1 where the generated text is not the answer, after what the options leave out.

    Args:
        extract: regular expression that finds the answer in what was generated; its first match counts, or the first
            group of it that is not empty; empty takes all of the text.
        ignore: regular expression, or several, whose matches are deleted from both texts, one after the other.
        ignore_case: compare in lower case.
        ignore_punctuation: delete ASCII punctuation from both texts.
        ignore_numbers: delete the digits 0 to 9 from both texts.
        strip: drop white space around both texts.
    """

    name: ClassVar[str] = "exact_match"
    paper: ClassVar[str] = "doi:10.5281/zenodo.12608602"
    needs: ClassVar[frozenset[str]] = frozenset()
    unit: ClassVar[str] = "share of questions"
    reads: ClassVar[str] = "text"
    lower: ClassVar[float | None] = -1.0
    upper: ClassVar[float | None] = 1.0
    growth: ClassVar[float] = 0.5
    phrase: ClassVar[str] = "the share of exact answers falls by at most {bound}"
    percent: ClassVar[bool] = True
    extract: str = ""
    ignore: str | Sequence[str] = ()
    ignore_case: bool = False
    ignore_punctuation: bool = False
    ignore_numbers: bool = False
    strip: bool = True

    def __post_init__(self) -> None:
        patterns = (self.ignore,) if isinstance(self.ignore, str) else tuple(self.ignore)
        object.__setattr__(self, "ignore", patterns)  # a list from a specification would have no hash
        for pattern in (self.extract, *patterns):
            try:
                re.compile(pattern)
            except (re.error, TypeError) as error:
                raise InvalidMethod(
                    f"{pattern!r} is not a regular expression: {error}", expected="one that Python's re understands",
                    mend="exact_match(extract='#### (-?[0-9.,]+)')", site=self.name,
                ) from error  # fmt: skip

    def measure(self, reference: Answers, compressed: Answers, question: Question) -> tuple[float, float]:
        """1 − match, under each model."""
        answer = self._cleaned(str(question.answer))
        first, second = (self._cleaned(self._extracted(answers.text)) for answers in (reference, compressed))
        return float(first != answer), float(second != answer)

    def _extracted(self, text: str) -> str:
        if not self.extract:
            return text
        match = re.search(self.extract, text)
        if match is None:
            return INVALID
        found = next((group for group in match.groups() if group), INVALID) if match.groups() else match.group()
        return found.strip()

    def _cleaned(self, text: str) -> str:
        for pattern in self.ignore:
            text = re.sub(pattern, "", text)
        if self.ignore_case:
            text = text.lower()
        dropped = string.punctuation * self.ignore_punctuation + string.digits * self.ignore_numbers
        text = text.translate(str.maketrans("", "", dropped))
        return text.strip() if self.strip else text
