"""What is known of a weight and its roundings before any of them is carried out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.formats import Compressed, Format


@dataclass(frozen=True, kw_only=True, eq=False)
class Change:
    """A weight under several formats.

    Args:
        weight: rows of it.
        formats: that it may be stored in.
        outputs: expected squared change of each output, E gram Eᵀ, by the method that will round.
        fisher: mean squared derivative of the log-likelihood with respect to each output; rows that are left out are
            counted with those that stand for them.
        gram: mean of x xᵀ of the activation it reads.
        stands_for: rows of the whole weight that each row stands for.
    """

    weight: Float[Tensor, "out in"]
    formats: Sequence[Format]
    outputs: Float[Tensor, "formats out"]
    fisher: Float[Tensor, " out"]
    gram: Float[Tensor, "in in"]
    stands_for: Float[Tensor, " out"]

    @cached_property
    def weights(self) -> Float[Tensor, "formats out"]:
        """Squared change of each row of the weight under plain rounding."""
        shape = tuple(self.weight.shape)
        rounded = (Compressed((format.store(self.weight),), shape).dequantize() for format in self.formats)
        return torch.stack([(values - self.weight).square().sum(1) for values in rounded])
