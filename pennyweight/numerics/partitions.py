"""Numbers on a line cut into runs, many lines at once: the rounds of Lloyd, and cuts of equal error.

On a line a cell of the nearest of several levels is a run of the sorted numbers. With running sums of mass, of mass
times number and of mass times its square, the mean and the squared error of any run cost two look-ups, however long it
is. So a round costs a search a level, and no line waits for another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

HALVINGS = 12  # of the logarithm of an error, between that of the whole and SMALLEST of it: to half a per cent
SMALLEST = 1e-9


@dataclass(frozen=True, eq=False)
class Lines:
    """Sorted numbers of every line and their running sums, in float64.

    Args:
        ordered: ascending.
        sums: of mass, mass · number and mass · number², each starting with zero.
    """

    ordered: Float[Tensor, "down across n"]
    sums: tuple[Float[Tensor, "down across more"], ...]

    @property
    def ends(self) -> Int64[Tensor, "down across 1"]:
        """How many numbers a line has, for each line."""
        return torch.full((*self.ordered.shape[:2], 1), self.ordered.shape[-1])

    def moments(self, start: Int64[Tensor, "down across k"], stop: Int64[Tensor, "down across k"]) -> list[Tensor]:
        """Sums over runs."""
        return [total.gather(-1, stop) - total.gather(-1, start) for total in self.sums]

    def cells(self, table: Float[Tensor, "down across k"]) -> list[Tensor]:
        """Sums over what is nearest to each level of an ascending table; what lies in the middle goes to the lower."""
        borders = (table[..., 1:] + table[..., :-1]) / 2
        cuts = torch.searchsorted(self.ordered, borders.contiguous(), right=True)
        bounds = torch.cat([torch.zeros_like(self.ends), cuts, self.ends], -1)
        return self.moments(bounds[..., :-1], bounds[..., 1:])

    def error(self, table: Float[Tensor, "down across k"]) -> Float[Tensor, "down across"]:
        """Squared error of the nearest levels, weighted by mass."""
        mass, first, second = self.cells(table)
        return (second - 2 * table * first + table.square() * mass).sum(-1).clamp(min=0)


def lines(w: Float[Tensor, "down across n"], mass: Float[Tensor, "rows across n"] | None, sample: int) -> Lines:
    """Sort every line. Of one longer than `sample`, runs of as many neighbours as needed are taken as one number.

    Args:
        w: numbers.
        mass: of each number in means and errors, at least zero; a line that has none counts its numbers alike.
        sample: longest line that is kept whole.
    """
    ordered, places = w.sort(dim=-1, stable=True)
    if mass is None:
        weight = torch.ones(1, dtype=torch.float64).expand(ordered.shape)
    else:
        some = mass.sum(-1, keepdim=True) > 0
        weight = torch.where(some, mass, 1).expand(w.shape).gather(-1, places).double()
    step = -(-w.shape[-1] // sample)
    if step > 1:  # the middle of every run stands for all of it
        ordered, weight = ordered[..., step // 2 :: step], weight[..., step // 2 :: step]
    ordered = ordered.double()
    zero = torch.zeros(*ordered.shape[:2], 1, dtype=torch.float64)
    first = weight * ordered
    sums = tuple(torch.cat([zero, part.cumsum(-1)], -1) for part in (weight, first, first * ordered))
    return Lines(ordered, sums)


def settled(found: Lines, table: Float[Tensor, "down across k"], rounds: int) -> Float[Tensor, "down across k"]:
    """Lloyd's rounds: each level becomes the mean of what is nearest to it, until none moves; an empty one stays."""
    for _ in range(rounds):
        mass, first, _ = found.cells(table)
        new = torch.where(mass > 0, first / mass.clamp(min=1e-300), table).sort(dim=-1).values
        if torch.equal(new, table):
            break
        table = new
    return table


def equal_errors(found: Lines, count: int) -> Float[Tensor, "down across k"]:
    """Means of `count` runs with as much squared error in one as in another, as nearly as numbers allow.

    A run takes numbers from the left as long as its error stays within a limit; the least limit with which the runs
    reach the end is found by halving, down from the error of the whole.
    """
    high = _spread(found.moments(torch.zeros_like(found.ends), found.ends)) * (1 + 1e-9)
    low = high * SMALLEST
    for _ in range(HALVINGS):
        limit = (low * high).sqrt()
        reached = _runs(found, limit, count)[..., -1:] == found.ends
        low, high = torch.where(reached, low, limit), torch.where(reached, limit, high)
    stops = _runs(found, high, count)
    starts = torch.cat([torch.zeros_like(found.ends), stops[..., :-1]], -1)
    mass, first, _ = found.moments(starts, stops)
    last = found.ordered.gather(-1, (stops - 1).clamp(min=0))  # of runs without mass
    return torch.where(mass > 0, first / mass.clamp(min=1e-300), last).sort(dim=-1).values


def _runs(found: Lines, limit: Float[Tensor, "down across 1"], count: int) -> Int64[Tensor, "down across k"]:
    """Where each run stops, none with an error above the limit."""
    stops, start = [], torch.zeros_like(found.ends)
    for _ in range(count):
        low, high, before = start, found.ends, [total.gather(-1, start) for total in found.sums]
        for _ in range(found.ordered.shape[-1].bit_length()):
            middle = (low + high + 1) // 2
            moments = [total.gather(-1, middle) - sums for total, sums in zip(found.sums, before, strict=True)]
            within = _spread(moments) <= limit
            low, high = torch.where(within, middle, low), torch.where(within, high, middle - 1)
        start = low
        stops.append(start)
    return torch.cat(stops, -1)


def _spread(moments: list[Tensor]) -> Tensor:
    """Squared error of runs about their means."""
    mass, first, second = moments
    return second - first.square() / mass.clamp(min=1e-300)
