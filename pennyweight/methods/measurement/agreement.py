"""Share of positions at which both models would choose the same next token.

Source: Dutta, Krishnan, Kwatra, Ramjee. Accuracy is Not All You Need. NeurIPS 2024. arXiv:2407.09141 (flips).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """1 where the most likely tokens differ; ties go to the lowest token id in both models."""

    name: ClassVar[str] = "disagreement"
    paper: ClassVar[str] = "arXiv:2407.09141"
    needs: ClassVar[frozenset[str]] = frozenset()
    unit: ClassVar[str] = "share of positions"
    reads: ClassVar[str] = "tokens"
    lower: ClassVar[float | None] = 0.0
    upper: ClassVar[float | None] = 1.0
    growth: ClassVar[float] = 0.5
    phrase: ClassVar[str] = "at most {bound} of next-token choices differ"
    percent: ClassVar[bool] = True

    def measure(
        self,
        reference: Float[Tensor, "positions vocabulary"],
        compressed: Float[Tensor, "positions vocabulary"],
        labels: Int[Tensor, " positions"],
    ) -> tuple[Float[Tensor, " positions"], Float[Tensor, " positions"]]:
        """Zero for the reference, and for the compressed model whether it disagrees."""
        del labels
        differs = (reference.argmax(-1) != compressed.argmax(-1)).float()
        return torch.zeros_like(differs), differs
