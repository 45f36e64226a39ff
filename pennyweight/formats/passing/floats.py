"""Small floats of eight bits, times a scale: FP8 as GPUs multiply it.

Source: Micikevicius et al. FP8 Formats for Deep Learning. arXiv:2209.05433. E4M3 reaches 448 and has no infinity; E5M2
reaches 57344. Numbers beyond the range saturate, as engines do; E5M2 would go to infinity otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from pennyweight.errors import InvalidFormat
from pennyweight.formats.passing.passing import Ends, Over, Passing, divisor

ELEMENTS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


@dataclass(frozen=True, kw_only=True)
class Floats(Passing):
    """Floats of eight bits times a scale.

    Args:
        over: which numbers share a scale.
        element: e4m3 or e5m2.

    Raises:
        InvalidFormat: another element.
    """

    name: ClassVar[str] = "floats"
    element: str = "e4m3"

    def __post_init__(self) -> None:
        if self.element not in ELEMENTS:
            raise InvalidFormat(f"floats {self.element}", expected=" or ".join(ELEMENTS), site="activation")

    @classmethod
    def parse(cls, label: str) -> Self | None:
        """The format a label names, or None when it names something else."""
        match = re.fullmatch(r"fp8 (e\dm\d) (\w+)", label.strip())
        over = None if match is None else Over.parse(match[2])
        return None if match is None or over is None else cls(over=over, element=match[1])

    @classmethod
    def examples(cls) -> Sequence[Self]:
        """Both elements, several ways of sharing."""
        labels = ("fp8 e4m3 token", "fp8 e5m2 token", "fp8 e4m3 g32", "fp8 e4m3 tensor", "fp8 e5m2 tensor",
                  "fp8 e4m3 channel")  # fmt: skip
        return [found for label in labels if (found := cls.parse(label)) is not None]

    def label(self) -> str:
        """Such as `fp8 e4m3 token`."""
        return f"fp8 {self.element} {self.over.label()}"

    @property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest number before the scale."""
        largest = float(torch.finfo(ELEMENTS[self.element]).max)
        return -largest, largest

    def ends(self, low: Float[Tensor, "*tiles"], high: Float[Tensor, "*tiles"]) -> Ends:
        """The largest number gets the largest float."""
        return divisor(torch.maximum(-low, high).float() / self.limits[1]), None

    def encode(self, x: Float[Tensor, ...], scale: Tensor, zero_point: Tensor | None) -> Shaped[Tensor, ...]:
        """The nearest floats, ties to the even bit pattern."""
        # Rounded to float32 first, as engines divide: float64 would be rounded twice by some casts and once by others.
        return (x / scale).float().clamp_(*self.limits).to(ELEMENTS[self.element])

    def decode(self, codes: Shaped[Tensor, ...], scale: Tensor, zero_point: Tensor | None) -> Float[Tensor, ...]:
        """Floats times the scale."""
        return codes.to(scale.dtype) * scale
