"""Choices near a choice: some groups go up a level, others down, and the limits stay kept.

Source: Sieberling et al. EvoPress: Towards Optimal Dynamic Model Compression via Evolutionary Search.
arXiv:2410.14649, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pennyweight.problem import Choice, Problem, Table


@dataclass(frozen=True, eq=False)
class Levels:
    """Options of every group in order of what the first limit counts, as arrays.

    Args:
        order: places of a group's options in the table, cheapest first.
        costs: of every limit, by group, in that order.
        at_most: of every limit.
    """

    order: tuple[NDArray[np.int64], ...]
    costs: tuple[tuple[NDArray[np.float64], ...], ...]
    at_most: tuple[float, ...]

    @classmethod
    def of(cls, table: Table, problem: Problem) -> Levels:
        """Of a table under the limits of a problem."""
        first = problem.limits[0]
        order = tuple(
            np.array(sorted(range(len(row)), key=lambda i, row=row: (first.cost(row[i]), i)), dtype=np.int64)  # type: ignore[misc]
            for row in table
        )
        costs = tuple(
            tuple(np.array([limit.cost(row[i]) for i in places]) for row, places in zip(table, order, strict=True))
            for limit in problem.limits
        )
        return cls(order, costs, tuple(limit.at_most for limit in problem.limits))

    def read(self, choice: Choice) -> NDArray[np.int64]:
        """Level of every group."""
        return np.array([int(np.flatnonzero(p == i)[0]) for p, i in zip(self.order, choice, strict=True)])

    def write(self, levels: NDArray[np.int64]) -> Choice:
        """The choice with these levels."""
        return tuple(int(places[level]) for places, level in zip(self.order, levels, strict=True))

    def fits(self, levels: NDArray[np.int64]) -> bool:
        """Whether every limit is kept."""
        return all(
            sum(float(cost[level]) for cost, level in zip(costs, levels, strict=True)) <= most
            for costs, most in zip(self.costs, self.at_most, strict=True)
        )

    def switched(self, levels: NDArray[np.int64], flips: int, rng: np.random.Generator) -> NDArray[np.int64] | None:
        """Some groups a level up, others a level down until the limits are kept again; None where that fails."""
        levels, top = levels.copy(), np.array([len(places) - 1 for places in self.order])
        able = np.flatnonzero(levels < top)
        raised = rng.choice(able, size=min(flips, len(able)), replace=False)
        levels[raised] += 1
        for _ in range(4 * flips):
            if self.fits(levels):
                return levels
            able = np.setdiff1d(np.flatnonzero(levels > 0), raised)
            if not len(able):
                return None
            levels[int(rng.choice(able))] -= 1
        return levels if self.fits(levels) else None

    def filled(self, levels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Levels raised in a random order as long as the limits allow it."""
        levels = levels.copy()
        for group in rng.permutation(len(levels)):
            if levels[group] + 1 < len(self.order[group]):
                levels[group] += 1
                if not self.fits(levels):
                    levels[group] -= 1
        return levels


def best_of(choices: Sequence[Choice], scores: Sequence[float], count: int) -> list[Choice]:
    """The choices of the least scores, in that order."""
    order = sorted(range(len(choices)), key=lambda i: (scores[i], choices[i]))
    return [choices[i] for i in order[:count]]
