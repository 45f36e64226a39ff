"""What learned transforms are judged by: the output error of the layers that read an edge, once rounded.

Source: the layer-wise error of OmniQuant (Shao et al., 2023, arXiv:2308.13137); rounding passes gradients straight
through (Bengio et al., 2013, arXiv:1308.3432), and the range of a row, which sets its scale, has gradients of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from pennyweight.errors import InvalidMethod
from pennyweight.methods.rewrites.readers import Reading, observed, readings
from pennyweight.network.changing.fold import Fold
from pennyweight.network.finding.symmetry import Side, Symmetry
from pennyweight.network.sources.source import Source
from pennyweight.statistics import Statistics

UNROUNDED = 16  # bits from which on nothing is rounded
SMALLEST = 1e-12


@dataclass(frozen=True, eq=False)
class Layer:
    """One activation and everything that multiplies it.

    Args:
        reading: the first layer that reads it, with the weights of all of them below each other.
        inputs: some rows of it `[rows, n]`.
    """

    reading: Reading
    inputs: Tensor

    @property
    def weight(self) -> Tensor:
        """Of all layers that read it `[out, n]`."""
        return self.reading.weight

    @cached_property
    def gram(self) -> Tensor:
        """Wᵀ W: what a change of the inputs comes to at the outputs."""
        return self.weight.mT @ self.weight

    @cached_property
    def expected(self) -> Tensor:
        """The outputs, unrounded."""
        return self.reading.outputs(self.inputs, self.weight)


def layers_of(
    symmetry: Symmetry, source: Source, statistics: Mapping[str, Statistics], *, count: int, folds: Sequence[Fold] = ()
) -> list[Layer]:
    """The layers that read an edge, those of one activation together.

    Args:
        symmetry: the edge.
        source: weights with `folds` folded in.
        statistics: of activations from before `folds`.
        count: most rows of an activation, evenly spread.
        folds: scales and shifts that were chosen since the statistics were taken.

    Raises:
        MissingStatistics: nothing was seen of what they read.
    """
    found: list[Layer] = []
    for reading in readings(symmetry, source, statistics):
        inputs = _changed(spread_rows(reading.sample, count), reading.side, folds)
        same = next((i for i, one in enumerate(found) if torch.equal(one.inputs, inputs)), None)
        if same is None or reading.side.port.groups > 1:
            found.append(Layer(reading, inputs))
        else:
            weights = torch.cat([found[same].weight, reading.weight])
            found[same] = Layer(replace(found[same].reading, weight=weights), inputs)
    return found


def some_readers(symmetry: Symmetry, statistics: Mapping[str, Statistics], most: int) -> Symmetry:
    """The edge with so many of the activations that its layers read, evenly spread: a stream has hundreds."""
    read: list[list[Side]] = []
    for side in symmetry.readers:
        seen, last = observed(side, statistics), observed(read[-1][0], statistics) if read else None
        if seen is None or seen.sample is None:
            continue
        if last is not None and last.sample is not None and torch.equal(seen.sample, last.sample):
            read[-1].append(side)
        else:
            read.append([side])
    kept = read[:: math.ceil(len(read) / most) or 1]
    return replace(symmetry, sides=(*symmetry.writers, *(side for group in kept for side in group)))


def spread_rows(sample: Tensor, count: int) -> Tensor:
    """So many rows, evenly spread, in float64."""
    return sample[:: max(1, len(sample) // count)][:count].double()


def rounded(x: Tensor, bits: int, *, whole: bool = False) -> Tensor:
    """Rows on an even grid from their smallest to their largest number, zero included; gradients pass straight through.

    Args:
        x: `[rows, n]`.
        bits: of the grid.
        whole: one range for all rows, as a range that is fixed beforehand has to be.
    """
    if bits >= UNROUNDED:
        return x
    low, high = (x.amin().reshape(1, 1), x.amax().reshape(1, 1)) if whole else (
        x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    )  # fmt: skip
    low, high, top = low.clamp(max=0), high.clamp(min=0), 2**bits - 1
    scale = ((high - low) / top).clamp(min=SMALLEST)
    zero = (-low / scale).detach().round()
    codes = (x / scale).detach()
    error = ((codes.round() + zero).clamp(0, top) - zero) - codes
    result: Tensor = x + error * scale  # the derivative by the scale is the rounding error, as in learned step sizes
    return result


def rounded_weight(weight: Tensor, bits: int) -> Tensor:
    """Rows on a grid that is symmetric around zero, each with a scale of its own."""
    if bits >= UNROUNDED:
        return weight
    top = 2 ** (bits - 1) - 1
    scale = (weight.abs().amax(-1, keepdim=True) / top).clamp(min=SMALLEST)
    codes = (weight / scale).detach()
    result: Tensor = weight + (codes.round().clamp(-top - 1, top) - codes) * scale
    return result


def check_learning(method: str, *, steps: int, rate: float, rows: int, bits: Sequence[int]) -> None:
    """Refuse arguments that mean nothing.

    Raises:
        InvalidMethod: says which.
    """
    if steps < 0 or not rate > 0 or rows < 1 or any(not 2 <= b <= UNROUNDED for b in bits):
        raise InvalidMethod(
            f"steps={steps}, rate={rate}, rows={rows}, bits {list(bits)}",
            expected=f"steps >= 0, a rate above 0, a row or more, and 2 to {UNROUNDED} bits ({UNROUNDED}: unrounded)",
            mend=f"{method}()", site=method,
        )  # fmt: skip


def _changed(inputs: Tensor, side: Side, folds: Sequence[Fold]) -> Tensor:
    """The rows after scales and shifts on the edge they came from."""
    for fold in folds:
        for other in fold.symmetry.readers:
            scale, shift = fold.transform.scale, fold.transform.shift
            if other.port == side.port and scale is not None:
                inputs = inputs * scale[other.index]
                inputs = inputs if shift is None else inputs + shift[other.index]
    return inputs
