"""Jensen-Shannon divergence of the next token, in nats: finite whatever either model rules out.

Source: Lin. Divergence measures based on the Shannon entropy. IEEE Trans. Inform. Theory 37(1), 1991.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pennyweight.methods.measurement.pieces import in_pieces

TINY = 1e-38  # stands for a probability of zero in a quotient; every positive normal float32 is larger


@dataclass(frozen=True, kw_only=True)
class JensenShannon:
    """½ KL(p || m) + ½ KL(q || m) with m = (p + q) / 2; symmetric, and at most ln 2."""

    name: ClassVar[str] = "js"
    paper: ClassVar[str] = "doi:10.1109/18.61115"
    needs: ClassVar[frozenset[str]] = frozenset()
    unit: ClassVar[str] = "nats per token"
    reads: ClassVar[str] = "tokens"
    lower: ClassVar[float | None] = 0.0
    upper: ClassVar[float | None] = math.log(2)
    growth: ClassVar[float] = 1.0
    phrase: ClassVar[str] = "the Jensen-Shannon divergence is at most {bound}"
    percent: ClassVar[bool] = False

    def measure(
        self,
        reference: Float[Tensor, "positions vocabulary"],
        compressed: Float[Tensor, "positions vocabulary"],
        labels: Int[Tensor, " positions"],
    ) -> tuple[Float[Tensor, " positions"], Float[Tensor, " positions"]]:
        """Zero, and the divergence at each position; both arguments are log-probabilities, -inf allowed."""
        del labels
        divergence = in_pieces(_divergence, reference, compressed)
        return torch.zeros_like(divergence), divergence


def _divergence(
    reference: Float[Tensor, "positions vocabulary"], compressed: Float[Tensor, "positions vocabulary"]
) -> Float[Tensor, " positions"]:
    """With r = (p − q) / (p + q) it is ½ Σ m [(1 + r) log(1 + r) + (1 − r) log(1 − r)].

    No term is negative, equal models give zero exactly, and nothing cancels except r itself.
    """
    p, q = reference.exp(), compressed.exp()
    both = p + q
    # Just inside ±1, where one of the products would be 0 · log 0; xlog1py knows that limit and takes twice as
    # long.
    most = 1 - torch.finfo(p.dtype).eps / 2
    r = (p - q).div_(both.clamp(min=TINY)).clamp_(-most, most)
    terms = (1 + r).mul_(r.log1p()).add_((1 - r).mul_((-r).log1p()))
    return (both * terms).sum(-1).div(4).clamp(0, math.log(2))
