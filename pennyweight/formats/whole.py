"""Whole numbers times a step: what many formats have in common, and by which one is written as another unchanged.

    weight[o, i] = step[o, r] · (codes[o, i] − zero[o, r]) + offset[o, r],    r the run of inputs that i lies in

Every product here is exact in float32 for the formats that speak of themselves this way, so that the same numbers, with
other codes or shorter runs, give the same weights bit for bit. `formats.Numbers` checks that all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pennyweight.formats.sharing import Sharing

LARGEST = 2**14  # of a whole number: products with a step of eleven bits are exact


@dataclass(frozen=True, eq=False)
class Whole:
    """A weight as whole numbers.

    Args:
        codes: `[out, in]` int16.
        zero: `[out, runs]` int16, the code that stands for the offset.
        step: `[out, runs]` float32.
        offset: of the same shape; None where it is zero everywhere.
    """

    codes: Tensor
    zero: Tensor
    step: Tensor
    offset: Tensor | None = None

    @property
    def run(self) -> int:
        """Inputs that share a step."""
        return self.codes.shape[1] // self.step.shape[1]

    @property
    def numbers(self) -> Tensor:
        """What the steps are multiplied with, `[out, in]` int16."""
        return self.codes - self.zero.repeat_interleave(self.run, 1)

    def tiled(self, sharing: Sharing) -> Whole | None:
        """The same numbers in the tiles of a format; None where its tiles do not lie within runs."""
        width = sharing.width(self.codes.shape[1])
        if not sharing.rows_stand_alone or self.run % width:
            return None
        if width == self.run:
            return self
        parts = [None if t is None else t.repeat_interleave(self.run // width, 1) for t in (self.zero, self.offset)]
        assert parts[0] is not None
        return Whole(self.codes, parts[0], self.step.repeat_interleave(self.run // width, 1), parts[1])

    def around_zero(self) -> Whole | None:
        """The same numbers without an offset; None where it is no multiple of the step."""
        if self.offset is None:
            return self
        steps = torch.where(self.step == 0, torch.ones_like(self.step), self.step)
        shift = (self.offset / steps).round()
        if bool((shift.abs() > LARGEST).any()) or not torch.equal(shift * self.step, self.offset):
            return None
        return replace(self, zero=self.zero - shift.to(torch.int16), offset=None)

    def centred(self, middle: int, top: int) -> Tensor | None:
        """Codes from 0 to `top` of which `middle` stands for zero; None where numbers lie outside."""
        codes = self.numbers + middle
        return codes.to(torch.uint8) if _within(codes, top) else None

    def zeros(self, top: int) -> Sequence[Whole]:
        """The same numbers with codes from 0 to `top`: as they are, and with the smallest of every run as code 0."""
        low = self.codes.reshape(*self.step.shape, -1).amin(-1)
        lowest = replace(self, codes=self.codes - low.repeat_interleave(self.run, 1), zero=self.zero - low)
        return [way for way in (self, lowest) if _within(way.codes, top)]


def _within(codes: Tensor, top: int) -> bool:
    return codes.numel() > 0 and int(codes.min()) >= 0 and int(codes.max()) <= top
