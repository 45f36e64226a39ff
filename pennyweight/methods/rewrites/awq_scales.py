"""AWQ's scales: enlarge the weight columns that meet large activations, so that rounding hurts them less.

Identity: (x / s) (W diag(s))ᵀ = x Wᵀ, with 1 / s folded into whatever writes x: a norm, or the rows of a layer.
Source: Lin, Tang, Tang, Yang, Xiao, Dang, Gan, Han. AWQ. MLSys 2024. arXiv:2306.00978, section 3.2.
Algebraic: equal in real arithmetic. Departs from it: the error is that of the layers that read the edge, not of the
attention or MLP around them; keys' heads that several queries share take one scale instead of none; no clipping here.

When: weights of four bits and fewer that are rounded plainly, and one static scale for activations, where it is among
the few that help. Cost: twenty roundings of every layer behind an edge. Known failures: nothing is left to gain where
the quantizer weighs inputs itself (GPTQ), or after a rotation, which makes all channels alike.
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
from pennyweight.methods.rewrites.readers import Reading, gathered, readings, rounded
from pennyweight.network.changing.fold import Fold, Transform
from pennyweight.network.finding.basis import Symmetry
from pennyweight.network.finding.kinds import apart, takes_scales
from pennyweight.network.sources.source import Source
from pennyweight.promises import Deterministic, Promise
from pennyweight.statistics import Statistics

SMALLEST = 1e-4  # scale before it is centred


@dataclass(frozen=True, kw_only=True)
class AWQScales:
    """Scale every channel by a power of its mean |x|, the power that changes the outputs of rounded layers least.

    Algebraic: (x / s) (W diag(s))ᵀ = x Wᵀ. A power of 0 is no scale, so that an edge never gets worse on its sample.

    Args:
        bits: of the weights that are tried.
        group_size: inputs that share a scale; where it does not divide a layer's inputs, the largest size that does.
        symmetric: round to a grid without zero points.
        points: powers tried are 0, 1 / points, … below 1.
    """

    name: ClassVar[str] = "awq_scales"
    paper: ClassVar[str] = "arXiv:2306.00978"
    needs: ClassVar[frozenset[str]] = frozenset({"sample"})
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)
    bits: int = 4
    group_size: int = 128
    symmetric: bool = False
    points: int = 20

    def __post_init__(self) -> None:
        if self.points < 1:
            raise InvalidMethod(
                f"points={self.points!r}", expected="one point or more", mend="awq_scales(points=20)", site=self.name
            )

    def choose(
        self, symmetries: Sequence[Symmetry], source: Source, statistics: Mapping[str, Statistics], *,
        generator: Generator,
    ) -> tuple[Fold, ...]:  # fmt: skip
        """A scale of 1 / s for every edge whose layers gain by it.

        Raises:
            MissingStatistics: nothing was seen of what an edge's readers read.
            InvalidFormat: a number of bits or a group size that no grid has.
        """
        folds = []
        for symmetry in apart(s for s in symmetries if takes_scales(s)):
            seen = readings(symmetry, source, statistics)
            mean = mean_read(symmetry, seen)
            scales = [scaling(mean, point / self.points) for point in range(self.points)]
            best = int(torch.stack([self._loss(seen, scale) for scale in scales]).argmin())
            if best:
                folds.append(Fold(symmetry, Transform(scale=1 / scales[best])))
        return tuple(folds)

    def _loss(self, seen: Sequence[Reading], scale: Tensor) -> Tensor:
        """Σ ‖X Wᵀ − (X / s) Q(W diag(s))ᵀ‖² over the readers of an edge."""
        grid = Grid(bits=self.bits, group_size=self.group_size, symmetric=self.symmetric, scale_dtype="float32")
        total = torch.zeros((), dtype=torch.float64)
        for reading in seen:
            s = reading.spread(scale)
            total += reading.squared_change(reading.sample, rounded(reading.weight * s, grid) / s - reading.weight)
        return total


def mean_read(symmetry: Symmetry, seen: Sequence[Reading]) -> Float[Tensor, " size"]:
    """Mean |x| of every channel, over the sampled rows of every reader and the inputs that follow it."""
    total, count = torch.zeros(2, symmetry.size, dtype=torch.float64)
    for reading in seen:
        total = gathered(total, reading.sample.abs().sum(0), reading.side, "sum")
        count = gathered(count, torch.full((len(reading.side.index),), float(len(reading.sample))), reading.side, "sum")
    return torch.div(total, count.clamp(min=1))


def scaling(mean: Float[Tensor, " size"], power: float) -> Float[Tensor, " size"]:
    """S = mean|x|^power, centred so that the largest and the smallest multiply to 1."""
    scale = mean.pow(power).clamp(min=SMALLEST)
    middle = (scale.amax() * scale.amin()).sqrt()
    return torch.div(scale, middle)
