"""Choose one option for every group by an integer program.

Source: Hubara et al. Improving Post Training Neural Quantization: Layer-wise Calibration and Integer Programming.
arXiv:2006.10518, section 4. Departs from it: any sums may be limits and any other the objective, groups (not layers)
are decided, so that tied tensors and inputs an engine fuses get one answer, and dominated options are dropped first.
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
from pennyweight.plan import Option
from pennyweight.problem import Problem, undominated


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
        groups = [undominated(options, problem) for options in table]
        if not groups:
            return ()
        if any(limit.at_most <= 0 for limit in problem.limits):
            (limit, *_) = [limit for limit in problem.limits if limit.at_most <= 0]
            groups = [[o for o in options if limit.cost(o) <= 0] for options in groups]
        chosen = self._solved(groups, problem)
        if chosen is not None:
            return chosen
        if (
            len(problem.limits) == 1
        ):  # only the rounding of the limit can bring us here: the cheapest choice is feasible
            return tuple(min(options, key=problem.limits[0].cost) for options in groups)
        raise self._contradiction(groups, problem)

    def _solved(self, groups: Sequence[Sequence[Option]], problem: Problem) -> tuple[Option, ...] | None:
        flat = [(g, option) for g, options in enumerate(groups) for option in options]
        value = np.array([problem.value(option) for _, option in flat])
        rows = np.array([g for g, _ in flat])
        one_each = csr_array((np.ones(len(flat)), (rows, np.arange(len(flat)))), shape=(len(groups), len(flat)))
        # All rows are scaled to about one: HiGHS judges feasibility by absolute tolerances.
        constraints = [LinearConstraint(one_each, 1, 1)]
        for limit in problem.limits:
            if limit.at_most > 0:
                cost = np.array([limit.cost(option) for _, option in flat]) / limit.at_most
                constraints.append(LinearConstraint(cost[None, :], -np.inf, 1 - 1e-9))
        with _silent():
            result = milp(
                value / max(float(value.max()), 1e-300), integrality=np.ones(len(flat)), bounds=Bounds(0, 1),
                constraints=constraints, options={"mip_rel_gap": self.gap, "time_limit": 60},
            )  # fmt: skip
        if result.x is None:
            return None
        chosen = tuple(option for (_, option), x in zip(flat, result.x, strict=True) if x > 0.5)
        if not problem.fits(chosen):
            raise InfeasibleBudget("the solver returned a choice above a limit", site=self.name)
        return chosen

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
