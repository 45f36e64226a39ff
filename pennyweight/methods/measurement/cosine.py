"""Cosine distance between the embeddings that two models give one text.

Source: Reimers, Gurevych. Sentence-BERT. EMNLP 2019. arXiv:1908.10084 (the similarity embedding models are used with).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.errors import InvalidMeasurement


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """1 − cos(reference, compressed), between 0 and 2; the length of an embedding does not count."""

    name: ClassVar[str] = "cosine"
    paper: ClassVar[str] = "arXiv:1908.10084"
    needs: ClassVar[frozenset[str]] = frozenset()
    unit: ClassVar[str] = "cosine distance"
    reads: ClassVar[str] = "outputs"
    lower: ClassVar[float | None] = 0.0
    upper: ClassVar[float | None] = 2.0
    growth: ClassVar[float] = 1.0
    phrase: ClassVar[str] = "the cosine distance of embeddings is at most {bound}"
    percent: ClassVar[bool] = False

    def measure(
        self, reference: Float[Tensor, " size"], compressed: Float[Tensor, " size"], target: Any
    ) -> tuple[float, float]:
        """Zero, and the distance.

        Raises:
            InvalidMeasurement: an embedding is zero, NaN or infinite, so that it has no direction.
        """
        del target
        # Half the squared distance of unit vectors: the same number, and exactly zero for equal embeddings.
        gap = _direction(reference) - _direction(compressed)
        return 0.0, min(2.0, float(gap.square().sum()) / 2)


def _direction(embedding: Float[Tensor, " size"]) -> Float[Tensor, " size"]:
    values = embedding.double()
    norm = torch.linalg.vector_norm(values)
    if not (torch.isfinite(norm) and norm > 0):
        raise InvalidMeasurement(
            "an embedding is zero, NaN or infinite", expected="a vector with a direction",
            mend="look at the first text that fails: it is empty, or the model overflows on it", site=Cosine.name,
        )  # fmt: skip
    direction: Tensor = values / norm
    return direction
