"""Outlier Suppression+: centre every channel of an activation, then shrink those that stick out beyond one threshold.

Identity: ((x − z) / s) (W diag(s))ᵀ + (b + W z) = x Wᵀ + b.
Source: Wei, Zhang, Li, Zhang, Gong, Guo, Liu. Outlier Suppression+. EMNLP 2023. arXiv:2304.09145, sections 4.1 and 4.2.
Algebraic: equal in real arithmetic. Departs from it: the error is that of the layers that read the edge, not of the
attention or MLP around them; the range of an activation is the one seen, not an average over batches; thresholds follow
each other by one ratio instead of one distance, so that a hundred do for an activation of any size.

When: activations that are off centre channel by channel, with one static scale. Cost: a hundred roundings an edge; the
slowest of the scalings. Known failures: the shift needs a bias in every reader, which not every engine's layers have;
on SmolLM2 at W4A4 it was worse than nothing without online rotations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from pennyweight.errors import InvalidMethod
from pennyweight.formats import Grid
from pennyweight.methods.rewrites.readers import Reading, limits, readings, rounded
from pennyweight.network.changing.fold import Fold, Transform
from pennyweight.network.finding.basis import Symmetry
from pennyweight.network.finding.kinds import apart, holds_shift, takes_scales
from pennyweight.network.sources.source import Source
from pennyweight.numerics import uniform
from pennyweight.promises import Deterministic, Promise
from pennyweight.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class OutlierSuppressionPlus:
    """Shift by the middle of every channel's range, then scale by s = max(1, |x − z| / t) with one threshold t an edge.

    Algebraic: ((x − z) / s) (W diag(s))ᵀ + (b + W z) = x Wᵀ + b. An edge is shifted where the shift is let through and
    biases can hold it on both sides; elsewhere it is scaled only. t is the one, from the largest number down, with the
    least error of the outputs when both activation and weight are rounded.

    Args:
        bits: of activations and weights that are tried.
        per_token: round every row of an activation over its own range, rather than all over one.
        lowest: threshold at which the search ends; in units of the activation.
        steps: thresholds tried.
    """

    name: ClassVar[str] = "outlier_suppression_plus"
    paper: ClassVar[str] = "arXiv:2304.09145"
    needs: ClassVar[frozenset[str]] = frozenset({"range", "sample"})
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)
    bits: int = 8
    per_token: bool = False
    lowest: float = 0.1
    steps: int = 100

    def __post_init__(self) -> None:
        if not self.lowest > 0 or self.steps < 1:
            raise InvalidMethod(
                f"lowest={self.lowest!r}, steps={self.steps!r}", expected="a threshold above 0, and one step or more",
                mend="outlier_suppression_plus(lowest=0.1)", site=self.name,
            )  # fmt: skip

    def choose(
        self, symmetries: Sequence[Symmetry], source: Source, statistics: Mapping[str, Statistics], *,
        generator: Generator,
    ) -> tuple[Fold, ...]:  # fmt: skip
        """A scale of 1 / s and a shift of −z / s for every edge that takes scales.

        Raises:
            MissingStatistics: nothing was seen of what an edge's readers read.
            InvalidFormat: a number of bits that no grid has.
        """
        folds = []
        for symmetry in apart(s for s in symmetries if takes_scales(s)):
            low, high = limits(symmetry, statistics)
            middle = (low + high) / 2 if holds_shift(symmetry) else torch.zeros_like(low)
            half = torch.maximum((low - middle).abs(), (high - middle).abs())
            seen = readings(symmetry, source, statistics)
            scales = [(half / t).clamp(min=1.0) for t in self._thresholds(float(half.max()))]
            losses = [sum((self._loss(r, middle, s) for r in seen), torch.zeros(())) for s in scales]
            scale = scales[int(torch.stack(losses).argmin())]
            shift = -middle / scale if holds_shift(symmetry) else None
            folds.append(Fold(symmetry, Transform(scale=1 / scale, shift=shift)))
        return tuple(folds)

    def _thresholds(self, largest: float) -> list[float]:
        """From the largest number, at which nothing is touched, down to the lowest."""
        if largest <= self.lowest:
            return [self.lowest]
        shares = torch.linspace(0, 1, self.steps, dtype=torch.float64)
        thresholds: list[float] = (largest * (self.lowest / largest) ** shares).tolist()
        return thresholds

    def _loss(self, reading: Reading, middle: Float[Tensor, " size"], scale: Float[Tensor, " size"]) -> Tensor:
        """‖(X − z) Wᵀ − Q((X − z) / s) Q(W diag(s))ᵀ‖²; the bias b + W z is not rounded."""
        z, s = reading.spread(middle, 0.0), reading.spread(scale)
        centred = reading.sample - z
        x = centred / s
        if self.per_token:
            x = uniform.rounded_per_token(x, self.bits, symmetric=False)
        else:
            low, high = ((limit - z) / s for limit in reading.limits)
            scale, zero = uniform.affine(low.min().clamp(max=0), high.max().clamp(min=0), self.bits)
            x = uniform.rounded(x, scale, zero, self.bits)
        weight = rounded(reading.weight * s, Grid(bits=self.bits, scale_dtype="float32"))
        return (reading.outputs(x, weight) - reading.outputs(centred, reading.weight)).square().sum()
