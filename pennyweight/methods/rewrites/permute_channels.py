"""Sort the channels of an activation by how large they grow, so that neighbours, which share a scale, are alike.

Identity: (W P⁻¹)(P f(x)) = W f(x), and P f(x) = f(P x) where the symmetry lets channels change places.
Source: the channel reordering of QServe (Lin et al., 2024, arXiv:2405.04532), after RPTQ (arXiv:2304.01089).
Bitwise in the weights: they only change places. Algebraic in the outputs: sums run in another order.

When: groups of channels share a scale, of activations or of weights. Cost: one sort an edge, nothing at run time. Known
failures: an order that helps one edge may be one for nothing where a weight is rounded by rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from pennyweight.errors import MissingStatistics
from pennyweight.network.changing.fold import Fold, Transform, activation
from pennyweight.network.finding.basis import INVERTIBLE, PERMUTATION, Symmetry
from pennyweight.network.finding.kinds import apart, is_pair
from pennyweight.network.sources.source import Source
from pennyweight.promises import Deterministic, Promise
from pennyweight.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class PermuteChannels:
    """Order channels by the largest |x| that calibration showed where layers read them, largest first.

    Channels of an attention head keep to their head. Several heads that share their values share an order, by the
    largest of theirs.

    Args:
        residual: order edges too whose readers see different activations, such as a residual stream: what is largest
            anywhere counts.
        heads: order whole heads too, where queries, keys and values follow.
    """

    name: ClassVar[str] = "permute_channels"
    paper: ClassVar[str] = "arXiv:2405.04532"
    needs: ClassVar[frozenset[str]] = frozenset({"abs_max"})
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)
    residual: bool = False
    heads: bool = False

    def choose(
        self, symmetries: Sequence[Symmetry], source: Source, statistics: Mapping[str, Statistics], *,
        generator: Generator,
    ) -> tuple[Fold, ...]:  # fmt: skip
        """One order an edge.

        Raises:
            MissingStatistics: calibration never came by a reader.
        """
        found = [s for s in symmetries if s.readers and not is_pair(s) and s.group in (PERMUTATION, INVERTIBLE)]
        whole = [s for s in found if s.group == PERMUTATION and any(len(side.index) > s.size for side in s.readers)]
        inside = [s for s in found if s not in whole and s.block > 1]
        folds = []
        for symmetry in [*apart(inside), *apart(whole if self.heads else [])]:
            seen = [_largest(symmetry, side.index, _abs_max(statistics, activation(side))) for side in symmetry.readers]
            if not self.residual and any(not torch.equal(one, seen[0]) for one in seen[1:]):
                continue
            order = torch.stack(seen).amax(0).reshape(-1, symmetry.block).argsort(dim=-1, descending=True, stable=True)
            folds.append(Fold(symmetry, _transform(symmetry, order)))
        return tuple(folds)


def _abs_max(statistics: Mapping[str, Statistics], name: str) -> Tensor:
    seen = statistics.get(name)
    if seen is None or seen.abs_max is None:
        raise MissingStatistics(
            "nothing was seen of this activation", expected="its largest values", site=name,
            mend="calibrate with inputs that reach every layer",
        )  # fmt: skip
    return seen.abs_max.double()


def _largest(symmetry: Symmetry, index: Int[Tensor, " n"], seen: Float[Tensor, " n"]) -> Float[Tensor, " size"]:
    touched = index >= 0
    return torch.zeros(symmetry.size, dtype=torch.float64).scatter_reduce(0, index[touched], seen[touched], "amax")


def _transform(symmetry: Symmetry, order: Int[Tensor, "blocks b"]) -> Transform:
    """As an order where it may be one, and as a matrix of zeros and ones where blocks have an order each."""
    if symmetry.group == PERMUTATION:
        return Transform(order=order.flatten())
    return Transform(matrix=torch.eye(symmetry.block, dtype=torch.float64)[order])
