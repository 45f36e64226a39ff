"""SmoothQuant: move part of the outliers of an activation into the weights that read it.

Identity: (x / s) (W diag(s))ᵀ = x Wᵀ, with 1 / s folded into the gain and bias of the norm that writes x.
Source: Xiao, Lin, Seznec, Wu, Demouth, Han. SmoothQuant. ICML 2023. arXiv:2211.10438, equation 4.
Algebraic: equal in real arithmetic. Departs from it: a channel that is never active, or that no weight reads, keeps its
scale, and the readers of an edge may be any layers, a router or an output head among them.

When: weights and activations of eight bits. Cost: ranges of one pass; nothing at run time. Known failures: one exponent
for all edges is a guess; only layers behind a norm are smoothed unless `norms_only=False`; weights of four bits mind
what is moved into them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from pennyweight.errors import InvalidMethod
from pennyweight.methods.rewrites.readers import largest_read, largest_weight
from pennyweight.network.changing.fold import Fold, Transform
from pennyweight.network.finding.basis import Symmetry
from pennyweight.network.finding.kinds import apart, norm_of_edge, takes_scales
from pennyweight.network.sources.source import Source
from pennyweight.promises import Deterministic, Promise
from pennyweight.statistics import Statistics

SMALLEST = 1e-5  # of a channel's largest number or weight; below it the channel counts as dead


@dataclass(frozen=True, kw_only=True)
class SmoothQuant:
    """Divide every channel of an activation by s = max|x|^alpha / max|w|^(1-alpha), and multiply its readers' columns.

    Algebraic: (x / s) (W diag(s))ᵀ = x Wᵀ. Both maxima are over all readers of the edge.

    Args:
        alpha: how much of the difficulty moves to the weights, from 0 (every weight column gets a maximum of 1) to 1
            (every channel does); 0.8 to 0.9 suits networks with large outliers.
        norms_only: smooth what norms write and nothing else; otherwise every edge between two layers that takes scales.
    """

    name: ClassVar[str] = "smoothquant"
    paper: ClassVar[str] = "arXiv:2211.10438"
    needs: ClassVar[frozenset[str]] = frozenset({"range"})
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)
    alpha: float = 0.5
    norms_only: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise InvalidMethod(
                f"alpha={self.alpha!r}", expected="a number from 0 to 1", mend="smoothquant(alpha=0.5)", site=self.name
            )

    def choose(
        self, symmetries: Sequence[Symmetry], source: Source, statistics: Mapping[str, Statistics], *,
        generator: Generator,
    ) -> tuple[Fold, ...]:  # fmt: skip
        """A scale of 1 / s for every edge.

        Raises:
            MissingStatistics: nothing was seen of what an edge's readers read.
        """
        folds = []
        for symmetry in smoothed(symmetries, norms_only=self.norms_only):
            scale = smoothing(largest_read(symmetry, statistics), largest_weight(symmetry, source), self.alpha)
            folds.append(Fold(symmetry, Transform(scale=1 / scale)))
        return tuple(folds)


def smoothed(symmetries: Sequence[Symmetry], *, norms_only: bool) -> tuple[Symmetry, ...]:
    """The edges that are smoothed: those that a norm writes, or all that take scales."""
    return tuple(apart(s for s in symmetries if takes_scales(s) and (norm_of_edge(s) or not norms_only)))


def smoothing(read: Float[Tensor, " size"], weight: Float[Tensor, " size"], alpha: float) -> Float[Tensor, " size"]:
    """S = max|x|^alpha / max|w|^(1-alpha); 1 where a channel is dead."""
    scale = read.clamp(min=SMALLEST).pow(alpha) / weight.clamp(min=SMALLEST).pow(1 - alpha)
    return torch.where((read > SMALLEST) & (weight > SMALLEST), scale, 1.0)
