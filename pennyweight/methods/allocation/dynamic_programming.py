"""The multiple-choice knapsack, solved budget by budget.

Source: Dudzinski and Walukiewicz. Exact methods for the knapsack problem and its generalizations. European Journal of
Operational Research 28(1), 1987; Kellerer, Pferschy and Pisinger. Knapsack Problems. Springer, 2004, chapter 11.
Departs from them: costs above each group's cheapest option are rounded up to a number of units, so that the limit holds
whatever they are; what rounding leaves over is spent by single changes.

Use it for one limit where no solver is wanted: its time is groups x options x units and does not depend on the numbers.
Where every cost is a whole number of units (bytes are, when what can be spent is at most `units` times their common
divisor) the result is exact. Elsewhere it is at least as good as the best for a limit lower by one unit a group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from pennyweight.errors import InvalidMethod
from pennyweight.methods.allocation.moves import Indices, Moves
from pennyweight.plan import Option
from pennyweight.problem import Problem


@dataclass(frozen=True, kw_only=True)
class DynamicProgramming:
    """For every budget up to the limit the best choice of the first one, two, three … groups.

    Args:
        units: what lies between the least cost and the limit (or the largest cost) is divided into so many.
    """

    name: ClassVar[str] = "dynamic_programming"
    paper: ClassVar[str] = "Dudzinski and Walukiewicz 1987"
    needs: ClassVar[frozenset[str]] = frozenset()
    gap: ClassVar[float] = 0.01
    units: int = 2**14

    def __post_init__(self) -> None:
        if not 1 <= self.units <= 2**24:
            raise InvalidMethod(f"units is {self.units}", expected="1 to 2**24", site=self.name)

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
        moves = Moves(table, problem)
        cost = np.where(moves.there, moves.cost[0] - moves.cost[0, :, :1], 0.0)
        room = min(limit.at_most - float(moves.cost[0, :, 0].sum()), float(cost.max(1).sum()))
        whole, units = self._whole(cost, room)
        kept = _best(moves, whole, units)
        for budget in range(units, -1, -1):  # the first, unless sums are rounded across the limit
            chosen = _read(kept, whole, budget)
            if moves.fits(chosen):
                return moves.options(moves.spend(chosen))
        return moves.options(np.zeros(len(moves.groups), np.int64))

    def _whole(
        self, cost: Float[np.ndarray, "groups options"], room: float
    ) -> tuple[Int[np.ndarray, "groups options"], int]:
        """Costs in units, rounded up, and how many units there are to spend."""
        if room <= 0:
            return (cost > 0).astype(np.int64), 0
        if (cost == np.floor(cost)).all():
            common = max(math.gcd(*cost.astype(np.int64).ravel().tolist()), 1)
            if room / common < self.units + 1:
                return (cost / common).astype(np.int64), int(room // common)
        return np.ceil(np.minimum(cost / room, 2.0) * self.units).astype(np.int64), self.units


def _best(moves: Moves, whole: Int[np.ndarray, "groups options"], units: int) -> Int[np.ndarray, "groups budgets"]:
    """The option of every group that is best at every budget, the groups before it being as good as they can be."""
    least = np.zeros(units + 1)
    kept = np.zeros((len(whole), units + 1), np.int16)
    for g, costs in enumerate(whole):
        now = np.full(units + 1, np.inf)
        for k, value in enumerate(moves.value[g, : len(moves.groups[g])]):
            spent = int(costs[k])
            if spent > units:
                break
            here = least[: units + 1 - spent] + value
            better = here < now[spent:]
            now[spent:][better] = here[better]
            kept[g, spent:][better] = k
        least = now
    return kept


def _read(kept: Int[np.ndarray, "groups budgets"], whole: Int[np.ndarray, "groups options"], budget: int) -> Indices:
    chosen = np.zeros(len(kept), np.int64)
    for g in range(len(kept) - 1, -1, -1):
        chosen[g] = kept[g, budget]
        budget -= int(whole[g, chosen[g]])
    return chosen
