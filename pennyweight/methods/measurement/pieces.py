"""Sums over the vocabulary a few positions at a time: the same numbers, in memory that stays in the cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

PIECE = 1 << 18  # log-probabilities at once; 64 rows of a large vocabulary take three times as long in fresh memory

Divergence = Callable[[Tensor, Tensor], Tensor]


def in_pieces(
    divergence: Divergence,
    reference: Float[Tensor, "positions vocabulary"],
    compressed: Float[Tensor, "positions vocabulary"],
) -> Float[Tensor, " positions"]:
    """Apply a function of log-probabilities, one number a position, to a few positions at a time."""
    step = max(1, PIECE // max(1, reference.shape[-1]))
    pairs = zip(torch.split(reference, step), torch.split(compressed, step), strict=True)
    return torch.cat([divergence(p, q) for p, q in pairs])
