"""Uniform rounding of activations: x ≈ scale · (code − zero_point), in the precision of x.

`formats.Grid` stores weights, to the bit; this is what rounding does to numbers that pass through. A zero point is a
whole number, so that adding and taking it away is exact; where the range does not hold zero it lies outside the codes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def affine(
    low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"], bits: int
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Scale and zero point that spread 2^bits codes over a range; a range of no width has a scale of zero."""
    scale = (high - low) / (2**bits - 1)
    return scale, (-low / _divisor(scale)).round()


def rounded(
    x: Float[Tensor, "*batch n"], scale: Float[Tensor, ...], zero_point: Float[Tensor, ...], bits: int
) -> Float[Tensor, "*batch n"]:
    """The nearest of the values that codes from 0 to 2^bits − 1 stand for.

    Args:
        x: what is rounded.
        scale: of everything, of every channel `[n]`, or of every row `[*batch, 1]`.
        zero_point: whole numbers, of the same shape.
        bits: width of the codes.
    """
    codes = ((x / _divisor(scale)).round() + zero_point).clamp(0, 2**bits - 1)
    values: Tensor = (codes - zero_point) * scale
    return values


def rounded_per_token(x: Float[Tensor, "*batch n"], bits: int, *, symmetric: bool = True) -> Float[Tensor, "*batch n"]:
    """Every row rounded over a range of its own, that of its largest number or from its smallest to its largest."""
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    if symmetric:
        scale = high.maximum(-low) / (2 ** (bits - 1) - 1)
        values: Tensor = (x / _divisor(scale)).round() * scale
        return values
    return rounded(x, *affine(low, high, bits), bits)


def _divisor(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, 1.0)
