"""KL(reference || compressed) of the next token, in nats.

Source: Kullback, Leibler 1951; as a compression metric: arXiv:2407.09141.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class KullbackLeibler:
    """Σ p (log p − log q), over the whole vocabulary; zero for the reference itself."""

    name: ClassVar[str] = "kl"
    paper: ClassVar[str] = "arXiv:2407.09141"
    needs: ClassVar[frozenset[str]] = frozenset()
    unit: ClassVar[str] = "nats per token"

    def measure(
        self,
        reference: Float[Tensor, "positions vocabulary"],
        compressed: Float[Tensor, "positions vocabulary"],
        labels: Int[Tensor, " positions"],
    ) -> tuple[Float[Tensor, " positions"], Float[Tensor, " positions"]]:
        """Zero, and the divergence at each position; both arguments are log-probabilities."""
        del labels
        divergence = (reference.exp() * (reference - compressed)).sum(-1)
        return torch.zeros_like(divergence), divergence
