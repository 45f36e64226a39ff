"""Total variation between the next-token distributions: the probability mass that moved.

Source: Levin, Peres. Markov Chains and Mixing Times, 2nd edition, 2017, section 4.1; as a compression metric:
arXiv:2407.09141.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pennyweight.methods.measurement.pieces import in_pieces


@dataclass(frozen=True, kw_only=True)
class TotalVariation:
    """½ Σ |p − q|; also the least probability that two samplers, coupled as well as possible, draw different tokens."""

    name: ClassVar[str] = "tv"
    paper: ClassVar[str] = "arXiv:2407.09141"
    needs: ClassVar[frozenset[str]] = frozenset()
    unit: ClassVar[str] = "share of probability"
    reads: ClassVar[str] = "tokens"
    lower: ClassVar[float | None] = 0.0
    upper: ClassVar[float | None] = 1.0
    growth: ClassVar[float] = 0.5
    phrase: ClassVar[str] = "at most {bound} of the next-token probability moves"
    percent: ClassVar[bool] = True

    def measure(
        self,
        reference: Float[Tensor, "positions vocabulary"],
        compressed: Float[Tensor, "positions vocabulary"],
        labels: Int[Tensor, " positions"],
    ) -> tuple[Float[Tensor, " positions"], Float[Tensor, " positions"]]:
        """Zero, and the distance at each position; both arguments are log-probabilities."""
        del labels
        distance = in_pieces(_distance, reference, compressed)
        return torch.zeros_like(distance), distance


def _distance(
    reference: Float[Tensor, "positions vocabulary"], compressed: Float[Tensor, "positions vocabulary"]
) -> Float[Tensor, " positions"]:
    return (reference.exp() - compressed.exp()).abs().sum(-1).div(2).clamp(max=1)  # 1 + 1e-7 is rounding
