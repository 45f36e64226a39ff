"""Which choices are best when several things are to be small: fronts, how crowded they are, and what they cover.

Source: Deb, Pratap, Agarwal, Meyarivan. A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II. IEEE Transactions
on Evolutionary Computation 6(2), 2002, sections III and VI; Zitzler, Thiele. Multiobjective Evolutionary Algorithms: A
Comparative Case Study and the Strength Pareto Approach. Same journal 3(4), 1999, for the hypervolume.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def fronts(objectives: Floats, excess: Floats) -> NDArray[np.int64]:
    """The front of each choice: 0 where nothing dominates it, 1 where only those of front 0 do, and so on.

    Args:
        objectives: `[n, m]`, all to be small.
        excess: `[n]`, by how much limits are exceeded; whoever exceeds them less dominates whatever the objectives say.
    """
    no_worse = (objectives[:, None] <= objectives[None]).all(-1)
    better = no_worse & ~no_worse.T
    dominates = np.where(excess[:, None] == excess[None], better, excess[:, None] < excess[None])
    above, front = dominates.sum(0), np.full(len(objectives), -1, dtype=np.int64)
    number = 0
    while (open_ := front < 0).any():
        found = open_ & (above == 0)
        front[found] = number
        above, number = above - dominates[found].sum(0), number + 1
    return front


def crowding(objectives: Floats) -> Floats:
    """How far apart the neighbours of each choice of one front are, as shares of its extent; infinite at the ends."""
    distance = np.zeros(len(objectives))
    for values in objectives.T:
        order = np.argsort(values, kind="stable")
        extent = values[order[-1]] - values[order[0]]
        if extent > 0:
            distance[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / extent
        distance[order[[0, -1]]] = np.inf
    return distance


def sorted_by_merit(objectives: Floats, excess: Floats) -> NDArray[np.int64]:
    """Places of all choices, the best first: by front, and in a front those first that have room around them."""
    front = fronts(objectives, excess)
    room = np.zeros(len(objectives))
    for number in range(int(front.max(initial=-1)) + 1):
        room[front == number] = crowding(objectives[front == number])
    return np.lexsort((-room, front))


def hypervolume(objectives: Any, reference: tuple[float, float]) -> float:
    """Area between the front of some choices `[n, 2]` and a point that is worse than all that counts."""
    area, lowest = 0.0, reference[1]
    for first, second in sorted(map(tuple, objectives)):
        if first < reference[0] and second < lowest:
            area, lowest = area + (reference[0] - first) * (lowest - second), second
    return float(area)
