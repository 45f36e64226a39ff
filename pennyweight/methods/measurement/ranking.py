"""Reciprocal rank of the relevant document among candidates, ordered by their cosine with the query.

Source: Voorhees. The TREC-8 Question Answering Track Report. TREC 1999 (mean reciprocal rank).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.errors import InvalidMeasurement


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """1 − 1 / rank of the relevant candidate under each model; the difference is the drop of the reciprocal rank."""

    name: ClassVar[str] = "ranking"
    paper: ClassVar[str] = "TREC-8 1999"
    needs: ClassVar[frozenset[str]] = frozenset()
    unit: ClassVar[str] = "reciprocal rank"
    reads: ClassVar[str] = "outputs"
    lower: ClassVar[float | None] = -1.0
    upper: ClassVar[float | None] = 1.0
    growth: ClassVar[float] = 0.5
    phrase: ClassVar[str] = "the mean reciprocal rank falls by at most {bound}"
    percent: ClassVar[bool] = False

    def measure(
        self, reference: Float[Tensor, "texts size"], compressed: Float[Tensor, "texts size"], target: int
    ) -> tuple[float, float]:
        """Score under each model; the first row is the query, the others are candidates.

        Args:
            reference: embeddings of query and candidates by the reference model.
            compressed: the same texts by the compressed model.
            target: number of the relevant candidate, counted from 0 without the query.

        Raises:
            InvalidMeasurement: an embedding without direction, or a target that is not a candidate.
        """
        return _miss(reference, target), _miss(compressed, target)


def _miss(texts: Float[Tensor, "texts size"], target: int) -> float:
    norms = torch.linalg.vector_norm(texts.double(), dim=-1, keepdim=True)
    if not (torch.isfinite(norms).all() and (norms > 0).all()):
        raise InvalidMeasurement(
            "an embedding is zero, NaN or infinite", expected="vectors with a direction",
            mend="look at the first text that fails: it is empty, or the model overflows on it", site=Ranking.name,
        )  # fmt: skip
    unit = texts.double() / norms
    similarity = unit[1:] @ unit[0]
    if not 0 <= target < len(similarity):
        raise InvalidMeasurement(
            f"candidate {target} is relevant and there are {len(similarity)}",
            expected="a number of a candidate, counted from 0", mend="correct the target", site=Ranking.name,
        )  # fmt: skip
    own = similarity[target]
    ahead = (similarity > own).sum() + (similarity[:target] == own).sum()  # the earlier of equals ranks higher
    return 1 - 1 / (1 + int(ahead))
