"""Round to nearest over a percentile of each tile's range: the few largest weights are clipped.

Source: common practice of calibration tools (Wu, Judd, Zhang, Isaev, Micikevicius. Integer Quantization for Deep
Learning Inference. arXiv:2004.09602), there mostly for activations, here for weights.
Departs from it: both ends are clipped by themselves where the grid is asymmetric.

When: a rule that depends on nothing but the weights and must be cheap. Cost: one sort. Known failures: it does not
know what clipping costs. The search of `round_to_nearest` does, and has less squared error; in groups of 64 or fewer a
percentile above 99 lies between the two largest weights and changes little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from pennyweight.errors import InvalidMethod
from pennyweight.formats import Compressed, Format, Grid, Minifloat, Part
from pennyweight.promises import Deterministic, Promise, RowEquivariant
from pennyweight.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class Percentile:
    """Round each weight to the nearest point of a grid that leaves out the largest weights of its tile.

    Args:
        percentile: of the weights, above 50 and up to 100 (from minimum to maximum); its mirror image is the low end.
    """

    name: ClassVar[str] = "percentile"
    paper: ClassVar[str] = "arXiv:2004.09602"
    needs: ClassVar[frozenset[str]] = frozenset()
    takes: ClassVar[tuple[type[Format], ...]] = (Grid, Minifloat)
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(), RowEquivariant())
    percentile: float = 99.9

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise InvalidMethod(
                f"percentile={self.percentile!r}", expected="above 50 and up to 100",
                mend="percentile(percentile=99.9)", site=self.name,
            )  # fmt: skip

    def compress(
        self,
        weight: Float[Tensor, "out in"],
        statistics: Statistics | None,
        format: Grid | Minifloat,
        *,
        generator: Generator,
    ) -> Compressed:
        """Clip, choose scales from minimum to maximum, and round; statistics are not looked at.

        Raises:
            InvalidFormat: the format's groups do not divide the inputs.
        """
        return Compressed((self._part(weight, format),), tuple(weight.shape))

    def predict(
        self, weight: Float[Tensor, "out in"], statistics: Statistics | None, formats: Sequence[Grid | Minifloat]
    ) -> Float[Tensor, "formats out"]:
        """The diagonal of E gram Eᵀ, exactly; squared change of the weights where there is no gram matrix."""
        predicted = []
        for format in formats:
            error = format.decode(self._part(weight, format).tensors, tuple(weight.shape)) - weight.float()
            seen = error if statistics is None or statistics.gram is None else error @ statistics.gram
            predicted.append((seen * error).sum(1))
        return torch.stack(predicted)

    def _part(self, weight: Tensor, format: Grid | Minifloat) -> Part:
        w, shape = weight.float(), tuple(weight.shape)
        low, high = ends(format.sharing.split(w), self.percentile / 100)
        spread = format.sharing.spread
        fitted = format.fit(w.clamp(spread(low, shape), spread(high, shape)), search=False)
        return fitted.part(fitted.round(weight))


def ends(
    tiles: Float[Tensor, "down across elements"], share: float
) -> tuple[Float[Tensor, "down across"], Float[Tensor, "down across"]]:
    """The quantiles 1 − share and share, between neighbours in proportion."""
    ascending = tiles.sort(-1).values  # torch.quantile takes sixteen million numbers at most
    place = share * (tiles.shape[-1] - 1)
    below = min(int(place), tiles.shape[-1] - 1)
    above, part = min(below + 1, tiles.shape[-1] - 1), place - int(place)
    high = ascending[..., below].lerp(ascending[..., above], part)
    return ascending[..., -1 - below].lerp(ascending[..., -1 - above], part), high
