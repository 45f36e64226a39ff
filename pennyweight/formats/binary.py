"""Binary weights: a sign, times a scale of a group, a row or the tensor.

Source: Rastegari et al. XNOR-Net: ImageNet Classification Using Binary Convolutional Neural Networks. arXiv:1603.05279,
equation 6: the scale of the least squared error is mean |w|, here the mean weighted by importance where that is given.
On normal weights the relative squared error is 1 − 2/π = .3634. With the mean of each row taken out first, and kept, it
is one bit of `k_means`.

The sign of zero is +1, in the sweep of a method as well. A scale may be zero, so that zeros stay zeros.

When to use it: as one term of a sum (`residual_binary`), or with training afterwards. Alone and after training a
language model does not survive it.
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
from pennyweight.formats.dense import DTYPES
from pennyweight.formats.levels import Levels
from pennyweight.formats.scale_types import round_scale
from pennyweight.formats.sharing import Sharing, refuse_blocks

ROW = Sharing()


@dataclass(frozen=True, kw_only=True)
class Binary(Levels):
    """−1 and 1, times a scale.

    Args:
        sharing: which weights share a scale: a group, a row or the tensor.
        scale_dtype: what scales are stored in: float16, bfloat16 or float32.

    Raises:
        InvalidFormat: square blocks, or a type of scales that cannot be zero.
    """

    name: ClassVar[str] = "binary"
    sharing: Sharing = ROW
    scale_dtype: str = "float16"

    def __post_init__(self) -> None:
        refuse_blocks(self.sharing, "binary")
        if self.scale_dtype not in DTYPES:
            raise InvalidFormat(f"scales in {self.scale_dtype}", expected=", ".join(DTYPES), site="binary")

    def label(self) -> str:
        """Such as `binary row`, `binary g128 bfloat16`."""
        dtype = "" if self.scale_dtype == "float16" else f" {self.scale_dtype}"
        return f"binary {self.sharing.label()}{dtype}"

    @classmethod
    def parse(cls, label: str) -> Self | None:
        """The format a label names, or None when it names something else."""
        match = re.fullmatch(r"binary (\w+)(?: (\w+))?", label.strip())
        sharing = None if match is None else Sharing.parse(match[1])
        return None if match is None or sharing is None else cls(sharing=sharing, scale_dtype=match[2] or "float16")

    @classmethod
    def examples(cls) -> Sequence[Self]:
        """Rows, groups and the whole tensor."""
        labels = ("binary row", "binary g32", "binary g48 bfloat16", "binary tensor float32")
        return [found for label in labels if (found := cls.parse(label)) is not None]

    def values(self) -> Float[Tensor, " levels"]:
        """−1, 1."""
        return torch.tensor([-1.0, 1.0])

    def borders(self) -> Float[Tensor, " borders"]:
        """The largest number below zero: zero itself lies above it, and becomes +1."""
        return torch.nextafter(torch.zeros(1), torch.tensor([-1.0]))

    def _fit_tiles(self, w: Tensor, search: bool, importance: Tensor | None) -> Tensor:
        return self.round_scale(mean_size(w, importance if search else None))

    def round_scale(self, scale: Float[Tensor, "down across"]) -> Float[Tensor, "down across"]:
        """Scales as they will be read back; those of zeros, or far below the type's range, are zero."""
        return round_scale_or_zero(scale, self.scale_dtype)


def mean_size(w: Float[Tensor, "*tiles n"], importance: Float[Tensor, "*ones n"] | None) -> Float[Tensor, "*tiles"]:
    """Mean of |w| over each tile, weighted by importance where it is given and not all zero."""
    plain = w.abs().mean(-1)
    if importance is None:
        return plain
    total = importance.sum(-1)
    weighted = (w.abs() * importance).sum(-1) / torch.where(total > 0, total, 1)
    return torch.where(total > 0, weighted, plain)


def round_scale_or_zero(scale: Float[Tensor, ...], dtype: str) -> Float[Tensor, ...]:
    """Scales of a floating type as they will be read back, zero included.

    Raises:
        InvalidFormat: a scale overflows its type.
    """
    stored = round_scale(scale, dtype)
    return torch.where(scale.to(DTYPES[dtype]) == 0, torch.zeros_like(stored), stored)
