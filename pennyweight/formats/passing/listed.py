"""A list of numbers from zero to one, times a scale: what kinds for probabilities have in common.

A kind says which numbers (`values`, ascending). Rounding is to the nearest of them; what is below zero becomes zero.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from pennyweight.formats.passing.passing import Ends, Passing, divisor


@dataclass(frozen=True, kw_only=True)
class Listed(Passing):
    """2^bits numbers of a list, times a scale.

    Args:
        over: which numbers share a scale.
        bits: code width.
    """

    linear: ClassVar[bool] = False
    bits: int = 4

    @abstractmethod
    def values(self) -> Float[Tensor, " levels"]:
        """What codes stand for, ascending from zero to one, float32."""

    @property
    def limits(self) -> tuple[float, float]:
        """Codes: zero to the largest."""
        return 0, (1 << self.bits) - 1

    def ends(self, low: Float[Tensor, "*tiles"], high: Float[Tensor, "*tiles"]) -> Ends:
        """The largest number becomes one."""
        return divisor(high.float()), None

    def encode(self, x: Float[Tensor, ...], scale: Tensor, zero_point: Tensor | None) -> Int8[Tensor, ...]:
        """The nearest of the numbers."""
        values = self.values().to(x.device)
        share = x / scale
        return torch.bucketize(share, ((values[1:] + values[:-1]) / 2).to(share.dtype)).to(torch.int8)

    def decode(self, codes: Int8[Tensor, ...], scale: Tensor, zero_point: Tensor | None) -> Float[Tensor, ...]:
        """Numbers of the list times the scale."""
        return self.values().to(codes.device, scale.dtype)[codes.long()] * scale
