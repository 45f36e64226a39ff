"""AWQ's clipping: shrink each group's range to where the layer's output changes least, then round to nearest.

Source: Lin, Tang, Tang, Yang, Chen, Wang, Xiao, Dang, Gan, Han. AWQ: Activation-aware Weight Quantization for LLM
Compression and Acceleration. arXiv:2306.00978; the range search of its reference code (twenty steps down to half of the
largest weight). The other half of AWQ, scaling the channels, is a rewrite.
Departs from it: the output error of a group is exact, E gram Eᵀ with the group's block of the gram matrix, where the
code multiplies 512 sampled tokens; and ranges are those of the format, clipped at both ends in proportion.

When: plain rounding is wanted (no sweep, no factor of the gram matrix) and inputs are correlated inside groups. Cost:
one rounding and one product with a block of the gram matrix a step. Known failures: what groups do to each other's
error is not seen, and GPTQ is better where it can be afforded. The paper leaves queries and keys unclipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from pennyweight.errors import InvalidMethod
from pennyweight.formats import Compressed, Format, Grid, Minifloat, Part, Sharing
from pennyweight.numerics.linear import linear
from pennyweight.promises import Deterministic, Promise, RowEquivariant
from pennyweight.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class AWQClip:
    """Round each weight to the nearest point of a grid whose range keeps the output close.

    Args:
        narrowest: share of the range at which the search ends, above 0 and up to 1.
        steps: ranges tried, the whole one first; at least 1.
    """

    name: ClassVar[str] = "awq_clip"
    paper: ClassVar[str] = "arXiv:2306.00978"
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    takes: ClassVar[tuple[type[Format], ...]] = (Grid, Minifloat)
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(), RowEquivariant())
    narrowest: float = 0.5
    steps: int = 20

    def __post_init__(self) -> None:
        if not 0 < self.narrowest <= 1 or self.steps < 1:
            raise InvalidMethod(
                f"narrowest={self.narrowest!r}, steps={self.steps!r}",
                expected="a share above 0 and up to 1, and at least one step",
                mend="awq_clip(narrowest=0.5, steps=20)", site=self.name,
            )  # fmt: skip

    def compress(
        self, weight: Float[Tensor, "out in"], statistics: Statistics, format: Grid | Minifloat, *, generator: Generator
    ) -> Compressed:
        """Round `weight` onto `format` with the range of every tile at the least E gram Eᵀ of its own inputs.

        Raises:
            MissingStatistics: the edge this site reads carries no gram matrix.
            InvalidFormat: the format's groups do not divide the inputs.
        """
        part = self._part(weight.float(), statistics.require_gram(), format)
        return Compressed((part,), tuple(weight.shape))

    def predict(
        self, weight: Float[Tensor, "out in"], statistics: Statistics, formats: Sequence[Grid | Minifloat]
    ) -> Float[Tensor, "formats out"]:
        """The diagonal of E gram Eᵀ, exactly: the whole of the work, which costs no sweep."""
        gram, predicted = statistics.require_gram(), []
        for format in formats:
            part = self._part(weight.float(), gram, format)
            error = format.decode(part.tensors, tuple(weight.shape)) - weight.float()
            predicted.append(linear(error, gram).mul_(error).sum(1))
        return torch.stack(predicted)

    def _part(self, weight: Tensor, gram: Tensor, format: Grid | Minifloat) -> Part:
        shape, sharing = tuple(weight.shape), format.sharing
        tiles = sharing.split(weight)
        low, high = tiles.amin(-1), tiles.amax(-1)
        best: dict[str, Tensor] = {}
        least = torch.full_like(low, torch.inf)
        for share in torch.linspace(1, self.narrowest, self.steps).tolist():
            clipped = weight.clamp(sharing.spread(low * share, shape), sharing.spread(high * share, shape))
            fitted = format.fit(clipped, search=False)
            part = fitted.part(fitted.round(weight))
            loss = tile_losses(format.decode(part.tensors, shape) - weight, gram, sharing)
            better, before = loss < least, best or part.tensors
            wide = sharing.spread(better.float(), shape) > 0
            best = {
                key: torch.where(wide if key == "codes" else better, tensor, before[key])
                for key, tensor in part.tensors.items()
            }
            least = torch.minimum(loss, least)
        return Part(format, best)


def tile_losses(
    change: Float[Tensor, "out in"], gram: Float[Tensor, "in in"], sharing: Sharing
) -> Float[Tensor, "down across"]:
    """E gram Eᵀ of every tile by itself, summed over its rows."""
    width = sharing.width(len(gram))
    loss = torch.empty_like(change)
    for start in range(0, len(gram), width):
        inside = slice(start, start + width)
        loss[:, inside] = linear(change[:, inside].contiguous(), gram[inside, inside].contiguous()) * change[:, inside]
    return sharing.split(loss).sum(-1)
