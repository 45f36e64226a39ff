"""Spend a budget step by step, always where a unit of it saves most.

Source: Shoham and Gersho. Efficient Bit Allocation for an Arbitrary Set of Quantizers. IEEE Transactions on Acoustics,
Speech, and Signal Processing 36(9), 1988; Sinha and Zoltners. The Multiple-Choice Knapsack Problem. Operations Research
27(3), 1979. Departs from them: a step that no longer fits is passed over and others go on, and what is left at the end
is spent on any single change, of options off the hull too.

Use it for very large tables, or to see in which order bytes are worth spending. It costs a sort. What it gives is no
worse than the best by more than the one step that first did not fit; with few groups of unequal size that can be much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pennyweight.methods.allocation.moves import Moves
from pennyweight.plan import Option
from pennyweight.problem import Limit, Problem, Quantity, undominated


@dataclass(frozen=True, kw_only=True)
class Greedy:
    """Best gain per cost first, along every group's lower convex hull; then a pass that spends what is left."""

    name: ClassVar[str] = "greedy"
    paper: ClassVar[str] = "Shoham and Gersho 1988"
    needs: ClassVar[frozenset[str]] = frozenset()
    gap: ClassVar[float] = 10.0

    def allocate(self, table: Sequence[Sequence[Option]], problem: Problem) -> tuple[Option, ...]:
        """One option a group, within the limit.

        Raises:
            InfeasibleBudget: nothing is within the limit.
            InvalidMethod: there are several limits.
        """
        limit = problem.only(self.name)
        problem.check_feasible(table)
        if not table:
            return ()
        hulls = [hull(options, problem.aim, limit.of) for options in table]
        chosen, costs = [options[0] for options in hulls], [limit.cost(options[0]) for options in hulls]
        full = set[int]()
        for g, k in steps(hulls, problem.aim, limit.of):
            if g in full:
                continue
            before, costs[g] = costs[g], limit.cost(hulls[g][k])
            if sum(costs) <= limit.at_most:
                chosen[g] = hulls[g][k]
            else:
                costs[g] = before
                full.add(g)
        moves = Moves(table, problem)
        return moves.options(moves.spend(moves.indices(chosen)))


def hull(options: Sequence[Option], aim: Quantity, of: Quantity) -> list[Option]:
    """Options on the lower convex hull of (`of`, `aim`): the least `of` first, the least `aim` last."""
    limit = Limit(of, np.inf)
    problem = Problem(aim, (limit,))
    kept: list[Option] = []
    for option in undominated(options, problem):
        while len(kept) > 1 and _rate(kept[-2], kept[-1], problem) < _rate(kept[-1], option, problem):
            kept.pop()
        kept.append(option)
    return kept


def steps(hulls: Sequence[Sequence[Option]], aim: Quantity, of: Quantity) -> list[tuple[int, int]]:
    """Every step along every hull as (group, option it leads to), the most `aim` saved per `of` first.

    Steps of equal worth come level by level, so that equal groups rise together.
    """
    problem = Problem(aim, (Limit(of, np.inf),))
    worth = [
        (-_rate(options[k - 1], options[k], problem), k, g)
        for g, options in enumerate(hulls)
        for k in range(1, len(options))
    ]
    return [(g, k) for _, k, g in sorted(worth)]


def _rate(cheap: Option, dear: Option, problem: Problem) -> float:
    return (problem.value(cheap) - problem.value(dear)) / (problem.limits[0].cost(dear) - problem.limits[0].cost(cheap))
