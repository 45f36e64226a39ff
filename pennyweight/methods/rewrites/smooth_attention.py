"""SmoothAttention: divide the outlier channels of keys by what queries are multiplied with, so that cached keys round.

Identity: (Λ q)ᵀ (Λ⁻¹ k) = qᵀ k, and with rotary positions where both channels that turn together share one scale.
Source: Lin, Tang, Yang, Zhang, Xiao, Gan, Han. QServe. MLSys 2025. arXiv:2405.04532, section 4.2.
Algebraic: equal in real arithmetic. Which channels share a scale, and which heads of queries share a head of keys, is
not known here: the symmetry says so. Keys that are normed are scaled in the gains of those norms.

When: keys are kept in four or eight bits. Cost: ranges of one pass. Known failures: keys that a position turns share a
scale in pairs, so an outlier in one of them is not taken away whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator

from pennyweight.errors import InvalidMethod, MissingStatistics
from pennyweight.methods.rewrites.readers import gathered, observed
from pennyweight.network.changing.fold import Fold, Transform, written
from pennyweight.network.finding.basis import DIAGONAL, INVERTIBLE, Symmetry
from pennyweight.network.finding.kinds import apart, is_pair
from pennyweight.network.sources.source import Source
from pennyweight.promises import Deterministic, Promise
from pennyweight.statistics import Statistics

SMALLEST = 1e-5  # of a key channel's largest number; below it the channel counts as dead and keeps its scale


@dataclass(frozen=True, kw_only=True)
class SmoothAttention:
    """Divide every channel of the keys by λ = max|k|^alpha and multiply the queries by it; queries are not cached.

    Algebraic: (Λ q)ᵀ (Λ⁻¹ k) = qᵀ k. The maximum is over tokens and over all channels that share a scale, as the
    projection writes them: before positions are turned in, which changes it by √2 at most.

    Args:
        alpha: from 0 (nothing moves) to 1 (all channels of the keys get the same maximum).
    """

    name: ClassVar[str] = "smooth_attention"
    paper: ClassVar[str] = "arXiv:2405.04532"
    needs: ClassVar[frozenset[str]] = frozenset({"abs_max"})
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)
    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise InvalidMethod(
                f"alpha={self.alpha!r}", expected="a number from 0 to 1", mend="smooth_attention(alpha=0.5)",
                site=self.name,
            )  # fmt: skip

    def choose(
        self, symmetries: Sequence[Symmetry], source: Source, statistics: Mapping[str, Statistics], *,
        generator: Generator,
    ) -> tuple[Fold, ...]:  # fmt: skip
        """A scale of λ for every pair of queries and keys; the keys are the second of a pair, which takes the inverse.

        Raises:
            MissingStatistics: nothing was seen of the keys of a pair.
        """
        folds = []
        for symmetry in apart(s for s in symmetries if is_pair(s) and s.group in (DIAGONAL, INVERTIBLE)):
            largest, keys = torch.zeros(symmetry.size, dtype=torch.float64), False
            for side in symmetry.readers:
                seen = observed(side, statistics, written(side))
                if seen is not None and seen.abs_max is not None:
                    largest, keys = gathered(largest, seen.abs_max, side, "amax"), True
            if not keys:
                raise MissingStatistics(
                    "nothing was seen of the keys", expected="statistics of what their layer or norm writes",
                    mend="calibrate with data that reaches it", site=symmetry.name,
                )  # fmt: skip
            scale = torch.where(largest > SMALLEST, largest.clamp(min=SMALLEST).pow(self.alpha), 1.0)
            folds.append(Fold(symmetry, Transform(scale=scale)))
        return tuple(folds)
