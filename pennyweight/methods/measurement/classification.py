"""Accuracy of a classifier: the class with the highest score against the label.

Source: standard; the paired difference: Miller. Adding Error Bars to Evals. 2024. arXiv:2411.00640.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.errors import InvalidMeasurement


@dataclass(frozen=True, kw_only=True)
class Classification:
    """1 where the highest score is not that of the label; ties go to the lowest class."""

    name: ClassVar[str] = "classification"
    paper: ClassVar[str] = "arXiv:2411.00640"
    needs: ClassVar[frozenset[str]] = frozenset()
    unit: ClassVar[str] = "share of inputs"
    reads: ClassVar[str] = "outputs"
    lower: ClassVar[float | None] = -1.0
    upper: ClassVar[float | None] = 1.0
    growth: ClassVar[float] = 0.5
    phrase: ClassVar[str] = "accuracy falls by at most {bound}"
    percent: ClassVar[bool] = True

    def measure(
        self, reference: Float[Tensor, " classes"], compressed: Float[Tensor, " classes"], target: int
    ) -> tuple[float, float]:
        """1 − correct, under each model; `target` is the number of the right class.

        Raises:
            InvalidMeasurement: a score is NaN, or there is no such class.
        """
        return _wrong(reference, target), _wrong(compressed, target)


def _wrong(scores: Float[Tensor, " classes"], target: int) -> float:
    if torch.isnan(scores).any():
        raise InvalidMeasurement(
            "a class score is NaN", expected="one number a class",
            mend="look at the first input that fails: the model overflows on it", site=Classification.name,
        )  # fmt: skip
    if not 0 <= target < len(scores):
        raise InvalidMeasurement(
            f"class {target} is right and there are {len(scores)}", expected="the number of a class, counted from 0",
            mend="correct the label", site=Classification.name,
        )  # fmt: skip
    return float(int(scores.argmax()) != target)
