"""SmoothQuant+: smooth before 4-bit weight rounding, with one exponent for the whole network.

Identity: (x / s) (W diag(s))ᵀ = x Wᵀ, as in SmoothQuant.
Source: Pan, Wang, Zheng, Li, Wang, Zhang. SmoothQuant+. 2023. arXiv:2312.03788. Its code is not public: the grid of 21
exponents and min-max groups of 128 are ours.
Algebraic: equal in real arithmetic. Departs from it: the loss of a layer is measured on what it read in the unrounded
network, so that one pass over the data is enough; and where plain rounding loses least, nothing is smoothed.

When: weights of four bits rounded plainly, and before a rotation. Cost: 21 roundings of every layer. Known failures: it
gains next to nothing in groups of 64 on SmolLM2 (36.80 against 36.83).
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
from pennyweight.methods.rewrites.readers import largest_read, largest_weight, readings, rounded
from pennyweight.methods.rewrites.smoothquant import smoothed, smoothing
from pennyweight.network.changing.fold import Fold, Transform
from pennyweight.network.finding.basis import Symmetry
from pennyweight.network.sources.source import Source
from pennyweight.promises import Deterministic, Promise
from pennyweight.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class SmoothQuantPlus:
    """Smooth with the exponent that loses least in total when weights are rounded, the same for every edge.

    Algebraic: (x / s) (W diag(s))ᵀ = x Wᵀ, with s = max|x|^alpha / max|w|^(1-alpha).

    Args:
        bits: of the weights that are tried.
        group_size: inputs that share a scale; where it does not divide a layer's inputs, the largest size that does.
        steps: exponents tried are 0, 1 / steps, …, 1.
    """

    name: ClassVar[str] = "smoothquant_plus"
    paper: ClassVar[str] = "arXiv:2312.03788"
    needs: ClassVar[frozenset[str]] = frozenset({"range", "sample"})
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)
    bits: int = 4
    group_size: int = 128
    steps: int = 20

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InvalidMethod(
                f"steps={self.steps!r}", expected="one step or more", mend="smoothquant_plus(steps=20)", site=self.name
            )

    def choose(
        self, symmetries: Sequence[Symmetry], source: Source, statistics: Mapping[str, Statistics], *,
        generator: Generator,
    ) -> tuple[Fold, ...]:  # fmt: skip
        """A scale of 1 / s for every edge a norm writes; none at all where plain rounding loses less.

        Raises:
            MissingStatistics: nothing was seen of what an edge's readers read.
            InvalidFormat: a number of bits or a group size that no grid has.
        """
        edges = smoothed(symmetries, norms_only=True)
        exponents = [step / self.steps for step in range(self.steps + 1)]
        losses = torch.zeros(1 + len(exponents), dtype=torch.float64)
        maxima = []
        for symmetry in edges:
            read, weight = largest_read(symmetry, statistics), largest_weight(symmetry, source)
            maxima.append((read, weight))
            scales = [torch.ones_like(read), *(smoothing(read, weight, alpha) for alpha in exponents)]
            losses += self._losses(symmetry, source, statistics, scales)
        best = int(losses.argmin()) - 1
        if best < 0:
            return ()
        found = (smoothing(read, weight, exponents[best]) for read, weight in maxima)
        return tuple(Fold(s, Transform(scale=1 / scale)) for s, scale in zip(edges, found, strict=True))

    def _losses(
        self, symmetry: Symmetry, source: Source, statistics: Mapping[str, Statistics], scales: Sequence[Tensor]
    ) -> Float[Tensor, " scales"]:
        """Σ ‖X Wᵀ − (X / s) Q(W diag(s))ᵀ‖² over the readers of an edge, for every s."""
        grid = Grid(bits=self.bits, group_size=self.group_size, symmetric=False, scale_dtype="float32")
        losses = torch.zeros(len(scales), dtype=torch.float64)
        for reading in readings(symmetry, source, statistics):
            for number, scale in enumerate(scales):
                s = reading.spread(scale)
                error = rounded(reading.weight * s, grid) / s - reading.weight
                losses[number] += reading.squared_change(reading.sample, error)
        return losses
