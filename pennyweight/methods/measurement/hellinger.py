"""Hellinger distance between the next-token distributions.

Source: Le Cam, Yang. Asymptotics in Statistics, 2nd edition, 2000, chapter 3. The square of it, 1 − Σ √(pq), is also
called by this name; here it is the distance, so that it compares with total variation: H² <= TV <= √2 H.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pennyweight.methods.measurement.pieces import in_pieces


@dataclass(frozen=True, kw_only=True)
class Hellinger:
    """√(½ Σ (√p − √q)²), between 0 and 1."""

    name: ClassVar[str] = "hellinger"
    paper: ClassVar[str] = "doi:10.1007/978-1-4612-1166-2"
    needs: ClassVar[frozenset[str]] = frozenset()
    unit: ClassVar[str] = "distance per token"
    reads: ClassVar[str] = "tokens"
    lower: ClassVar[float | None] = 0.0
    upper: ClassVar[float | None] = 1.0
    growth: ClassVar[float] = 0.5
    phrase: ClassVar[str] = "the Hellinger distance is at most {bound}"
    percent: ClassVar[bool] = False

    def measure(
        self,
        reference: Float[Tensor, "positions vocabulary"],
        compressed: Float[Tensor, "positions vocabulary"],
        labels: Int[Tensor, " positions"],
    ) -> tuple[Float[Tensor, " positions"], Float[Tensor, " positions"]]:
        """Zero, and the distance at each position; both arguments are log-probabilities, -inf allowed."""
        del labels
        distance = in_pieces(_distance, reference, compressed)
        return torch.zeros_like(distance), distance


def _distance(
    reference: Float[Tensor, "positions vocabulary"], compressed: Float[Tensor, "positions vocabulary"]
) -> Float[Tensor, " positions"]:
    # Not by way of 1 − Σ √(pq): between close models that difference is all rounding.
    gap = reference.div(2).exp() - compressed.div(2).exp()
    return gap.square().sum(-1).div(2).sqrt().clamp(max=1)
