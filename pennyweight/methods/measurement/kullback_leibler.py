"""KL(reference || compressed) of the next token, in nats.

Source: Kullback, Leibler 1951; as a compression metric: arXiv:2407.09141.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pennyweight.methods.measurement.pieces import in_pieces


@dataclass(frozen=True, kw_only=True)
class KullbackLeibler:
    """Σ p (log p − log q), over the whole vocabulary; zero for the reference itself.

    The sum is left as float32 gives it: between two models that hardly differ it can come out some 1e-7 below its
    lower limit of zero.
    """

    name: ClassVar[str] = "kl"
    paper: ClassVar[str] = "arXiv:2407.09141"
    needs: ClassVar[frozenset[str]] = frozenset()
    unit: ClassVar[str] = "nats per token"
    reads: ClassVar[str] = "tokens"
    lower: ClassVar[float | None] = 0.0
    upper: ClassVar[float | None] = None
    growth: ClassVar[float] = 1.0
    phrase: ClassVar[str] = "the Kullback-Leibler divergence is at most {bound}"
    percent: ClassVar[bool] = False

    def measure(
        self,
        reference: Float[Tensor, "positions vocabulary"],
        compressed: Float[Tensor, "positions vocabulary"],
        labels: Int[Tensor, " positions"],
    ) -> tuple[Float[Tensor, " positions"], Float[Tensor, " positions"]]:
        """Zero, and the divergence at each position; both arguments are log-probabilities."""
        del labels
        divergence = in_pieces(_divergence, reference, compressed)
        return torch.zeros_like(divergence), divergence


def _divergence(
    reference: Float[Tensor, "positions vocabulary"], compressed: Float[Tensor, "positions vocabulary"]
) -> Float[Tensor, " positions"]:
    weight = reference.exp()
    # A token the reference rules out (log-probability -inf) costs nothing: 0 · log 0 is 0, and not NaN.
    return (weight * torch.where(weight > 0, reference - compressed, 0.0)).sum(-1)
