"""Uniformly random rotations, what Hadamard matrices are measured against.

Identity: W x = (W Rᵀ) (R x), on the residual stream and inside heads, folded into weights.
Source: the random orthogonal baseline of SpinQuant (Liu et al., 2024, arXiv:2405.16406), section 2 and figure 4.
Algebraic: equal in real arithmetic. Gains of norms are folded into the layers that read them first.

When: to compare with `hadamard`. Cost: a decomposition an edge and a product of every weight. Known failures: it
spreads less evenly: on SmolLM2 at W4A4 with online rotation a perplexity of 428, where Hadamard matrices give 282.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator

from pennyweight.methods.rewrites.rotations import drawn, rotatable, rotation
from pennyweight.network.changing.fold import Fold
from pennyweight.network.finding.symmetry import Symmetry
from pennyweight.network.sources.source import Source
from pennyweight.numerics.hadamard import random_orthogonal
from pennyweight.promises import Deterministic, Promise
from pennyweight.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class RandomRotation:
    """Rotate the residual stream and every head by orthogonal matrices drawn from the Haar measure.

    Args:
        residual: rotate the streams that norms read. One with a norm whose output is added to it is left alone.
        heads: rotate inside heads: values and the layer that reads them, queries and keys without positions.
        fold: fold the gains of norms away first; otherwise a norm that holds one is refused.
    """

    name: ClassVar[str] = "random_rotation"
    paper: ClassVar[str] = "arXiv:2405.16406"
    needs: ClassVar[frozenset[str]] = frozenset()
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)
    residual: bool = True
    heads: bool = True
    fold: bool = True

    def choose(
        self, symmetries: Sequence[Symmetry], source: Source, statistics: Mapping[str, Statistics], *,
        generator: Generator,
    ) -> tuple[Fold, ...]:  # fmt: skip
        """Folds that empty the norms, then one rotation an edge.

        Raises:
            InvalidTransform: a shared tensor keeps a gain from leaving, or nothing can be rotated.
        """
        found = rotatable(symmetries, source, generator, method=self.name, residual=self.residual, heads=self.heads,
                          fold=self.fold)  # fmt: skip
        turned = [
            Fold(edge, rotation(edge, drawn(edge, lambda n: random_orthogonal(n, generator)))) for edge in found.edges
        ]
        return (*found.folds, *turned)
