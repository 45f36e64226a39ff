"""Round to nearest: the baseline every other quantizer is measured against.

Source: common practice; the range search follows GPTQ's reference code in spirit (shrink both ends, keep the least
error) with squared error and, where statistics are given, inputs weighted by E[x²].

When: no text is there, or eight bits. Cost: some twenty roundings for the search, one without. Known failures: each
weight is judged by itself. The search lowers the error of weights and clips the largest ones towards zero, which inputs
of one sign, behind a ReLU, add up: there the whole range (`search=False`) is better, and `awq_clip` or `gptq` better
still.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from pennyweight.formats import Compressed, Format
from pennyweight.numerics.linear import linear
from pennyweight.promises import Deterministic, Promise, RowEquivariant
from pennyweight.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class RoundToNearest:
    """Round each weight to the nearest point of its group's grid.

    Args:
        search: shrink each group's range to the least squared error (False keeps minimum and maximum).
        weighted: weight the squared error of each input by its mean square, when statistics are there.
    """

    name: ClassVar[str] = "round_to_nearest"
    paper: ClassVar[str] = "common baseline"
    needs: ClassVar[frozenset[str]] = frozenset()
    takes: ClassVar[tuple[type[Format], ...]] = (Format,)
    promises: ClassVar[tuple[Promise, ...]] = (Deterministic(), RowEquivariant())
    search: bool = True
    weighted: bool = True

    def compress(
        self, weight: Float[Tensor, "out in"], statistics: Statistics | None, format: Format, *, generator: Generator
    ) -> Compressed:
        """Round `weight` onto `format`; nothing random happens.

        Raises:
            InvalidFormat: the format's groups do not divide the inputs.
        """
        part = format.store(weight, search=self.search, importance=self._importance(statistics))
        return Compressed((part,), tuple(weight.shape))

    def predict(
        self, weight: Float[Tensor, "out in"], statistics: Statistics | None, formats: Sequence[Format]
    ) -> Float[Tensor, "formats out"]:
        """Mean squared change of each output under each format: the diagonal of E gram Eᵀ, exactly."""
        predicted = []
        for format in formats:
            part = format.store(weight, search=self.search, importance=self._importance(statistics))
            error = format.decode(part.tensors, tuple(weight.shape)) - weight.float()
            if statistics is None or statistics.gram is None:
                predicted.append(error.square().sum(1))
            else:
                predicted.append(linear(error, statistics.gram).mul_(error).sum(1))
        return torch.stack(predicted)

    def _importance(self, statistics: Statistics | None) -> Tensor | None:
        if not self.weighted or statistics is None or statistics.gram is None:
            return None
        return statistics.gram.diagonal()
