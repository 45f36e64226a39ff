"""Whole numbers of 2 to 8 bits, times a scale, with or without a zero point.

Symmetric codes leave out the lowest (−127 to 127), so that both ends of a range are alike; that is what the dynamic
int8 kernels of engines compute. Where a range was fixed beforehand, kernels give the lowest code to what lies below it,
and so do we. Asymmetric ones use all, from −2^(b−1), with a zero point among them: zero stays zero,
which padding and gates rely on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from pennyweight.errors import InvalidFormat
from pennyweight.formats.passing.passing import Ends, Over, Passing, divisor


@dataclass(frozen=True, kw_only=True)
class Integers(Passing):
    """Whole numbers times a scale.

    Args:
        over: which numbers share a scale.
        bits: code width, 2 to 8.
        symmetric: zero is code zero; otherwise every scale has a zero point.

    Raises:
        InvalidFormat: a width outside its range.
    """

    name: ClassVar[str] = "integers"
    bits: int = 8
    symmetric: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise InvalidFormat(f"{self.bits} bits", expected="2 to 8 bits", mend="choose 8", site="activation")

    @classmethod
    def parse(cls, label: str) -> Self | None:
        """The format a label names, or None when it names something else."""
        match = re.fullmatch(r"int(\d) (\w+)( asym| sym)?", label.strip())
        over = None if match is None else Over.parse(match[2])
        if match is None or over is None:
            return None
        return cls(over=over, bits=int(match[1]), symmetric=match[3] != " asym")

    @classmethod
    def examples(cls) -> Sequence[Self]:
        """Every width, both kinds, every way of sharing."""
        labels = ("int8 token", "int8 token asym", "int7 token", "int6 g48", "int5 token asym", "int4 token",
                  "int4 g32 asym", "int3 g24", "int2 g16 asym", "int8 tensor", "int8 tensor asym", "int6 tensor",
                  "int4 tensor asym", "int8 channel", "int8 channel asym", "int8 clusters")  # fmt: skip
        return [found for label in labels if (found := cls.parse(label)) is not None]

    def label(self) -> str:
        """Such as `int8 token`, `int6 g128`, `int8 tensor asym`."""
        return f"int{self.bits} {self.over.label()}{'' if self.symmetric else ' asym'}"

    @property
    def limits(self) -> tuple[float, float]:
        """The codes of the ends of a range."""
        half = 1 << (self.bits - 1)
        return 1 - half if self.symmetric else -half, half - 1

    @property
    def least(self) -> float:
        """The lowest code, where the range does not cover everything."""
        return self.limits[0] if self.over.dynamic else -self.limits[1] - 1

    def ends(self, low: Float[Tensor, "*tiles"], high: Float[Tensor, "*tiles"]) -> Ends:
        """The largest number gets the largest code; or both ends get theirs, up to half a step."""
        first, last = self.limits
        low, high = low.float(), high.float()
        if self.symmetric:
            return divisor(torch.maximum(-low, high) / last), None
        scale = divisor(high / (last - first) - low / (last - first))  # the difference of the two might overflow
        return scale, (first - (low / scale).round()).clamp(first, last).to(torch.int8)

    def encode(self, x: Float[Tensor, ...], scale: Tensor, zero_point: Tensor | None) -> Int8[Tensor, ...]:
        """The nearest whole numbers, ties to even."""
        codes = (x / scale).round_()
        return (codes if zero_point is None else codes + zero_point).clamp_(self.least, self.limits[1]).to(torch.int8)

    def decode(self, codes: Int8[Tensor, ...], scale: Tensor, zero_point: Tensor | None) -> Float[Tensor, ...]:
        """(codes − zero point) · scale."""
        wide = codes.to(scale.dtype)
        return (wide if zero_point is None else wide - zero_point) * scale
