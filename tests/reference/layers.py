"""Random layers for tests: weights with heavy tails, inputs that are correlated and of unequal size."""

from __future__ import annotations

import torch
from torch import Tensor


def correlated_gram(columns: int, seed: int, *, tokens: int | None = None) -> Tensor:
    """Gram matrix `[columns, columns]`, float32, of inputs with a decaying spectrum and a few loud channels."""
    generator = torch.Generator().manual_seed(seed)
    count = tokens if tokens is not None else 8 * columns
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    spectrum = torch.arange(1, columns + 1, dtype=torch.float64) ** -0.75
    loud = torch.exp(0.7 * torch.randn(columns, generator=generator, dtype=torch.float64))
    x = torch.randn(count, columns, generator=generator, dtype=torch.float64) * spectrum @ mixing
    x = (x + 0.7 * torch.randn(x.shape, generator=generator, dtype=torch.float64)) * loud
    return (x.T @ x / count).float()


def heavy_weight(rows: int, columns: int, seed: int) -> Tensor:
    """Weights `[rows, columns]`, float32: normal, with one in fifty four times as large."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    return weight * torch.where(torch.rand(weight.shape, generator=generator) < 0.02, 4.0, 1.0)
