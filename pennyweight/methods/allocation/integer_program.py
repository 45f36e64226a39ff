"""Choose one option for every group by an integer program.

Source: Hubara et al. Improving Post Training Neural Quantization: Layer-wise Calibration and Integer Programming.
arXiv:2006.10518, section 4. Departs from it: any sums may be limits and any other the objective, groups (not layers)
are decided, so that tied tensors and inputs an engine fuses get one answer, dominated options are dropped first, and
what `lagrangian` finds bounds the search: the solver's absolute tolerances are then small beside what is decided.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from pennyweight.errors import InfeasibleBudget
from pennyweight.methods.allocation.lagrangian import Lagrangian
from pennyweight.methods.allocation.moves import Moves
from pennyweight.plan import Option
from pennyweight.problem import Limit, Problem


@dataclass(frozen=True, kw_only=True)
class IntegerProgram:
    """Exact multiple-choice knapsack by branch and bound (HiGHS).

    Args:
        gap: relative optimality gap at which the search stops; 1e-4 of a file size is a few kilobytes.
    """

    name: ClassVar[str] = "integer_program"
    paper: ClassVar[str] = "arXiv:2006.10518"
    needs: ClassVar[frozenset[str]] = frozenset()
    gap: float = 1e-4

    def allocate(self, table: Sequence[Sequence[Option]], problem: Problem) -> tuple[Option, ...]:
        """One option a group: the least total value whose total costs are within the limits.

        Raises:
            InfeasibleBudget: nothing is within a limit, or within all of them together; it says which two, and how far.
        """
        problem.check_feasible(table)
        if not table:
            return ()
        moves = Moves(table, problem)
        try:
            known = Lagrangian().allocate(table, problem)
        except InfeasibleBudget:  # prices need not find what there is, with several limits
            known = None
        chosen = self._solved(moves.groups, problem, known)
        if chosen is None and known is None:
            raise self._contradiction(moves.groups, problem)
        # Up to the gap, and where a choice is exactly at a limit, there may be something left.
        found = [] if chosen is None else [moves.options(moves.spend(moves.indices(chosen)))]
        return min([*found, *([known] if known else [])], key=problem.total)

    def _solved(
        self, groups: Sequence[Sequence[Option]], problem: Problem, known: Sequence[Option] | None = None
    ) -> tuple[Option, ...] | None:
        """The best choice, or None where the limits leave none, or none that is better than the one known."""
        for limit in problem.limits:
            groups = _affordable(groups, limit)
        if known:
            groups = _affordable(groups, Limit(problem.aim, problem.total(known)))
        flat = [(g, option) for g, options in enumerate(groups) for option in options]
        value = np.array([problem.value(option) for _, option in flat])
        rows = np.array([g for g, _ in flat])
        one_each = csr_array((np.ones(len(flat)), (rows, np.arange(len(flat)))), shape=(len(groups), len(flat)))
        # HiGHS judges feasibility and optimality by absolute tolerances of 1e-6. So costs count from each group's
        # cheapest option, and what is left for the rest is one; options are gone whose value alone is above that of a
        # known choice, and what is left is one. A choice that uses the tolerance is answered with a lower limit.
        costs = []
        scale = max(float(value.max()), 1e-300)
        if known:
            least_value = sum(min(problem.value(option) for option in options) for options in groups)
            scale = max(problem.total(known) - least_value, 1e-9 * scale)
        for limit in problem.limits:
            least = np.array([min(limit.cost(option) for option in options) for options in groups])
            room = limit.at_most - sum(least.tolist())
            if room < 0:
                return None
            extra = np.array([limit.cost(option) for _, option in flat]) - least[rows]
            costs += [extra / room if room > 0 else np.where(extra > 0, 2.0, 0.0)] if extra.any() else []
        for tolerance in (0.0, 2e-6):
            limited = [LinearConstraint(cost[None, :], -np.inf, 1 - tolerance) for cost in costs]
            with _silent():
                result = milp(
                    value / scale, integrality=np.ones(len(flat)), bounds=Bounds(0, 1),
                    constraints=[LinearConstraint(one_each, 1, 1), *limited],
                    options={"mip_rel_gap": self.gap, "time_limit": 60},
                )  # fmt: skip
            if result.x is None:
                return None
            chosen = tuple(option for (_, option), x in zip(flat, result.x, strict=True) if x > 0.5)
            if problem.fits(chosen):
                return chosen
        if known:
            return None
        raise InfeasibleBudget("the solver returned a choice above a limit", site=self.name)

    def _contradiction(self, groups: Sequence[Sequence[Option]], problem: Problem) -> InfeasibleBudget:
        """Name the two limits that do not go together, and the nearest that would."""
        for first, second in itertools.permutations(problem.limits, 2):
            alone = self._solved(groups, Problem(second.of, (first,)))
            if alone is not None and (least := second.total(alone)) > second.at_most:
                return InfeasibleBudget(
                    f"no plan keeps {first.of} at or below {first.at_most:.6g} and {second.of} at or below "
                    f"{second.at_most:.6g}",
                    expected=f"at this limit on {first.of}, {second.of} of {least:.6g} or more", site=self.name,
                    mend=f"raise the limit on {second.of} to that, or the one on {first.of}",
                )  # fmt: skip
        return InfeasibleBudget(
            f"no plan respects all {len(problem.limits)} limits together, though any two of them can be met",
            expected="limits that leave a choice", mend="raise one of them", site=self.name,
        )  # fmt: skip


def _affordable(groups: Sequence[Sequence[Option]], limit: Limit) -> list[list[Option]]:
    """Options that a limit leaves a group when every other group takes its cheapest."""
    least = [min(limit.cost(option) for option in options) for options in groups]
    room = max(limit.at_most - sum(least), 0.0) * (1 + 1e-9)
    return [
        [option for option in options if limit.cost(option) - cheapest <= room]
        for options, cheapest in zip(groups, least, strict=True)
    ]


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing reaches stdout: HiGHS prints a line of its own there now and then, into what others read as JSON."""
    sys.stdout.flush()
    before, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(before, 1)
        os.close(before)
        os.close(nowhere)
