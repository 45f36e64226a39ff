"""Levels on a tangent, times a scale: for probabilities after a softmax where some are close to one.

Source: Yang, Gong, Zhou. DopQ-ViT: Towards Distribution-Friendly and Outlier-Aware Post-Training Quantization for
Vision Transformers. arXiv:2408.03291 (TanQ). Powers of two leave a gap from a half to one, where a single probability
may carry all of a row; a tangent is as dense close to zero as a parameter says and still has levels next to one.

Departs from it: no code and no formula that settles it could be found. Of the two maps that fit what is told of it,
x̂ = tan(a q / n) / tan(a) for codes q = 0 … n is the one that is better than equal steps on probabilities; the opposite
one never is. Rounding is to the nearest number, which has the lower squared error.

The slope a, above 0 and below π/2, is part of the format: towards 0 steps are equal, towards π/2 all levels crowd at
zero. A label without one leaves it free: `static_mse` then tries all of `SLOPES`, other methods take the usual one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.errors import InvalidFormat
from pennyweight.formats.passing.listed import Listed
from pennyweight.formats.passing.passing import Over

USUAL = 1.3
SLOPES = tuple(i / 10 for i in range(2, 16))


@dataclass(frozen=True, kw_only=True)
class Tangent(Listed):
    """2^bits levels from zero to one on a tangent, times a scale; numbers below zero become zero.

    Args:
        over: which numbers share a scale.
        bits: code width, 2 to 7.
        slope: a, above 0 and below π/2; None where a method may choose it.

    Raises:
        InvalidFormat: a parameter outside its range.
    """

    name: ClassVar[str] = "tangent"
    slope: float | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 7 or (self.slope is not None and not 0 < self.slope < math.pi / 2):
            raise InvalidFormat(
                f"a tangent of {self.bits} bits and slope {self.slope}",
                expected="2 to 7 bits, a slope above 0 and below 1.57", mend="tan 4bit tensor", site="activation",
            )  # fmt: skip

    @classmethod
    def parse(cls, label: str) -> Self | None:
        """The format a label names, or None when it names something else."""
        match = re.fullmatch(r"tan(\d+\.\d+)? (\d)bit (\w+)", label.strip())
        over = None if match is None else Over.parse(match[3])
        if match is None or over is None:
            return None
        return cls(over=over, bits=int(match[2]), slope=None if match[1] is None else float(match[1]))

    @classmethod
    def examples(cls) -> Sequence[Self]:
        """Slopes that are given and one that is free, several widths."""
        labels = ("tan 4bit tensor", "tan1.1 4bit token", "tan0.7 3bit g48", "tan1.5 6bit tensor")
        return [found for label in labels if (found := cls.parse(label)) is not None]

    def label(self) -> str:
        """Such as `tan 4bit tensor`, `tan1.1 3bit token`."""
        return f"tan{'' if self.slope is None else float(self.slope)} {self.bits}bit {self.over.label()}"

    def variants(self) -> Sequence[Self]:
        """With every slope, where it is free."""
        return [self] if self.slope is not None else [replace(self, slope=slope) for slope in SLOPES]

    def values(self) -> Float[Tensor, " levels"]:
        """On the tangent of its slope, or of the usual one."""
        return levels(USUAL if self.slope is None else self.slope, self.bits)


@cache
def levels(slope: float, bits: int) -> Float[Tensor, " levels"]:
    """tan(a q / n) / tan(a) for q = 0 … n = 2^bits − 1, ascending from zero to one, float32."""
    share = torch.linspace(0, 1, 1 << bits, dtype=torch.float64)
    return ((slope * share).tan() / math.tan(slope)).float()
