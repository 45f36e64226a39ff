"""The numbers that the codes of a block stand for, before they are multiplied with its step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

UNEVEN = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # IQ4_NL and IQ4_XS


@dataclass(frozen=True, eq=False)
class Numbers:
    """The numbers codes stand for, ascending whole numbers; `uniform` when they are consecutive."""

    values: Float[Tensor, " levels"]
    uniform: bool = True

    def level(self, x: Float[Tensor, ...]) -> Float[Tensor, ...]:
        """The nearest number; `x` is written to."""
        if self.uniform:
            return x.round_().clamp_(*self._ends)
        return self.values[self._codes][self._halves(x)]

    def encode(self, w: Float[Tensor, ...], step: Float[Tensor, ...], offset: Float[Tensor, ...]) -> Float[Tensor, ...]:
        """Codes, as float32 whole numbers, of the nearest of step · level − offset."""
        x = scaled(w, step, offset)
        return self.level(x).sub_(self._ends[0]) if self.uniform else self._codes[self._halves(x)].float()

    def error(
        self, w: Float[Tensor, ...], importance: Float[Tensor, ...], step: Float[Tensor, ...],
        offset: Float[Tensor, ...],
    ) -> Float[Tensor, ...]:  # fmt: skip
        """Weighted squared error of each sub-block when rounded to the nearest."""
        step, offset = step[..., None], offset[..., None]
        change = self.level(scaled(w, step, offset)).mul_(step).sub_(offset).sub_(w)
        return change.square_().mul_(importance).sum(-1)

    @property
    def _ends(self) -> tuple[float, float]:
        return float(self.values[0]), float(self.values[-1])

    @cached_property
    def _codes(self) -> Tensor:
        """The code of every half from twice the first number to twice the last: all borders are such halves."""
        low, high = self._ends
        return torch.bucketize(torch.arange(2 * low, 2 * high + 1) / 2, (self.values[1:] + self.values[:-1]) / 2)

    def _halves(self, x: Tensor) -> Tensor:
        """Where in `_codes` a number lies; a look-up is several times as fast as a search for every weight."""
        low, high = self._ends
        return x.mul_(2).ceil_().nan_to_num_(0.0).clamp_(2 * low, 2 * high).sub_(2 * low).int()


def whole_numbers(low: int, high: int) -> Numbers:
    """`low` to `high`."""
    return Numbers(torch.arange(low, high + 1).float())


def uneven_numbers() -> Numbers:
    """Sixteen that lie closer around zero, as normal weights do; none of them is zero, and no two are opposites."""
    return Numbers(torch.tensor(UNEVEN).float(), uniform=False)


def scaled(w: Tensor, step: Tensor, offset: Tensor) -> Tensor:
    """(w + offset) / step; zero where the step is zero and all codes stand for the same number."""
    return (w + offset).div_(torch.where(step == 0, torch.inf, step))
