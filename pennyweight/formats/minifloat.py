"""Small floats: FP8, FP6 and FP4, with one scale a tensor, row, group or block.

Source: FP8 Formats for Deep Learning (arXiv:2209.05433) and the OCP Microscaling Formats specification v1.0, section 5.
E4M3 has no infinities and two NaN codes (0x7F, 0xFF); E5M2 has both; the six- and four-bit kinds have neither. A code
here is the rank of its value; `bits_of` gives the bit patterns that engines store. Zero has one code: minus zero is
never written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Self

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pennyweight.errors import InvalidFormat
from pennyweight.formats.levels import Levels
from pennyweight.formats.scale_types import check_scale_type, read_scale
from pennyweight.formats.sharing import Sharing
from pennyweight.numerics.integer import Operand

# By name: exponent bits, mantissa bits, bias, largest finite number.
ELEMENTS = {
    "e4m3": (4, 3, 7, 448.0), "e5m2": (5, 2, 15, 57344.0), "e3m2": (3, 2, 3, 28.0), "e2m3": (2, 3, 1, 7.5),
    "e2m1": (2, 1, 1, 6.0),
}  # fmt: skip
NATIVE = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}  # those that torch, and a GPU, multiplies

ROW = Sharing()


@dataclass(frozen=True, kw_only=True)
class Minifloat(Levels):
    """Floats of four to eight bits, times a scale.

    Args:
        element: e4m3, e5m2, e3m2, e2m3 or e2m1.
        sharing: which weights share a scale.
        scale_dtype: what scales are stored in.

    Raises:
        InvalidFormat: an element or a type of scales that does not exist.
    """

    name: ClassVar[str] = "minifloat"
    element: str
    sharing: Sharing = ROW
    scale_dtype: str = "float16"

    def __post_init__(self) -> None:
        if self.element not in ELEMENTS:
            raise InvalidFormat(f"floats {self.element}", expected=", ".join(ELEMENTS), site="minifloat")
        check_scale_type(self.scale_dtype, "minifloat")

    def label(self) -> str:
        """Such as `fp8 e4m3 row`, `fp4 e2m1 g32 bfloat16`."""
        width = 1 + sum(ELEMENTS[self.element][:2])
        dtype = "" if self.scale_dtype == "float16" else f" {self.scale_dtype}"
        return f"fp{width} {self.element} {self.sharing.label()}{dtype}"

    @classmethod
    def parse(cls, label: str) -> Self | None:
        """The format a label names, or None when it names something else."""
        match = re.fullmatch(r"fp(\d) (e\dm\d) (\w+)(?: (\w+))?", label.strip())
        sharing = None if match is None else Sharing.parse(match[3])
        if match is None or sharing is None:
            return None
        found = cls(element=match[2], sharing=sharing, scale_dtype=match[4] or "float16")
        return found if found.label().startswith(f"fp{match[1]} ") else None

    @classmethod
    def examples(cls) -> Sequence[Self]:
        """Every element, every way of sharing."""
        labels = ("fp8 e4m3 row", "fp8 e4m3 b16 float32", "fp8 e5m2 tensor float32", "fp6 e3m2 g32", "fp6 e2m3 g48",
                  "fp4 e2m1 g32 bfloat16", "fp4 e2m1 g32 e8m0")  # fmt: skip
        return [found for label in labels if (found := cls.parse(label)) is not None]

    def values(self) -> Float[Tensor, " levels"]:
        """Every finite number of the element type."""
        return finite(self.element)[0]

    def borders(self) -> Float[Tensor, " borders"]:
        """Between the numbers; ties go to the even bit pattern, as IEEE 754 rounds and as torch casts."""
        return ties_to_even(*finite(self.element))

    def bits_of(self, codes: UInt8[Tensor, ...]) -> UInt8[Tensor, ...]:
        """Bit patterns, sign first, as engines store them."""
        return finite(self.element)[1][codes.long()]

    def operand(self, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Operand:
        """The stored weight as the right side of a product of floats of eight bits.

        Raises:
            InvalidFormat: an element of six or four bits, or blocks that stand over the edge.
        """
        if self.element not in NATIVE:
            raise InvalidFormat(f"a product of {self.element}", expected=" or ".join(NATIVE), site="minifloat")
        scale = self.sharing.by_column(read_scale(tensors["scale"], self.scale_dtype), shape).T
        return Operand(self.values()[tensors["codes"].reshape(shape).long()].to(NATIVE[self.element]), scale)


@cache
def finite(element: str) -> tuple[Float[Tensor, " levels"], UInt8[Tensor, " levels"]]:
    """Every finite number of an element type, ascending and once, with its bit pattern."""
    exponents, mantissas, bias, largest = ELEMENTS[element]
    pattern = torch.arange(1 << (exponents + mantissas))
    exponent, mantissa = pattern >> mantissas, (pattern & ((1 << mantissas) - 1)) / (1 << mantissas)
    powers = torch.ldexp(torch.ones(len(pattern)), (exponent.clamp(min=1) - bias).to(torch.int32))
    positive = torch.where(exponent == 0, mantissa, 1 + mantissa) * powers
    kept = positive <= largest  # what lies above is infinite or no number
    positive, pattern = positive[kept], pattern[kept]
    sign = 1 << (exponents + mantissas)
    numbers = torch.cat([-positive[1:].flip(0), positive])
    return numbers, torch.cat([pattern[1:].flip(0) | sign, pattern]).to(torch.uint8)


def ties_to_even(numbers: Float[Tensor, " levels"], patterns: UInt8[Tensor, " levels"]) -> Float[Tensor, " borders"]:
    """Borders between ascending numbers, of which a tie goes to the one with the even bit pattern."""
    middles = (numbers[1:] + numbers[:-1]) / 2
    above = torch.nextafter(middles, torch.full_like(middles, -torch.inf))  # then the middle itself lies above
    return torch.where(patterns[:-1] & 1 == 0, middles, above)
