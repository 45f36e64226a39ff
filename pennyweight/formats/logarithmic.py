"""Logarithmic levels: zero and powers of 2 or of √2 with a sign, so that a multiplication is a shift.

Source: Miyashita, Lee, Murmann. Convolutional Neural Networks using Logarithmic Data Representation. arXiv:1603.01025
(bases 2 and √2); Li et al. RepQ-ViT. arXiv:2212.08254 (√2, for attention probabilities). Powers of √2 are powers of
two where the exponent is even, and √2 times one where it is odd: still shifts, with two scales.

Departs from it: rounding is to the nearest value and not to the nearest exponent, which has the lower squared error;
and zero is one of the levels, so that zeros stay zeros and every code fits into its bits.

When to use it: where the engine has shifters and no multipliers, or for values that span decades, such as probabilities
(`powers`). On normal weights more bits only add levels close to zero: whatever their number, base 2 keeps a relative
squared error of .036 and base √2 one of .009, which is that of `int4 g128`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.errors import InvalidFormat
from pennyweight.formats.levels import Levels
from pennyweight.formats.scale_types import check_scale_type
from pennyweight.formats.sharing import Sharing

BASES = {"log2": 2.0, "log-sqrt2": 2.0**0.5}
ROW = Sharing()


@dataclass(frozen=True, kw_only=True)
class Logarithmic(Levels):
    """Zero and signed powers of 2 or √2, times a scale.

    Args:
        base: log2 or log-sqrt2.
        bits: code width with the sign, 3 to 5; 2^bits − 1 levels.
        sharing: which weights share a scale.
        scale_dtype: what scales are stored in.

    Raises:
        InvalidFormat: a parameter outside its range.
    """

    name: ClassVar[str] = "logarithmic"
    base: str = "log2"
    bits: int = 4
    sharing: Sharing = ROW
    scale_dtype: str = "float16"

    def __post_init__(self) -> None:
        if self.base not in BASES or not 3 <= self.bits <= 5:
            raise InvalidFormat(
                f"{self.base} of {self.bits} bits",
                expected=f"{' or '.join(BASES)}, 3 to 5 bits; more only add levels near zero",
                mend="choose base='log-sqrt2', bits=4",
                site="logarithmic",
            )
        check_scale_type(self.scale_dtype, "logarithmic")

    def label(self) -> str:
        """Such as `log2 4bit g32`, `log-sqrt2 4bit row bfloat16`."""
        dtype = "" if self.scale_dtype == "float16" else f" {self.scale_dtype}"
        return f"{self.base} {self.bits}bit {self.sharing.label()}{dtype}"

    @classmethod
    def parse(cls, label: str) -> Self | None:
        """The format a label names, or None when it names something else."""
        match = re.fullmatch(r"(log2|log-sqrt2) (\d)bit (\w+)(?: (\w+))?", label.strip())
        sharing = None if match is None else Sharing.parse(match[3])
        if match is None or sharing is None:
            return None
        return cls(base=match[1], bits=int(match[2]), sharing=sharing, scale_dtype=match[4] or "float16")

    @classmethod
    def examples(cls) -> Sequence[Self]:
        """Both bases, several widths and ways of sharing."""
        labels = ("log2 3bit g32", "log2 4bit row", "log-sqrt2 4bit g48 bfloat16", "log-sqrt2 5bit b16 float32",
                  "log-sqrt2 4bit tensor float32", "log2 4bit g32 e8m0")  # fmt: skip
        return [found for label in labels if (found := cls.parse(label)) is not None]

    def values(self) -> Float[Tensor, " levels"]:
        """−1 … 0 … 1: zero and 2^(bits−1) − 1 powers on either side."""
        positive = powers(self.base, (1 << (self.bits - 1)) - 1)
        return torch.cat([-positive[1:].flip(0), positive])


def powers(base: str, count: int) -> Float[Tensor, " levels"]:
    """Zero and `count` powers of 1/2 or 1/√2 from one downwards, ascending.

    With 2^bits − 1 powers these are unsigned codes of so many bits, for what has no sign: probabilities after a
    softmax.
    """
    exponents = torch.arange(count - 1, -1, -1, dtype=torch.float64)
    return torch.cat([torch.zeros(1), (BASES[base] ** -exponents).float()])
