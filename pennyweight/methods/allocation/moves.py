"""A table as arrays, and changes of one group: mend what is too much, spend what is left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from pennyweight.errors import InfeasibleBudget
from pennyweight.plan import Option
from pennyweight.problem import Problem, undominated

Indices = Int[np.ndarray, " groups"]


class Moves:
    """The options of every group, dominated ones dropped, cheapest by the first limit first.

    Args:
        table: options of every group; one group or more.
        problem: what is minimised, and the limits.

    Attributes:
        groups: the options that are left.
        value: what is minimised, of every option.
        cost: what every limit counts, of every option.
        there: which of the array's entries are options; groups differ in how many they have.
    """

    groups: list[list[Option]]
    value: Float[np.ndarray, "groups options"]
    cost: Float[np.ndarray, "limits groups options"]
    there: Bool[np.ndarray, "groups options"]

    def __init__(self, table: Sequence[Sequence[Option]], problem: Problem) -> None:
        self.problem = problem
        self.groups = [undominated(options, problem) for options in table]
        shape = (len(self.groups), max(len(options) for options in self.groups))
        self.there = np.zeros(shape, bool)
        self.value = np.zeros(shape)
        self.cost = np.zeros((len(problem.limits), *shape))
        for g, options in enumerate(self.groups):
            self.there[g, : len(options)] = True
            self.value[g, : len(options)] = [problem.value(option) for option in options]
            for row, limit in zip(self.cost, problem.limits, strict=True):
                row[g, : len(options)] = [limit.cost(option) for option in options]
        self.at_most = np.array([limit.at_most for limit in problem.limits])
        #: What costs are divided by before limits are compared with each other.
        self.scale = np.where(self.at_most > 0, self.at_most, np.maximum(self.cost.max((1, 2)), 1e-300))

    def options(self, chosen: Indices) -> tuple[Option, ...]:
        """The choice that indices stand for."""
        return tuple(options[i] for options, i in zip(self.groups, chosen, strict=True))

    def indices(self, choice: Sequence[Option]) -> Indices:
        """The other way round."""
        return np.array([options.index(option) for options, option in zip(self.groups, choice, strict=True)], np.int64)

    def fits(self, chosen: Indices) -> bool:
        """Whether a choice respects every limit, exactly as the problem counts it."""
        return self.problem.fits(self.options(chosen))

    def total(self, chosen: Indices) -> float:
        """What is minimised, of a whole choice."""
        return float(self._of(self.value, chosen).sum())

    def least(self, score: Float[np.ndarray, "groups options"]) -> Indices:
        """The option of every group whose score is least; the cheapest of several."""
        least: Indices = np.where(self.there, score, np.inf).argmin(1)
        return least

    def spend(self, chosen: Indices) -> Indices:
        """Change one group after the other while that lowers the value and every limit holds.

        The change that lowers the value most per cost comes first; ties go to the first group.

        Args:
            chosen: a choice that fits.
        """
        chosen = chosen.copy()
        while True:
            saved = self._of(self.value, chosen)[:, None] - self.value
            added, totals = self._added(chosen)
            room = (self.at_most - totals + 1e-9 * self.scale)[:, None, None]
            possible = self.there & (saved > 0) & (added <= room).all(0)
            price = (np.maximum(added, 0) / self.scale[:, None, None]).sum(0)
            rate = saved / np.maximum(price, 1e-12)
            if not any(self._take(chosen, g, k) for g, k in _best_first(possible, rate)):
                return chosen

    def mend(self, chosen: Indices) -> Indices | None:
        """Change one group after the other until every limit holds, or None where no single change brings it nearer.

        The change that raises the value least for what it takes off the excess comes first.
        """
        chosen = chosen.copy()
        scale = self.scale[:, None, None]
        while not self.fits(chosen):
            added, totals = self._added(chosen)
            over = totals - self.at_most
            excess = float((np.maximum(over, 0) / self.scale).sum())
            off = excess - (np.maximum(over[:, None, None] + added, 0) / scale).sum(0)
            # Where the arrays' sums hold and the problem's do not, the excess is a rounding error: anything cheaper.
            off = off if excess > 0 else -(added / scale).sum(0)
            raised = self.value - self._of(self.value, chosen)[:, None]
            possible = self.there & (off > 0)
            if not possible.any():
                return None
            rate = np.where(possible, np.maximum(raised, 0) / np.where(possible, off, 1), np.inf)
            nearest = np.where(rate == rate.min(), off, -np.inf)
            g, k = np.unravel_index(int(nearest.argmax()), nearest.shape)
            chosen[g] = k
        return chosen

    def within(self, chosen: Indices, site: str) -> Indices:
        """A choice within every limit, made from one that may not be; or from the cheapest ones, where that fails.

        Raises:
            InfeasibleBudget: single changes lead to no such choice; it says which limit, and what was reached.
        """
        cheapest = self.least((self.cost / self.scale[:, None, None]).sum(0))
        for start in (chosen, cheapest, *map(self.least, self.cost)):
            mended = self.mend(start)
            if mended is not None:
                return mended
        nearest = self.options(cheapest)
        over = [limit for limit in self.problem.limits if limit.total(nearest) > limit.at_most]
        raise InfeasibleBudget(
            f"{site} found no plan that keeps " + " and ".join(f"{o.of} at or below {o.at_most:.6g}" for o in over)
            + f" within all {len(self.at_most)} limits",
            expected="at the cheapest choice, " + ", ".join(f"{o.of} of {o.total(nearest):.6g}" for o in over),
            mend="raise a limit; --allocation integer_program says whether there is a plan, and which limits collide",
            site=site,
        )  # fmt: skip

    def _of(self, numbers: NDArray[np.float64], chosen: Indices) -> NDArray[np.float64]:
        return numbers[..., np.arange(len(self.groups)), chosen]

    def _added(self, chosen: Indices) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What every change adds to every limit's cost, and the totals before it."""
        now = self._of(self.cost, chosen)
        return self.cost - now[:, :, None], now.sum(1)

    def _take(self, chosen: Indices, g: int, k: int) -> bool:
        before, chosen[g] = chosen[g], k
        if self.fits(chosen):
            return True
        chosen[g] = before
        return False


def _best_first(possible: NDArray[np.bool_], rate: NDArray[np.float64]) -> Iterator[tuple[int, int]]:
    rows, columns = np.nonzero(possible)
    for i in np.argsort(-rate[rows, columns], kind="stable"):
        yield int(rows[i]), int(columns[i])
