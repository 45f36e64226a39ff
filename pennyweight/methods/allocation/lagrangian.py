"""Put a price on every limit and let each group decide for itself.

Source: Everett. Generalized Lagrange Multiplier Method for Solving Problems of Optimum Allocation of Resources.
Operations Research 11(3), 1963; Shoham and Gersho. Efficient Bit Allocation for an Arbitrary Set of Quantizers. IEEE
Transactions on Acoustics, Speech, and Signal Processing 36(9), 1988. Departs from them: with several limits the prices
are found one after the other, each the least that makes its limit hold at the others' prices, until none changes; what
prices a little lower give is tried too, mended until the limits hold; what is left is spent by single changes.

Use it for several limits on large tables, or for the whole trade between two sums at once (`frontier`). It costs some
hundred passes over the table. A price reaches options on the convex hull only, the changes after it others; limits that
nearly contradict each other may be met by a choice that no prices find. It then says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, overload

import numpy as np
from jaxtyping import Float

from pennyweight.errors import InvalidMethod
from pennyweight.methods.allocation.greedy import hull, steps
from pennyweight.methods.allocation.moves import Indices, Moves
from pennyweight.plan import Option
from pennyweight.problem import Problem, Quantity


@dataclass(frozen=True, kw_only=True)
class Lagrangian:
    """Each group takes the option whose value plus price times cost is least; prices by bisection.

    Args:
        sweeps: times every price is found again, with several limits.
    """

    name: ClassVar[str] = "lagrangian"
    paper: ClassVar[str] = "Everett 1963"
    needs: ClassVar[frozenset[str]] = frozenset()
    gap: ClassVar[float] = 1.0
    sweeps: int = 30

    def __post_init__(self) -> None:
        if self.sweeps < 1:
            raise InvalidMethod(f"sweeps is {self.sweeps}", expected="1 or more", site=self.name)

    def allocate(self, table: Sequence[Sequence[Option]], problem: Problem) -> tuple[Option, ...]:
        """One option a group, within every limit.

        Raises:
            InfeasibleBudget: nothing is within a limit, or no prices were found that keep all of them together.
        """
        problem.check_feasible(table)
        if not table:
            return ()
        moves = Moves(table, problem)
        found = [moves.spend(chosen) for chosen in self._priced(moves)]
        return moves.options(min(found, key=moves.total))

    def _priced(self, moves: Moves) -> list[Indices]:
        """Choices within the limits: the best that prices give, and what prices a little too low give, mended."""
        prices = np.zeros(len(moves.at_most))
        lower = prices.copy()
        found = list[Indices]()
        for _ in range(self.sweeps):
            before = prices.copy()
            for j in range(len(prices)):
                lower[j], prices[j] = _least_price(moves, prices, j)
                chosen = _at(moves, prices)
                found += [chosen] if moves.fits(chosen) else []
            if (prices == before).all():
                break
        best = [min(found, key=moves.total)] if found else [moves.within(chosen, self.name)]
        near = (np.where(np.arange(len(prices)) == j, lower, prices) for j in range(len(prices)))
        mended = [moves.mend(_at(moves, some)) for some in (prices, lower, *near)]
        return best + [choice for choice in mended if choice is not None]


def _at(moves: Moves, prices: Float[np.ndarray, " limits"]) -> Indices:
    return moves.least(moves.value + np.tensordot(prices, moves.cost, 1))


def _least_price(moves: Moves, prices: Float[np.ndarray, " limits"], j: int) -> tuple[float, float]:
    """The last price of one limit at which it does not hold, and the first at which it does, the others given.

    Both lie in the middle between two prices at which some group changes.
    """
    free = prices.copy()
    free[j] = 0.0
    score, cost = moves.value + np.tensordot(free, moves.cost, 1), moves.cost[j]
    first, second = np.triu_indices(score.shape[1], 1)
    with np.errstate(all="ignore"):
        turns = (score[:, second] - score[:, first]) / (cost[:, first] - cost[:, second])
    turns = np.unique(turns[moves.there[:, second] & np.isfinite(turns) & (turns > 0)])
    between = [0.0, *((turns[:-1] + turns[1:]) / 2), *(2 * turns[-1:])]
    low, high = 0, len(between) - 1
    while low < high:
        middle = (low + high) // 2
        chosen = moves.options(moves.least(score + between[middle] * cost))
        low, high = (low, middle) if moves.problem.limits[j].total(chosen) <= moves.at_most[j] else (middle + 1, high)
    return float(between[max(high - 1, 0)]), float(between[high])


@dataclass(frozen=True)
class Frontier(Sequence[tuple[Option, ...]]):
    """Every choice that some price gives, from the least cost to the least value; one group changes at a time.

    Args:
        hulls: the options of every group on its lower convex hull.
        steps: (group, option it changes to), in order.
    """

    hulls: Sequence[Sequence[Option]]
    steps: Sequence[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.steps) + 1

    @overload
    def __getitem__(self, index: int) -> tuple[Option, ...]: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[tuple[Option, ...], ...]: ...

    def __getitem__(self, index: int | slice) -> tuple[Option, ...] | tuple[tuple[Option, ...], ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(len(self))[index])
        last = dict(self.steps[: range(len(self))[index]])
        return tuple(options[last.get(g, 0)] for g, options in enumerate(self.hulls))

    def __iter__(self) -> Iterator[tuple[Option, ...]]:
        chosen = [options[0] for options in self.hulls]
        yield tuple(chosen)
        for g, k in self.steps:
            chosen[g] = self.hulls[g][k]
            yield tuple(chosen)


def frontier(table: Sequence[Sequence[Option]], aim: Quantity, of: Quantity) -> Frontier:
    """The whole trade between two sums: choices that no other, nor any mixture of others, beats.

    Args:
        table: options of every group.
        aim: what falls along the sequence.
        of: what rises along it. `frontier(table, "damage", "bytes")` starts with the fewest bytes.
    """
    hulls = [hull(options, aim, of) for options in table]
    return Frontier(hulls, steps(hulls, aim, of))
