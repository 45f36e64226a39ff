"""Choosing steps and offsets of blocks for the least weighted squared error.

Every candidate range is rounded to, then its step (and offset) is solved for by weighted least squares with the codes
held, stored, and rounded to again; the candidate of the least error wins. Steps a little beside the winner's are tried
in the same way. Where the whole range does better, it stays.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.formats.gguf.numbers import Numbers, scaled

NARROWEST = {2: 0.35, 3: 0.50, 4: 0.62, 5: 0.74, 6: 0.82, 8: 0.93}
WIDEST = 1.04
CANDIDATES = 12
BESIDE = (0.97, 0.985, 1.0, 1.015, 1.03)  # times the winner's step


def as_half(x: Tensor) -> Tensor:
    """As float16 reads back."""
    return x.to(torch.float16).float()


def unchanged(x: Tensor) -> Tensor:
    """For what is stored in other ways."""
    return x


def extreme(w: Float[Tensor, "*blocks n"]) -> Float[Tensor, "*blocks"]:
    """The weight of the largest size, with its sign; the first of equals."""
    return w.gather(-1, w.abs().argmax(-1, keepdim=True))[..., 0]


def shares(bits: int) -> list[float]:
    """Shares of the whole range that the search tries."""
    return [float(x) for x in torch.linspace(WIDEST, NARROWEST[bits], CANDIDATES)]


def search_steps(
    w: Tensor, importance: Tensor, numbers: Numbers, whole: Tensor, bits: int, stored: Callable[[Tensor], Tensor]
) -> Tensor:
    """Steps of either sign, without offsets, of sub-blocks `[..., n]`; `whole` is what the plain rule gives."""
    none = torch.zeros_like(whole)
    best, error = whole, numbers.error(w, importance, whole, none)

    def consider(step: Tensor) -> None:
        nonlocal best, error
        level = numbers.level(scaled(w, step[..., None], none[..., None]))
        weighed = level * importance
        square = (weighed * level).sum(-1)
        step = stored(torch.where(square > 0, (weighed * w).sum(-1) / square, step))
        found = numbers.error(w, importance, step, none)
        better = found < error
        best, error = torch.where(better, step, best), torch.where(better, found, error)

    reach = extreme(w)
    for end in (float(numbers.values[0]), float(numbers.values[-1])):
        for share in shares(bits):
            consider(reach * (share / end))
    winner = best
    for factor in BESIDE:
        consider(winner * factor)
    return best


def search_ranges(
    w: Tensor, importance: Tensor, numbers: Numbers, whole: tuple[Tensor, Tensor], bits: int,
    stored: Callable[[Tensor], Tensor], *, signed: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Steps and offsets of sub-blocks `[..., n]`; `whole` is what the plain rule gives.

    Offsets are of either sign where `signed`, else not below zero.
    """
    top = float(numbers.values[-1])
    best, error = whole, numbers.error(w, importance, *whole)

    def consider(step: Tensor, offset: Tensor) -> None:
        nonlocal best, error
        if not signed:
            offset = offset.clamp(min=0)
        code = numbers.level(scaled(w, step[..., None], offset[..., None]))
        step, offset = solve_range(w, importance, code, step, offset, signed=signed)
        step, offset = stored(step), stored(offset)
        found = numbers.error(w, importance, step, offset)
        better = found < error
        best = torch.where(better, step, best[0]), torch.where(better, offset, best[1])
        error = torch.where(better, found, error)

    low, high = w.amin(-1), w.amax(-1)
    if not signed:
        low, high = low.clamp(max=0), high.clamp(min=0)
    middle, reach = (high + low) / 2, (high - low) / 2
    for share in shares(bits):
        for below, above in ((share, share), (1.0, share), (share, 1.0)):
            consider(reach * ((below + above) / top), reach * below - middle)
    step, offset = best
    for factor in BESIDE:  # about the middle of the range
        consider(step * factor, offset + step * ((factor - 1) * top / 2))
    return best


def solve_range(
    w: Tensor, importance: Tensor, code: Tensor, step: Tensor, offset: Tensor, *, signed: bool = True
) -> tuple[Tensor, Tensor]:
    """Step and offset of the least weighted squared error with the codes held; as given where they are not unique."""
    weighed = code * importance
    squares, mass, sums = (weighed * code).sum(-1), importance.sum(-1).expand(step.shape), weighed.sum(-1)
    cross = (weighed * w).sum(-1)
    slope, shift, unique = solve_pair(squares, sums, mass, cross, (w * importance).sum(-1))
    if not signed:  # where the best offset is below zero it stays at zero, and the step alone is solved for
        slope = torch.where(shift < 0, cross / torch.where(squares > 0, squares, 1), slope)
        shift, unique = shift.clamp(min=0), unique & (slope > 0)
    return torch.where(unique, slope, step), torch.where(unique, shift, offset)


def solve_pair(aa: Tensor, ab: Tensor, bb: Tensor, aw: Tensor, bw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Least squares of x · a − y · b − w from sums of products: x, y, and whether they are unique."""
    determinant = aa * bb - ab.square()
    unique = determinant > 1e-6 * aa * bb
    determinant = torch.where(unique, determinant, 1)
    return (aw * bb - ab * bw) / determinant, (ab * aw - aa * bw) / determinant, unique
