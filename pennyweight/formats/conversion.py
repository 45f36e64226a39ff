"""Write a part in another format without changing a number."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pennyweight.errors import InvalidFormat
from pennyweight.formats.format import Format, Part
from pennyweight.formats.whole import Whole


@dataclass(frozen=True, eq=False)
class Numbers:
    """What a part stands for, computed once for every format that is tried.

    Args:
        part: one summand, which is all of a tensor.
        shape: of the tensor, `[out, in]`.
    """

    part: Part
    shape: tuple[int, ...]

    @cached_property
    def weight(self) -> Tensor:
        """In float32."""
        return self.part.format.decode(self.part.tensors, self.shape)

    @cached_property
    def whole(self) -> Whole | None:
        """As whole numbers, where they are that."""
        return self.part.format.whole(self.part.tensors, self.shape)

    @property
    def run(self) -> int:
        """Inputs that share a step; all of them where there are none."""
        return self.shape[1] if self.whole is None else self.whole.run

    def held_by(self, target: Format) -> Part | None:
        """A part of another format that decodes to equal float32 numbers, which is checked; None where it has no room
        for them, or does not fit the shape."""
        if self.part.format == target:
            return self.part
        try:
            found = target.hold(self.weight, self.whole)
        except InvalidFormat:
            return None
        same = found is not None and torch.equal(target.decode(found.tensors, self.shape), self.weight)
        return found if same else None
