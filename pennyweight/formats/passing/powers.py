"""Zero and powers of 1/2 or 1/√2, times a scale: for probabilities after a softmax, which span decades.

Source: Miyashita, Lee, Murmann. arXiv:1603.01025 (base 2); Li, Xiao, Yang, Gu. RepQ-ViT. arXiv:2212.08254 (√2). A power
of √2 is a power of two, times √2 where its exponent is odd: 2^(−q/2) = 2^(−⌈q/2⌉) · (1 + odd(q) (√2 − 1)). An engine
shifts, with two scales for the two parities; `exponents` gives q.

Departs from it: rounding is to the nearest number and not to the nearest exponent, which has the lower squared error,
and zero is one of the codes.
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
from pennyweight.formats.logarithmic import BASES, powers
from pennyweight.formats.passing.listed import Listed
from pennyweight.formats.passing.passing import Over


@dataclass(frozen=True, kw_only=True)
class Powers(Listed):
    """Zero and 2^bits − 1 powers, times a scale; numbers below zero become zero.

    Args:
        over: which numbers share a scale.
        base: log2 or log-sqrt2.
        bits: code width, 2 to 7.

    Raises:
        InvalidFormat: a parameter outside its range.
    """

    name: ClassVar[str] = "powers"
    base: str = "log-sqrt2"

    def __post_init__(self) -> None:
        if self.base not in BASES or not 2 <= self.bits <= 7:
            raise InvalidFormat(
                f"{self.base} of {self.bits} bits", expected=f"{' or '.join(BASES)}, 2 to 7 bits", site="activation"
            )

    @classmethod
    def parse(cls, label: str) -> Self | None:
        """The format a label names, or None when it names something else."""
        match = re.fullmatch(r"(log2|log-sqrt2) (\d)bit (\w+)", label.strip())
        over = None if match is None else Over.parse(match[3])
        return None if match is None or over is None else cls(over=over, base=match[1], bits=int(match[2]))

    @classmethod
    def examples(cls) -> Sequence[Self]:
        """Both bases, several widths."""
        labels = ("log2 4bit tensor", "log-sqrt2 4bit tensor", "log-sqrt2 3bit token", "log2 3bit g48",
                  "log-sqrt2 6bit tensor")  # fmt: skip
        return [found for label in labels if (found := cls.parse(label)) is not None]

    def label(self) -> str:
        """Such as `log-sqrt2 4bit tensor`."""
        return f"{self.base} {self.bits}bit {self.over.label()}"

    def values(self) -> Float[Tensor, " levels"]:
        """Zero, then powers ascending to one."""
        return powers(self.base, int(self.limits[1]))

    def exponents(self, codes: Int8[Tensor, ...]) -> Int8[Tensor, ...]:
        """Powers of 1/2 or 1/√2 that codes above zero stand for."""
        return (int(self.limits[1]) - codes).to(torch.int8)
