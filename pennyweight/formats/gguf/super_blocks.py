"""Scales in two levels: whole numbers for sub-blocks, times one float16 for a block of several; chosen together.

Given the float16 numbers, sub-blocks do not depend on each other. So a few candidates of those are tried, the whole
numbers of each sub-block are moved to the best of their neighbours, and the float16 numbers are solved for again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pennyweight.formats.gguf.numbers import Numbers, scaled
from pennyweight.formats.gguf.search import as_half, extreme, solve_pair

SLACK = (-1.0, 0.0, 1.0, 2.0)  # whole numbers that candidates leave unused at the end of their range; below 0 clips
ROUNDS = 2
LEAST = 2.0**-24  # above zero in float16


@dataclass(frozen=True, eq=False)
class SuperBlocks:
    """What blocks `[..., sub-blocks]` store besides codes; all float32.

    Args:
        scale: `[...]`, of the steps.
        units: `[..., sub-blocks]` whole numbers; a step is their product with `scale`.
        minimum_scale: `[...]`, of the offsets.
        minimum_units: `[..., sub-blocks]` whole numbers, zero for types without minima.
    """

    scale: Tensor
    units: Tensor
    minimum_scale: Tensor
    minimum_units: Tensor

    @property
    def step(self) -> Tensor:
        """Of each sub-block."""
        return self.scale[..., None] * self.units

    @property
    def offset(self) -> Tensor:
        """Of each sub-block."""
        return self.minimum_scale[..., None] * self.minimum_units

    def where(self, better: Tensor, other: SuperBlocks) -> SuperBlocks:
        """The other one for some blocks."""
        sub = better[..., None]
        return SuperBlocks(
            torch.where(better, other.scale, self.scale), torch.where(sub, other.units, self.units),
            torch.where(better, other.minimum_scale, self.minimum_scale),
            torch.where(sub, other.minimum_units, self.minimum_units),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Joint:
    """The search for one chunk of blocks.

    Args:
        w: `[..., sub-blocks, n]`.
        importance: of the same shape, or one row of it.
        numbers: what codes stand for.
        low: least whole number of a scale; below zero scales have signs.
        high: largest whole number of a scale and of a minimum.
        minima: whether sub-blocks have offsets.
    """

    w: Tensor
    importance: Tensor
    numbers: Numbers
    low: int
    high: int
    minima: bool

    def error(self, blocks: SuperBlocks) -> Tensor:
        """Of each sub-block."""
        return self.numbers.error(self.w, self.importance, blocks.step, blocks.offset)

    def plain(self, step: Tensor, offset: Tensor) -> SuperBlocks:
        """The sub-block with the largest step, and that with the largest offset, use the whole range."""
        scale = _not_zero(extreme(step) / (self.low or self.high))
        return self._rounded(scale, step, *self._minima(offset, 0.0))

    def search(self, step: Tensor, offset: Tensor, plain: SuperBlocks) -> SuperBlocks:
        """From steps and offsets of sub-blocks by themselves; no block is worse than with the plain rule."""
        best, error = plain, self.error(plain).sum(-1)
        peak = extreme(step)
        for end in (self.low, self.high) if self.low else (self.high,):
            for slack in SLACK:
                scale = _not_zero(peak / (end + slack if end < 0 else end - slack))
                trial = self._rounded(scale, step, plain.minimum_scale, plain.minimum_units)
                moved = self._offset(trial.step, offset) if self.minima else offset
                for spare in SLACK if self.minima else (0.0,):
                    trial = self._rounded(scale, step, *self._minima(moved, spare))
                    found = self.error(trial).sum(-1)
                    better = found < error
                    best, error = best.where(better, trial), torch.where(better, found, error)
        for _ in range(ROUNDS):
            best = self._neighbours(best)
            trial = self._refitted(best)
            best = best.where(self.error(trial).sum(-1) < self.error(best).sum(-1), trial)
        return best

    def _units(self, values: Tensor, scale: Tensor, low: int) -> Tensor:
        return scaled(values, scale[..., None], torch.zeros(())).round_().clamp_(low, self.high)

    def _rounded(self, scale: Tensor, step: Tensor, minimum_scale: Tensor, minimum_units: Tensor) -> SuperBlocks:
        return SuperBlocks(scale, self._units(step, scale, self.low), minimum_scale, minimum_units)

    def _minima(self, offset: Tensor, slack: float) -> tuple[Tensor, Tensor]:
        scale = _not_zero(offset.amax(-1) / (self.high - slack))
        return scale, self._units(offset, scale, 0)

    def _offset(self, step: Tensor, offset: Tensor) -> Tensor:
        """The best offsets for these steps, codes held."""
        code = self.numbers.level(scaled(self.w, step[..., None], offset[..., None]))
        mass = self.importance.sum(-1)
        moved = ((code.mul_(step[..., None]).sub_(self.w)) * self.importance).sum(-1) / torch.where(mass > 0, mass, 1)
        return torch.where(mass > 0, moved, offset).clamp(min=0)

    def _neighbours(self, blocks: SuperBlocks) -> SuperBlocks:
        """Each sub-block's whole numbers, or those one beside them, whichever lose least."""
        best, error = blocks, self.error(blocks)
        for i in (-1, 0, 1):
            for j in (-1, 0, 1) if self.minima else (0,):
                units = (blocks.units + i).clamp_(self.low, self.high)
                minima = (blocks.minimum_units + j).clamp_(0, self.high) if self.minima else blocks.minimum_units
                found = self.error(replace(blocks, units=units, minimum_units=minima))
                better = found < error
                error = torch.where(better, found, error)
                best = replace(
                    best, units=torch.where(better, units, best.units),
                    minimum_units=torch.where(better, minima, best.minimum_units),
                )  # fmt: skip
        return best

    def _refitted(self, blocks: SuperBlocks) -> SuperBlocks:
        """Both float16 numbers by weighted least squares, codes and whole numbers held; or the first alone."""
        code = self.numbers.level(scaled(self.w, blocks.step[..., None], blocks.offset[..., None]))
        a, b = code.mul_(blocks.units[..., None]), blocks.minimum_units[..., None]
        weighed, shifted = a * self.importance, b * self.importance
        aa, ab, bb = ((x * y).sum((-1, -2)) for x, y in ((weighed, a), (weighed, b), (shifted, b)))
        aw, bw = ((x * self.w).sum((-1, -2)) for x in (weighed, shifted))
        scale, shift, unique = solve_pair(aa, ab, bb, aw, bw)
        alone = torch.where(aa > 0, (aw + blocks.minimum_scale * ab) / torch.where(aa > 0, aa, 1), blocks.scale)
        sound = unique & (scale > 0) & (shift >= 0)
        return replace(
            blocks, scale=as_half(torch.where(sound, scale, alone)),
            minimum_scale=as_half(torch.where(sound, shift, blocks.minimum_scale)),
        )  # fmt: skip


def _not_zero(scale: Tensor) -> Tensor:
    """In float16, the least there is where that would be zero: whole numbers then use less of their range."""
    stored = as_half(scale)
    return torch.where((stored == 0) & (scale != 0), LEAST * scale.sign(), stored)
