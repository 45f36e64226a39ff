"""Which inputs of a pool are degraded: a share of them, drawn at random.

Source: the mixed calibration sets of arXiv:2508.19600, clean inputs and degraded ones together.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Generator, Tensor

from pennyweight.errors import InvalidMethod


def check_share(share: float, site: str) -> None:
    """See that a share is one.

    Raises:
        InvalidMethod: it is not.
    """
    if not 0 <= share <= 1:
        raise InvalidMethod(f"share={share!r}", expected="from 0 to 1", mend=f"{site}(share=0.5)", site=site)


def drawn(count: int, share: float, generator: Generator) -> Bool[Tensor, " count"]:
    """The nearest whole number to the share of so many, drawn without replacement."""
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[torch.randperm(count, generator=generator)[: round(share * count)]] = True
    return chosen


def between(low: float, high: float, count: int, generator: Generator) -> Float[Tensor, "count 1 1 1"]:
    """One number for each image."""
    return (low + (high - low) * torch.rand(count, generator=generator))[:, None, None, None]


def where(chosen: Bool[Tensor, " n"], changed: Shaped[Tensor, "n ..."], pool: Shaped[Tensor, "n ..."]) -> Tensor:
    """The changed inputs where they were chosen."""
    return torch.where(chosen.reshape(-1, *[1] * (pool.dim() - 1)), changed, pool)
