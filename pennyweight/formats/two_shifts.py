"""RF8: eight bits for a sum of two powers of two, so that a multiplication is two shifts and one addition.

Source: Wu et al. It Takes a Good Model to Train a Good Model: Generalized Gaussian Priors for Optimized LLMs.
arXiv:2506.00486v2, where it goes with BackSlash (arXiv:2504.16968); the abstract of version 4 has it no more. A number
is ±2^e or ±(2^e + 2^(e − gap)), with a gap of 1 to 4 and e in a window of exponents. The window has 16 here, which is
what eight bits leave: a sign, three bits for the gap and four for e. The scale is a power of two that moves the window:
the smallest that clips nothing, or half of it.

Departs from it: a weight becomes the nearest such number. Keeping its two leading set bits, which is truncation, is off
by up to 25 % and has three times the squared error (.0125 instead of .0037 on normal weights).

When to use it: where a multiplier costs more than two shifters. Elsewhere FP8 E4M3 has a fifth of the error in as many
bits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.formats.levels import Levels
from pennyweight.formats.scale_types import power_of_two
from pennyweight.formats.sharing import Sharing

WINDOW = 16  # exponents
GAPS = (1, 2, 3, 4)
ROW = Sharing()


@dataclass(frozen=True, kw_only=True)
class TwoShifts(Levels):
    """Sums of two powers of two in eight bits (RF8), times a power of two.

    Args:
        sharing: which weights share the window of exponents.
    """

    name: ClassVar[str] = "two_shifts"
    sharing: Sharing = ROW
    scale_dtype: str = field(default="e8m0", init=False)

    def label(self) -> str:
        """Such as `rf8 row`, `rf8 tensor`."""
        return f"rf8 {self.sharing.label()}"

    @classmethod
    def parse(cls, label: str) -> Self | None:
        """The format a label names, or None when it names something else."""
        match = re.fullmatch(r"rf8 (\w+)", label.strip())
        sharing = None if match is None else Sharing.parse(match[1])
        return None if sharing is None else cls(sharing=sharing)

    @classmethod
    def examples(cls) -> Sequence[Self]:
        """Rows, groups, blocks and the whole tensor."""
        return [cls(sharing=Sharing(*tile)) for tile in ((1, None), (1, 32), (16, 16), (None, None))]

    def values(self) -> Float[Tensor, " levels"]:
        """Zero, and 2^−k · (1, 17/16, 9/8, 5/4 or 3/2) of either sign, k from 0 to 15."""
        return two_set_bits()

    def candidates(self) -> Sequence[float]:
        """No clipping, or the window one exponent lower, which reaches smaller weights."""
        return 1.0, 0.5

    def round_scale(self, scale: Float[Tensor, "down across"]) -> Float[Tensor, "down across"]:
        """The power of two not below it."""
        return power_of_two(scale, up=True)


@cache
def two_set_bits() -> Float[Tensor, " levels"]:
    """Every number of the window, ascending."""
    leading = torch.ldexp(torch.ones(WINDOW), -torch.arange(WINDOW))
    fractions = torch.tensor([1.0, *(1 + 2.0**-gap for gap in GAPS)])
    positive = (leading[:, None] * fractions).flatten().sort().values
    return torch.cat([-positive.flip(0), torch.zeros(1), positive])
