"""Choosing steps and offsets of blocks for the least weighted squared error.

Every candidate range is rounded to, then its step (and offset) is solved for by weighted least squares with the codes
held, stored, and rounded to again; the candidate of the least error wins. Where the whole range does better, it stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

NARROWEST = {2: 0.35, 3: 0.50, 4: 0.62, 5: 0.74, 6: 0.82, 8: 0.93}
WIDEST = 1.04
CANDIDATES = 12


@dataclass(frozen=True, eq=False)
class Numbers:
    """The numbers codes stand for, ascending; `uniform` when they are consecutive whole numbers."""

    values: Float[Tensor, " levels"]
    uniform: bool = True

    def level(self, x: Float[Tensor, ...]) -> Float[Tensor, ...]:
        """The nearest number; `x` is written to."""
        if self.uniform:
            return x.round_().clamp_(float(self.values[0]), float(self.values[-1]))
        return self.values[torch.bucketize(x, self._borders())]

    def encode(self, w: Float[Tensor, ...], step: Float[Tensor, ...], offset: Float[Tensor, ...]) -> Float[Tensor, ...]:
        """Codes, as float32 whole numbers, of the nearest of step · level − offset."""
        x = scaled(w, step, offset)
        if self.uniform:
            return self.level(x).sub_(float(self.values[0]))
        return torch.bucketize(x, self._borders()).float()

    def _borders(self) -> Tensor:
        return (self.values[1:] + self.values[:-1]) / 2

    def error(
        self, w: Float[Tensor, ...], importance: Float[Tensor, ...], step: Float[Tensor, ...],
        offset: Float[Tensor, ...],
    ) -> Float[Tensor, ...]:  # fmt: skip
        """Weighted squared error of each sub-block when rounded to the nearest."""
        step, offset = step[..., None], offset[..., None]
        change = self.level(scaled(w, step, offset)).mul_(step).sub_(offset).sub_(w)
        return change.square_().mul_(importance).sum(-1)


def whole_numbers(low: int, high: int) -> Numbers:
    """`low` to `high`."""
    return Numbers(torch.arange(low, high + 1).float())


def scaled(w: Tensor, step: Tensor, offset: Tensor) -> Tensor:
    """(w + offset) / step; zero where the step is zero and all codes stand for the same number."""
    return (w + offset).div_(torch.where(step == 0, torch.inf, step))


def as_half(x: Tensor) -> Tensor:
    """As float16 reads back."""
    return x.to(torch.float16).float()


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
    reach = extreme(w)
    for end in (float(numbers.values[0]), float(numbers.values[-1])):
        for share in shares(bits):
            level = numbers.level(scaled(w, (reach * (share / end))[..., None], none[..., None]))
            weighed = level * importance
            square = (weighed * level).sum(-1)
            step = stored(torch.where(square > 0, (weighed * w).sum(-1) / square, reach * (share / end)))
            found = numbers.error(w, importance, step, none)
            better = found < error
            best, error = torch.where(better, step, best), torch.where(better, found, error)
    return best


def search_ranges(
    w: Tensor, importance: Tensor, numbers: Numbers, whole: tuple[Tensor, Tensor], bits: int,
    stored: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Steps and offsets of either sign of sub-blocks `[..., n]`; `whole` is what the plain rule gives."""
    top = float(numbers.values[-1])
    best_step, best_offset = whole
    error = numbers.error(w, importance, *whole)
    low, high = w.amin(-1), w.amax(-1)
    middle, reach = (high + low) / 2, (high - low) / 2
    for share in shares(bits):
        for below, above in ((share, share), (1.0, share), (share, 1.0)):
            offset, step = reach * below - middle, reach * ((below + above) / top)
            code = numbers.level(scaled(w, step[..., None], offset[..., None]))
            step, offset = solve_range(w, importance, code, step, offset)
            step, offset = stored(step), stored(offset)
            found = numbers.error(w, importance, step, offset)
            better = found < error
            error = torch.where(better, found, error)
            best_step, best_offset = torch.where(better, step, best_step), torch.where(better, offset, best_offset)
    return best_step, best_offset


def solve_range(w: Tensor, importance: Tensor, code: Tensor, step: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Step and offset of the least weighted squared error with the codes held; as given where they are not unique."""
    weighed = code * importance
    mass, first, second = importance.sum(-1).expand(step.shape), weighed.sum(-1), (weighed * code).sum(-1)
    total, cross = (w * importance).sum(-1), (weighed * w).sum(-1)
    determinant = mass * second - first.square()
    unique = determinant > 1e-6 * mass * second
    determinant = torch.where(unique, determinant, 1)
    slope = (mass * cross - first * total) / determinant
    shift = (first * cross - second * total) / determinant
    return torch.where(unique, slope, step), torch.where(unique, shift, offset)
