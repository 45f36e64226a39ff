"""NF4: sixteen quantiles of a normal distribution, times the largest weight of a group.

Source: Dettmers et al. QLoRA: Efficient Finetuning of Quantized LLMs. arXiv:2305.14314, and the table of bitsandbytes.
The levels are quantiles of N(0, 1), eight from one half up to .9677083 and seven down from it, with zero, over the
largest. The table is fixed: `search` only shrinks a group's scale.

Departs from it: scales are stored in `scale_dtype`; QLoRA quantizes them a second time.

When to use it: where bitsandbytes reads it. On normal weights in groups of 64 it has a relative squared error of .0085,
and .0073 with the search; in whole rows of 2048, .0115 and .0097.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.formats.levels import Levels
from pennyweight.formats.scale_types import check_scale_type
from pennyweight.formats.sharing import Sharing

OUTERMOST = 0.9677083  # mean of 1 − 1/30 and 1 − 1/32, to as many digits as bitsandbytes has
GROUP = Sharing(1, 64)


@dataclass(frozen=True, kw_only=True)
class NormalFloat(Levels):
    """The sixteen numbers of NF4, times a scale.

    Args:
        sharing: which weights share a scale.
        scale_dtype: what scales are stored in.

    Raises:
        InvalidFormat: a type of scales that does not exist.
    """

    name: ClassVar[str] = "normal_float"
    sharing: Sharing = GROUP
    scale_dtype: str = "float16"

    def __post_init__(self) -> None:
        check_scale_type(self.scale_dtype, "normal_float")

    def label(self) -> str:
        """Such as `nf4 g64`, `nf4 g64 float32`."""
        dtype = "" if self.scale_dtype == "float16" else f" {self.scale_dtype}"
        return f"nf4 {self.sharing.label()}{dtype}"

    @classmethod
    def parse(cls, label: str) -> Self | None:
        """The format a label names, or None when it names something else."""
        match = re.fullmatch(r"nf4 (\w+)(?: (\w+))?", label.strip())
        sharing = None if match is None else Sharing.parse(match[1])
        return None if match is None or sharing is None else cls(sharing=sharing, scale_dtype=match[2] or "float16")

    @classmethod
    def examples(cls) -> Sequence[Self]:
        """Groups, rows and blocks."""
        labels = ("nf4 g32", "nf4 row float32", "nf4 b16 bfloat16")
        return [found for label in labels if (found := cls.parse(label)) is not None]

    def values(self) -> Float[Tensor, " levels"]:
        """From −1 to 1, seven below zero and eight above."""
        return quantiles()


@cache
def quantiles() -> Float[Tensor, " levels"]:
    """The table, ascending."""
    above = torch.special.ndtri(torch.linspace(OUTERMOST, 0.5, 9, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(OUTERMOST, 0.5, 8, dtype=torch.float64)[:-1])
    levels = torch.cat([below, torch.zeros(1, dtype=torch.float64), above.flip(0)])
    return (levels / levels.abs().max()).float()
