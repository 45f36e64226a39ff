"""Move the gains and biases of norms into the layers that read them.

Identity: W (g ⊙ n(x) + b) + c = (W diag(g)) n(x) + (W b + c).
Source: a step of QuaRot (Ashkboos et al., 2024, arXiv:2404.00456), SpinQuant, and Pre-RMSNorm (arXiv:2305.14858).
Algebraic: equal in real arithmetic. A rotation commutes with a norm only where nothing is left in it.

When: as a step of a rotation. Cost: one pass over the readers' weights. Known failures: alone it makes rounding worse,
as columns get the gains' unequal sizes: on SmolLM2 at four bits in groups of 64 by eleven points of perplexity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor

from pennyweight.errors import InvalidTransform
from pennyweight.network.changing.fold import Fold, Transform, exact
from pennyweight.network.finding.symmetry import DIAGONAL, Symmetry
from pennyweight.network.sources.source import Source
from pennyweight.promises import Deterministic, Promise
from pennyweight.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class FoldNorms:
    """Leave every norm whose readers can take it without gain and bias.

    Args:
        bias: move biases too, where every reader has a bias to take them; a norm whose readers have none keeps its own.
    """

    name: ClassVar[str] = "fold_norms"
    paper: ClassVar[str] = "arXiv:2404.00456"
    needs: ClassVar[frozenset[str]] = frozenset()
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(),)
    bias: bool = True

    def choose(
        self, symmetries: Sequence[Symmetry], source: Source, statistics: Mapping[str, Statistics], *,
        generator: Generator,
    ) -> tuple[Fold, ...]:  # fmt: skip
        """A scale of 1 / g, and a shift of -b / g, for every norm that is read by weights alone.

        Raises:
            InvalidTransform: a gain is zero; it cannot be moved, and names the norm.
        """
        folds = []
        for symmetry in symmetries:
            gain = self._read(symmetry, source, "gain")
            read = all(side.port.kind == "weight" for side in symmetry.readers)  # and not by the partner of a pair
            if symmetry.group != DIAGONAL or gain is None or len(symmetry.writers) > 2 or not read:
                continue
            if bool((gain == 0).any()):
                channel = int((gain == 0).nonzero()[0])
                raise InvalidTransform(
                    f"the gain of channel {channel} is zero: the channel is dead, and its gain cannot be moved",
                    expected="gains other than zero", mend="give the channel a gain of 1 and its readers zero columns",
                    site=symmetry.name,
                )  # fmt: skip
            bias = self._read(symmetry, source, "bias") if self.bias else None
            held = symmetry.shift and all(side.bias is not None for side in symmetry.readers)
            shift = -bias / gain if bias is not None and held else None
            folds.append(Fold(symmetry, Transform(scale=1 / gain, shift=shift)))
        return tuple(folds)

    def _read(self, symmetry: Symmetry, source: Source, kind: str) -> Tensor | None:
        """The gain or bias of the norm that writes this edge, as it is used."""
        for side in symmetry.writers:
            if side.port.kind == kind and any(other.port.kind == "gain" for other in symmetry.writers):
                return exact(source, side.port.parameter) + side.port.offset
        return None
