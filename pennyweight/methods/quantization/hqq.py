"""HQQ: fit the offset of each group to weights with outliers, without any data.

Source: Badri, Shaji. Half-Quadratic Quantization of Large Machine Learning Models. Mobius Labs, 2023 (report and code).
The l_p norm of the error, p < 1, is lowered by half-quadratic splitting: a shrinkage step finds the part of the error
that counts as outliers, W_e; the offset is then the mean of what is left, W − W_e − scale · code. The best is kept.
Departs from it: offset = −zero · scale is stored instead of zero, as the affine format does; and each group keeps its
own best offset, where the code stops all groups together.

When: no calibration text, and heavy or skewed weights. Cost: twenty roundings. Known failures: the scale is never
fitted, so from minimum to maximum a plain search of the range (`round_to_nearest`) has less squared error at two and
three bits; `search=True` starts from that search.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from pennyweight.errors import InvalidMethod
from pennyweight.formats import Affine, Compressed, Format
from pennyweight.formats.affine import nearest
from pennyweight.promises import Deterministic, Promise, RowEquivariant
from pennyweight.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class HQQ:
    """Round to nearest with offsets that least mind outliers; no data is needed.

    Args:
        power: p of the norm, above 0 and up to 1.
        beta: how much the split error is held to the error, in the unit of one over weight^(2 − p), > 0.
        growth: of beta a step.
        steps: at most; 0 leaves the start.
        search: start from the format's search; otherwise from minimum to maximum, as the report does.
    """

    name: ClassVar[str] = "hqq"
    paper: ClassVar[str] = "Badri, Shaji 2023"
    needs: ClassVar[frozenset[str]] = frozenset()
    takes: ClassVar[tuple[type[Format], ...]] = (Affine,)
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(), RowEquivariant())
    power: float = 0.7
    beta: float = 10.0
    growth: float = 1.01
    steps: int = 20
    search: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.power <= 1 or self.beta <= 0 or self.growth < 1 or self.steps < 0:
            raise InvalidMethod(
                f"power={self.power!r}, beta={self.beta!r}, growth={self.growth!r}, steps={self.steps!r}",
                expected="a power in (0, 1], beta > 0, growth of at least 1, no negative steps",
                mend="hqq(power=0.7, beta=10.0)", site=self.name,
            )  # fmt: skip

    def compress(
        self, weight: Float[Tensor, "out in"], statistics: Statistics | None, format: Affine, *, generator: Generator
    ) -> Compressed:
        """Lower mean |E| of every group, E = weight − result, by moving its offset.

        Raises:
            InvalidFormat: the format's groups do not divide the inputs, or an offset overflows its type.
        """
        fitted, top = format.fit(weight, search=self.search), format.levels - 1
        w = format.sharing.split(weight.float())
        scale, offset = fitted.scale.float(), fitted.offset.float()
        least, best, beta = torch.full_like(offset, torch.inf), offset, self.beta
        for _ in range(self.steps + 1):
            levels = nearest(w, scale, offset, top).mul_(scale[..., None])
            error = w - levels - offset[..., None]
            size = error.abs()
            mean = size.mean(-1)
            best, least = torch.where(mean < least, offset, best), torch.minimum(mean, least)
            outlying = error.sign() * (size - size.clamp(min=1e-8).pow(self.power - 1) / beta).clamp(min=0)
            offset = format.stored((w - outlying - levels).mean(-1))
            beta *= self.growth
        fitted = fitted.with_parameters(scale, torch.where(scale == 0, fitted.offset.float(), best))
        return Compressed(
            (fitted.part(fitted.round(weight)),), tuple(weight.shape), {"mean_error": float(least.mean())}
        )
