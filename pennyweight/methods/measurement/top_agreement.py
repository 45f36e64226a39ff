"""Share of the k most likely next tokens that are not among the other model's k.

Source: Dutta, Krishnan, Kwatra, Ramjee. Accuracy is Not All You Need. NeurIPS 2024. arXiv:2407.09141.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pennyweight.errors import InvalidMethod


@dataclass(frozen=True, kw_only=True)
class TopAgreement:
    """1 − |T(reference) ∩ T(compressed)| / k with T the k most likely tokens; ties go to the lowest token ids.

    Args:
        k: tokens that are compared, >= 1 and at most the vocabulary.
    """

    name: ClassVar[str] = "top-k"
    paper: ClassVar[str] = "arXiv:2407.09141"
    needs: ClassVar[frozenset[str]] = frozenset()
    unit: ClassVar[str] = "share of the k most likely tokens"
    reads: ClassVar[str] = "tokens"
    lower: ClassVar[float | None] = 0.0
    upper: ClassVar[float | None] = 1.0
    growth: ClassVar[float] = 0.5
    phrase: ClassVar[str] = "at most {bound} of the most likely next tokens differ"
    percent: ClassVar[bool] = True
    k: int = 5

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise InvalidMethod(
                f"k = {self.k!r} tokens cannot be compared", expected="a whole number of at least 1", mend="top-k(k=5)",
                site=self.name,
            )  # fmt: skip

    def measure(
        self,
        reference: Float[Tensor, "positions vocabulary"],
        compressed: Float[Tensor, "positions vocabulary"],
        labels: Int[Tensor, " positions"],
    ) -> tuple[Float[Tensor, " positions"], Float[Tensor, " positions"]]:
        """Zero, and the share that differs at each position.

        Raises:
            InvalidMethod: k is larger than the vocabulary.
        """
        del labels
        if self.k > reference.shape[-1]:
            raise InvalidMethod(
                f"the {self.k} most likely of {reference.shape[-1]} tokens do not exist",
                expected="k at most the size of the vocabulary", mend=f"top-k(k={min(5, reference.shape[-1])})",
                site=self.name,
            )  # fmt: skip
        first, second = _most_likely(reference, self.k), _most_likely(compressed, self.k)
        shared = (first[:, :, None] == second[:, None, :]).sum((1, 2))
        differs = 1 - shared.to(reference.dtype) / self.k
        return torch.zeros_like(differs), differs


def _most_likely(scores: Float[Tensor, "positions vocabulary"], k: int) -> Int[Tensor, "positions k"]:
    """Token ids of the k highest scores; where several tie for the last place, the lowest ids."""
    if k == scores.shape[-1]:
        return torch.arange(k).expand(len(scores), k)
    values, ids = scores.topk(k + 1, dim=-1)
    ids = ids[:, :k].clone()
    # topk promises no order among equals. It matters only where the place after the last one has the same score.
    for row in (values[:, k - 1] == values[:, k]).nonzero()[:, 0].tolist():
        ids[row] = scores[row].sort(descending=True, stable=True).indices[:k]
    return ids
