"""Loss of the true next token under both models; its mean difference is the logarithm of the perplexity ratio.

Source: standard; paired use: Miller. Adding Error Bars to Evals. 2024. arXiv:2411.00640.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """−log p(token) under each model, in nats."""

    name: ClassVar[str] = "perplexity"
    paper: ClassVar[str] = "arXiv:2411.00640"
    needs: ClassVar[frozenset[str]] = frozenset()
    unit: ClassVar[str] = "nats per token"
    reads: ClassVar[str] = "tokens"
    lower: ClassVar[float | None] = None
    upper: ClassVar[float | None] = None
    growth: ClassVar[float] = 1.0
    phrase: ClassVar[str] = "perplexity rises by at most {bound}"
    percent: ClassVar[bool] = True

    def measure(
        self,
        reference: Float[Tensor, "positions vocabulary"],
        compressed: Float[Tensor, "positions vocabulary"],
        labels: Int[Tensor, " positions"],
    ) -> tuple[Float[Tensor, " positions"], Float[Tensor, " positions"]]:
        """Loss of the label at each position; both arguments are log-probabilities."""
        chosen = labels[:, None]
        return -reference.gather(1, chosen)[:, 0], -compressed.gather(1, chosen)[:, 0]
