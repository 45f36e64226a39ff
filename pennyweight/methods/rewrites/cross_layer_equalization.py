"""Cross-layer equalization: scale the channels between two layers until both have the same range in every one of them.

Identity: W₂ φ(W₁ x + b₁) = (W₂ diag(s)) φ(diag(1/s) (W₁ x + b₁)) for s > 0 and a φ with φ(s x) = s φ(x), such as ReLU.
Source: Nagel, van Baalen, Blankevoort, Welling. Data-Free Quantization Through Weight Equalization and Bias Correction.
ICCV 2019. arXiv:1906.04721, section 4.1. Batch norms are folded first, by `fold_batch_norm`.
Algebraic: equal in real arithmetic. Departs from it: three layers around a depthwise one come to one range by going
over both pairs again, which has the same end; the absorption of high biases, which is not exact, is left out.

When: convolutions with a scale a tensor, behind a ReLU. Cost: a few passes over ranges of weights; no data. Known
failures: it looks at weights alone, and activations of the channels it enlarges grow: on SmolLM2 one static scale for
activations gets worse (80 against 63 in perplexity).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from scipy.cluster.hierarchy import DisjointSet
from torch import Generator, Tensor

from pennyweight.errors import InvalidMethod
from pennyweight.network.changing.fold import Fold, Transform, acted, channel_values, exact
from pennyweight.network.finding.basis import Side, Symmetry
from pennyweight.network.finding.kinds import apart, takes_scales
from pennyweight.network.sources.source import Source
from pennyweight.promises import Deterministic, Promise
from pennyweight.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class CrossLayerEqualization:
    """Divide the rows of one layer by s = √(r₁ / r₂) and multiply the columns of the next: both ranges become √(r₁ r₂).

    Algebraic; no data is needed. r₁ and r₂ are the largest |w| of a channel on either side. Layers in a chain are gone
    through again until nothing changes. A channel that one side does not use keeps its scale, and edges that a norm
    writes are left alone.

    Args:
        tolerance: the largest change of any scale, relative, at which ranges count as equal.
        sweeps: through a chain, at most.
    """

    name: ClassVar[str] = "cross_layer_equalization"
    paper: ClassVar[str] = "arXiv:1906.04721"
    needs: ClassVar[frozenset[str]] = frozenset()
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)
    tolerance: float = 1e-4
    sweeps: int = 1000

    def __post_init__(self) -> None:
        if not self.tolerance > 0 or self.sweeps < 1:
            raise InvalidMethod(
                f"tolerance={self.tolerance!r}, sweeps={self.sweeps!r}",
                expected="a tolerance above 0, and one sweep or more", mend="cross_layer_equalization(tolerance=1e-4)",
                site=self.name,
            )  # fmt: skip

    def choose(
        self, symmetries: Sequence[Symmetry], source: Source, statistics: Mapping[str, Statistics], *,
        generator: Generator,
    ) -> tuple[Fold, ...]:  # fmt: skip
        """A scale of 1 / s for every edge between two layers; the weights of one chain are in memory at a time."""
        edges = tuple(apart(s for s in symmetries if takes_scales(s) and _is_between_layers(s)))
        chains = DisjointSet([name for edge in edges for name in _weights(edge)])
        for edge in edges:
            first, *rest = _weights(edge)
            for name in rest:
                chains.merge(first, name)
        scales: dict[Symmetry, Tensor] = {}
        for names in chains.subsets():
            chain = [edge for edge in edges if _weights(edge)[0] in names]
            scales |= self._equalized(chain, {name: exact(source, name) for name in names})
        return tuple(Fold(edge, Transform(scale=1 / scales[edge])) for edge in edges)

    def _equalized(self, chain: Sequence[Symmetry], weights: dict[str, Tensor]) -> dict[Symmetry, Tensor]:
        """The product of all scales of every edge of a chain; `weights` follow."""
        total = {edge: torch.ones(edge.size, dtype=torch.float64) for edge in chain}
        for _ in range(self.sweeps):
            largest = 0.0
            for edge in chain:
                first, second = (largest_weight(edge, sides, weights) for sides in (edge.writers, edge.readers))
                s = scale_between(first, second)
                for side in (side for side in edge.sides if side.port.kind == "weight"):
                    name = side.port.parameter
                    weights[name] = acted(weights[name], side, Transform(scale=1 / s))
                total[edge] *= s
                largest = max(largest, float((s - 1).abs().max()))
            if largest < self.tolerance:
                break
        return total


def scale_between(first: Float[Tensor, " size"], second: Float[Tensor, " size"]) -> Float[Tensor, " size"]:
    """S = √(r₁ / r₂), after which both are √(r₁ r₂); 1 where either is zero."""
    used = (first > 0) & (second > 0)
    return torch.where(used, first / torch.where(used, second, 1.0), 1.0).sqrt()


def largest_weight(edge: Symmetry, sides: Sequence[Side], weights: Mapping[str, Tensor]) -> Float[Tensor, " size"]:
    """Largest |w| of every channel over all weights on one side of an edge."""
    held = [side for side in sides if side.port.kind == "weight"]
    return torch.stack([channel_values(weights[s.port.parameter], s, edge.size) for s in held]).amax(0)


def _is_between_layers(edge: Symmetry) -> bool:
    kinds = {side.port.kind for side in edge.writers}
    return "weight" in kinds and kinds <= {"weight", "bias"}


def _weights(edge: Symmetry) -> list[str]:
    return [side.port.parameter for side in edge.sides if side.port.kind == "weight"]
