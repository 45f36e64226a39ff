"""Fronts, crowding, hypervolume and NSGA-II against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from pennyweight.methods.search.nsga2 import evolve
from pennyweight.methods.search.pareto import crowding, fronts, hypervolume, sorted_by_merit


def points(seed: int, count: int = 40, objectives: int = 2) -> NDArray[np.float64]:
    return np.random.default_rng(seed).integers(0, 12, (count, objectives)).astype(float)  # ties and equal points


def peeled(objectives: NDArray[np.float64], excess: NDArray[np.float64]) -> list[int]:
    """Fronts one at a time, every pair compared."""

    def dominates(a: int, b: int) -> bool:
        if excess[a] != excess[b]:
            return bool(excess[a] < excess[b])
        x, y = objectives[a], objectives[b]
        return all(p <= q for p, q in zip(x, y, strict=True)) and any(p < q for p, q in zip(x, y, strict=True))

    front, left, number = [0] * len(objectives), set(range(len(objectives))), 0
    while left:
        found = {b for b in left if not any(dominates(a, b) for a in left)}
        for place in found:
            front[place] = number
        left, number = left - found, number + 1
    return front


@pytest.mark.parametrize(("seed", "objectives"), [(0, 2), (1, 2), (2, 3), (3, 4), (4, 1)])
def test_fronts_are_those_of_brute_force(seed: int, objectives: int) -> None:
    values = points(seed, objectives=objectives)
    excess = np.random.default_rng(seed).choice([0.0, 0.0, 0.1, 0.5], len(values))
    for over in (np.zeros(len(values)), excess):
        assert fronts(values, over).tolist() == peeled(values, over)


def test_crowding_is_the_distance_of_neighbours() -> None:
    line = np.array([[0.0, 4.0], [3.0, 1.0], [1.0, 2.0], [4.0, 0.0]])
    assert crowding(line).tolist() == [np.inf, 3 / 4 + 2 / 4, 3 / 4 + 3 / 4, np.inf]
    assert crowding(np.ones((3, 2))).tolist() == [np.inf, 0.0, np.inf]


def test_the_best_come_first_and_of_a_front_those_with_room() -> None:
    values = np.array([[0.0, 4.0], [3.0, 1.0], [1.0, 2.0], [4.0, 0.0], [4.0, 4.0], [2.9, 1.1]])
    order = sorted_by_merit(values, np.zeros(6)).tolist()
    assert set(order[:2]) == {0, 3}
    assert order[2] == 2
    assert order[-1] == 4
    assert sorted_by_merit(values, np.array([0.0, 0, 0, 0.1, 0, 0])).tolist()[-1] == 3
    assert sorted_by_merit(values[:0], np.zeros(0)).tolist() == []


@pytest.mark.parametrize("seed", range(4))
def test_the_hypervolume_is_the_share_of_cells_that_something_dominates(seed: int) -> None:
    values, reference = points(seed, 8), (9, 10)
    cells = itertools.product(range(reference[0]), range(reference[1]))
    covered = sum(any(a <= x and b <= y for a, b in values) for x, y in cells)
    assert hypervolume(values, reference) == covered
    assert hypervolume(values[:0], reference) == 0


def test_evolution_finds_the_front_of_a_small_problem() -> None:
    """Two sums that pull apart, and a limit: all of 4^5 choices are known."""
    rng = np.random.default_rng(3)
    gain, cost = rng.random((5, 4)).cumsum(1), rng.random((5, 4)).cumsum(1)
    tops, most = np.full(5, 3), 7.0
    evaluated = 0

    def evaluate(levels: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        nonlocal evaluated
        evaluated += len(levels)
        sums = [table[np.arange(5), levels].sum(1) for table in (-gain, cost)]
        return np.column_stack(sums), np.maximum(sums[1] - most, 0)

    every = np.array(list(itertools.product(range(4), repeat=5)))
    objectives, excess = evaluate(every)
    best = {tuple(row) for row in every[(fronts(objectives, excess) == 0)]}
    evaluated = 0
    start = every[rng.permutation(len(every))[:40]]
    living = evolve(evaluate, start, tops, size=40, generations=15, rng=np.random.default_rng(0))
    found = {tuple(row) for row in living.levels[fronts(living.objectives, living.excess) == 0]}
    assert evaluated <= 40 * 16
    assert len(np.unique(living.levels, axis=0)) == len(living.levels)
    assert (living.excess == 0).all()
    assert len(found & best) >= 0.8 * min(len(best), 40)
