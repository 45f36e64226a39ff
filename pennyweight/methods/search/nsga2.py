"""NSGA-II on levels: parents win tournaments by front and room, children mix them, the best of all live on.

Source: Deb, Pratap, Agarwal, Meyarivan. A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II. IEEE Transactions
on Evolutionary Computation 6(2), 2002.
Departs from it: simulated binary crossover and polynomial mutation, rounded to a handful of levels, either swap levels
or leave them as they are; so levels are swapped, and moved by one. Nobody is evaluated twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pennyweight.methods.search.pareto import Floats, sorted_by_merit

Individuals = NDArray[np.int64]  # levels `[n, groups]`
Evaluate = Callable[[Individuals], tuple[Floats, Floats]]  # objectives `[n, m]`, excess over limits `[n]`
CROSSED = 0.9  # share of pairs that swap levels
MOVED = 0.02  # share of levels that move, and one a child at least on average


@dataclass(frozen=True, eq=False)
class Population:
    """Who lives, the best first.

    Args:
        levels: of every group.
        objectives: of each.
        excess: over limits.
    """

    levels: Individuals
    objectives: Floats
    excess: Floats

    @classmethod
    def of(cls, levels: Individuals, objectives: Floats, excess: Floats, size: int) -> Population:
        """The best of some."""
        order = sorted_by_merit(objectives, excess)[:size]
        return cls(levels[order], objectives[order], excess[order])

    def joined(self, other: Population, size: int) -> Population:
        """The best of both."""
        return self.of(
            np.concatenate([self.levels, other.levels]), np.concatenate([self.objectives, other.objectives]),
            np.concatenate([self.excess, other.excess]), size,
        )  # fmt: skip


def evolve(
    evaluate: Evaluate, start: Individuals, tops: NDArray[np.int64], *, size: int, generations: int,
    rng: np.random.Generator,
) -> Population:  # fmt: skip
    """The last of some generations.

    Args:
        evaluate: called once for the first individuals, and once for the children of every generation.
        start: the first individuals, at least two, all different.
        tops: highest level of every group.
        size: of the population, and of the children of a generation.
        generations: after the first.
        rng: of all draws.
    """
    living = Population.of(start, *evaluate(start), size)
    met = {row.tobytes() for row in start}
    for _ in range(generations):
        children = _children(living.levels, tops, size, met, rng)
        if not len(children):
            break
        living = living.joined(Population(children, *evaluate(children)), size)
    return living


def _children(
    parents: Individuals, tops: NDArray[np.int64], size: int, met: set[bytes], rng: np.random.Generator
) -> Individuals:
    """As many as `size` that were never met, or fewer where hardly any are left; `met` knows them afterwards."""
    found: list[Individuals] = []
    for _ in range(10):
        # Parents stand in the order of their merit: who comes first wins.
        mothers, fathers = (parents[rng.integers(0, len(parents), (size, 2)).min(1)] for _ in range(2))
        swapped = (rng.random(mothers.shape) < 0.5) & (rng.random((size, 1)) < CROSSED)
        moved = rng.random(mothers.shape) < max(MOVED, 1 / len(tops))
        step = np.where(moved, rng.choice([-1, 1], mothers.shape), 0)
        for child in (np.where(swapped, fathers, mothers) + step).clip(0, tops):
            if (key := child.tobytes()) not in met:
                met.add(key)
                found.append(child)
            if len(found) == size:
                return np.stack(found)
    return np.stack(found) if found else parents[:0]
