"""Generalized Gaussians: densities ∝ exp(−|x / a|^shape); their shape from moments, their quantiles, what codes cost.

Shape 2 is the normal distribution, 1 that of Laplace; the smaller, the heavier the tails and the cheaper the codes.

Source: Wu et al. BackSlash: Rate Constrained Optimized Training of Large Language Models. arXiv:2504.16968, for the
estimate by moments and for Exp-Golomb codes of ranks; Wu et al. It Takes a Good Model to Train a Good Model.
arXiv:2506.00486, for weights moved to the quantiles of a shape (DeepShape).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.special import gammaincinv, gammaln
from torch import Tensor

from pennyweight.errors import InvalidWeights

NARROWEST, WIDEST = 0.1, 16.0  # shapes looked for: beyond the widest all are even to the eye
HALVINGS = 60


def moment_ratio(shape: float) -> float:
    """E x² / (E |x|)² = Γ(1/ν) Γ(3/ν) / Γ(2/ν)² of shape ν; falls from 217 at .1 to 4/3 as ν grows."""
    return math.exp(float(gammaln(1 / shape) + gammaln(3 / shape) - 2 * gammaln(2 / shape)))


def shape_of(values: Float[Tensor, ...]) -> float:
    """The shape whose ratio of moments is that of the values, within .1 and 16.

    Raises:
        InvalidWeights: all values are zero, or one is not finite.
    """
    size = values.double().abs()
    ratio = float(size.square().mean() / size.mean().square())
    if not math.isfinite(ratio):
        raise InvalidWeights(f"{values.numel()} values without a shape", expected="finite values, not all of them zero")
    low, high = math.log(NARROWEST), math.log(WIDEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if moment_ratio(math.exp(middle)) > ratio else (low, middle)
    return math.exp((low + high) / 2)


def quantiles(shape: float, count: int) -> Float[Tensor, " count"]:
    """Values at the middles of `count` equal shares, ascending, of unit variance, in float64."""
    share = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    inside = torch.from_numpy(gammaincinv(1 / shape, (2 * share - 1).abs().numpy())).pow(1 / shape)
    unit = math.exp(float(gammaln(1 / shape) - gammaln(3 / shape)) / 2)
    return torch.where(share < 0.5, -inside, inside) * unit


def matched(values: Float[Tensor, "*any"], shape: float) -> Float[Tensor, "*any"]:
    """The same ranks with the quantiles of a shape, of the same mean and the same mean square about it, in float32."""
    flat = values.double().flatten()
    target = quantiles(shape, flat.numel())
    target = target * (flat.std(correction=0) / target.square().mean().sqrt()) + flat.mean()
    result = torch.empty_like(flat)
    result[flat.argsort(stable=True)] = target
    return result.reshape(values.shape).float()


def entropy_bits(codes: Int64[Tensor, ...]) -> float:
    """Bits of all codes at their entropy, without the table that an ideal coder needs."""
    counts = _counts(codes).double()
    return float((counts * (counts.sum().log2() - counts.log2())).sum())


def exp_golomb_bits(codes: Int64[Tensor, ...]) -> int:
    """Bits of all codes as Exp-Golomb words of order 0 of their ranks by frequency, without the list of ranks.

    Rank i, from 0, takes 2 ⌊log2(i + 1)⌋ + 1 bits.
    """
    counts = _counts(codes).sort(descending=True).values
    exponent = torch.frexp(torch.arange(1, len(counts) + 1, dtype=torch.float64))[1].long() - 1
    return int((counts * (2 * exponent + 1)).sum())


def _counts(codes: Int64[Tensor, ...]) -> Int64[Tensor, " different"]:
    """How often each code occurs that does."""
    return torch.from_numpy(np.unique(codes.numpy(), return_counts=True)[1])
