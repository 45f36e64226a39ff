"""RepQ: fold the scale and zero point of every channel into the norm before it, so that one scale serves them all.

Identity: y = x / r − a in the norm; W diag(r) and b + W diag(r) a in what reads it. With whole numbers a / δ̃ the codes
of y on one grid are those of x on a grid for each channel: rounding y costs no more than rounding x by channels.
Source: Li, Xiao, Yang, Gu. RepQ-ViT. ICCV 2023. arXiv:2212.08254, section 4.1; Li et al. RepQuant. 2024.
arXiv:2402.05628; the median is MOSF of Yang, Gong, Zhou. DopQ-ViT. 2024. arXiv:2408.03291.
Algebraic: equal in real arithmetic. Departs from it: the common zero point is rounded, without which codes differ at
the ends of the range; ranges run from minimum to maximum, since a sample of rows holds no percentile of 0.999.

When: inputs of layers behind a LayerNorm that have one static scale and zero point: vision transformers. Cost: ranges
of one pass. Known failures: columns of what reads the edge become more unequal, which weights of few bits pay for; a
channel that was nearly dead would get an enormous factor and keeps its scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from pennyweight.errors import InvalidMethod
from pennyweight.methods.rewrites.readers import limits
from pennyweight.network.changing.fold import Fold, Transform
from pennyweight.network.finding.basis import Symmetry
from pennyweight.network.finding.kinds import apart, holds_shift, norm_of_edge, takes_scales
from pennyweight.network.sources.source import Source
from pennyweight.numerics.uniform import affine
from pennyweight.promises import Deterministic, Promise
from pennyweight.statistics import Statistics

CENTRES: Mapping[str, Callable[[Tensor], Tensor]] = {"mean": torch.mean, "median": torch.median}


@dataclass(frozen=True, kw_only=True)
class RepQ:
    """Give all channels that a norm writes the range and zero point of one common grid.

    Algebraic: ((x / r − a) (W diag(r))ᵀ + b + W diag(r) a = x Wᵀ + b, with r = δ / δ̃ and a = (z̃ − z) δ̃ for scales δ
    and zero points z of the channels, and z̃ rounded. Without biases to hold a, ranges are symmetric and a is zero.

    Args:
        bits: of the activation's codes.
        centre: what becomes of the scales and zero points of all channels: `mean`, or `median`, which a few outlying
            channels do not move.
        floor: a channel whose scale is below this share of the common one is as good as constant, and keeps its scale.
    """

    name: ClassVar[str] = "repq"
    paper: ClassVar[str] = "arXiv:2212.08254"
    needs: ClassVar[frozenset[str]] = frozenset({"range"})
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)
    bits: int = 8
    centre: str = "mean"
    floor: float = 1e-3

    def __post_init__(self) -> None:
        if self.centre not in CENTRES or not 2 <= self.bits <= 16 or not 0 <= self.floor < 1:
            raise InvalidMethod(
                f"bits={self.bits!r}, centre={self.centre!r}, floor={self.floor!r}",
                expected=f"2 to 16 bits, {' or '.join(CENTRES)}, and a floor from 0 to below 1",
                mend="repq(centre='mean')", site=self.name,
            )  # fmt: skip

    def choose(
        self, symmetries: Sequence[Symmetry], source: Source, statistics: Mapping[str, Statistics], *,
        generator: Generator,
    ) -> tuple[Fold, ...]:  # fmt: skip
        """A scale of 1 / r and a shift of −a for every edge that a norm writes.

        Raises:
            MissingStatistics: nothing was seen of what an edge's readers read.
        """
        folds = []
        for symmetry in apart(s for s in symmetries if takes_scales(s) and norm_of_edge(s)):
            low, high = limits(symmetry, statistics)
            if not holds_shift(symmetry):
                high = torch.maximum(low.abs(), high.abs())
                low = -high
            scale, zero, common, middle = self.common(low, high)
            shift = (zero - middle) * common if holds_shift(symmetry) else None
            if float(common) > 0:
                folds.append(Fold(symmetry, Transform(scale=common / scale, shift=shift)))
        return tuple(folds)

    def common(
        self, low: Float[Tensor, " size"], high: Float[Tensor, " size"]
    ) -> tuple[Float[Tensor, " size"], Float[Tensor, " size"], Float[Tensor, ""], Float[Tensor, ""]]:
        """Scales and zero points of the channels, and the ones that stand for all."""
        scale, _ = affine(low, high, self.bits)
        common = CENTRES[self.centre](scale)
        scale = torch.where(scale < self.floor * common, common, scale)
        zero = (-low / scale).round()
        return scale, zero, common, CENTRES[self.centre](zero).round()
