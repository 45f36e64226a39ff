"""What the readers of an edge saw, for every channel of a transform, and what rounding their weights does to outputs.

Source: the quantities that scaling methods have in common, from SmoothQuant (arXiv:2211.10438) and AWQ
(arXiv:2306.00978). Several readers share an edge; a transform serves all of them, so extremes are taken over all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.errors import MissingStatistics
from pennyweight.formats import Grid
from pennyweight.network.changing.fold import activation, channel_values, exact, rows
from pennyweight.network.finding.basis import Side, Symmetry
from pennyweight.network.sources.source import Source
from pennyweight.statistics import Statistics

SMALLEST_GROUP = 16  # a size with no larger divisor is rounded a row at a time


@dataclass(frozen=True, eq=False)
class Reading:
    """A layer that reads an edge, and what it read.

    Args:
        side: how its channels follow those of the transform.
        weight: `[out, n]`, float64.
        statistics: of its input.
    """

    side: Side
    weight: Float[Tensor, "out n"]
    statistics: Statistics

    @property
    def sample(self) -> Float[Tensor, "rows n"]:
        """Rows that it read, float64."""
        assert self.statistics.sample is not None
        return of_port(self.statistics.sample, self.side).double()

    @property
    def limits(self) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Smallest and largest number of every input, float64."""
        low, high = self.statistics.low, self.statistics.high
        assert low is not None
        assert high is not None
        return of_port(low, self.side).double(), of_port(high, self.side).double()

    def spread(self, values: Float[Tensor, " size"], otherwise: float = 1.0) -> Float[Tensor, " n"]:
        """Of every input the value of the channel it follows."""
        index = self.side.index
        return torch.where(index >= 0, values[index.clamp(min=0)], otherwise)

    def squared_change(self, x: Float[Tensor, "rows n"], change: Float[Tensor, "out n"]) -> Float[Tensor, ""]:
        """What a change of the weight comes to at the outputs, summed over rows and outputs."""
        return self.outputs(x, change).square().sum()

    def outputs(self, x: Float[Tensor, "rows n"], weight: Float[Tensor, "out n"]) -> Float[Tensor, "rows out"]:
        """X Wᵀ; of a convolution one product a tap, and inputs of each group meet their own outputs only."""
        groups = self.side.port.groups
        split = (t.reshape(len(t), groups, -1) for t in (x, weight))
        return torch.einsum("ngi,rgi->ngr", *split).flatten(1)


def readings(symmetry: Symmetry, source: Source, statistics: Mapping[str, Statistics]) -> tuple[Reading, ...]:
    """Every reader of an edge that was seen at work; an expert that no token reached is left out.

    Raises:
        MissingStatistics: none was.
    """
    found = tuple(
        Reading(side, rows(exact(source, side.port.parameter), side), statistics[activation(side)])
        for side in symmetry.readers if observed(side, statistics) is not None
    )  # fmt: skip
    if not found:
        raise _unseen(symmetry)
    return found


def largest_read(symmetry: Symmetry, statistics: Mapping[str, Statistics]) -> Float[Tensor, " size"]:
    """Largest |x| of every channel, over all readers.

    Raises:
        MissingStatistics: no reader was seen at work.
    """
    low, high = limits(symmetry, statistics)
    return torch.maximum(low.abs(), high.abs())


def limits(
    symmetry: Symmetry, statistics: Mapping[str, Statistics]
) -> tuple[Float[Tensor, " size"], Float[Tensor, " size"]]:
    """Smallest and largest x of every channel, over all readers; zero where nothing follows it.

    Raises:
        MissingStatistics: no reader was seen at work.
    """
    low = torch.full((symmetry.size,), torch.inf, dtype=torch.float64)
    high, seen = -low, False
    for side in symmetry.readers:
        read = observed(side, statistics)
        if read is not None and read.low is not None and read.high is not None:
            low = gathered(low, read.low, side, "amin")
            high, seen = gathered(high, read.high, side, "amax"), True
    if not seen:
        raise _unseen(symmetry)
    return torch.where(low.isfinite(), low, 0.0), torch.where(high.isfinite(), high, 0.0)


def largest_weight(symmetry: Symmetry, source: Source) -> Float[Tensor, " size"]:
    """Largest |w| that every channel meets, over all readers."""
    parts = [channel_values(exact(source, s.port.parameter), s, symmetry.size) for s in symmetry.readers]
    return torch.stack(parts).amax(0)


def observed(side: Side, statistics: Mapping[str, Statistics], name: str = "") -> Statistics | None:
    """Statistics of what a side reads, or of the activation with that name; None where its channels were not seen."""
    found = statistics.get(name or activation(side))
    held = 0 if found is None or found.low is None else len(found.low)
    fits = held == len(side.index) or (side.port.channels is not None and held > max(side.port.channels))
    return found if fits else None


def gathered(
    into: Float[Tensor, " size"], values: Float[Tensor, " n"], side: Side, reduce: str
) -> Float[Tensor, " size"]:
    """Extremes so far, with those of the inputs or outputs of one side added to the channels they follow."""
    touched = side.index >= 0
    return into.scatter_reduce(0, side.index[touched], of_port(values, side).double()[touched], reduce)


def of_port(values: Float[Tensor, "*rows all"], side: Side) -> Float[Tensor, "*rows n"]:
    """Values of the channels of a side, of all those that its tensor writes or reads."""
    inside = side.port.channels is not None and values.shape[-1] != len(side.index)
    return values[..., list(side.port.channels)] if inside else values  # type: ignore[arg-type]


def rounded(weight: Float[Tensor, "out n"], grid: Grid) -> Float[Tensor, "out n"]:
    """The nearest values of a grid, its ranges from minimum to maximum; the largest group that divides the inputs."""
    size = grid.group_size
    if size is not None:
        dividing = [g for g in range(1, min(size, weight.shape[1]) + 1) if weight.shape[1] % g == 0]
        size = dividing[-1] if dividing[-1] >= min(SMALLEST_GROUP, weight.shape[1]) else None
    grid = replace(grid, group_size=size)
    scales = grid.fit(weight, search=False)
    return grid.decode(scales.part(scales.round(weight)).tensors, tuple(weight.shape)).double()


def _unseen(symmetry: Symmetry) -> MissingStatistics:
    return MissingStatistics(
        "nothing was seen of what is read here", expected="statistics of at least one reader of the edge",
        mend="calibrate with data that reaches it", site=symmetry.name,
    )  # fmt: skip
