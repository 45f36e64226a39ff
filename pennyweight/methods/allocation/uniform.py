"""The same option for every group: the baseline of every allocation.

Source: common practice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pennyweight.errors import InfeasibleBudget
from pennyweight.plan import Option
from pennyweight.problem import Problem


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """The best single step that every group can take; groups that cannot take it keep their safest option."""

    name: ClassVar[str] = "uniform"
    paper: ClassVar[str] = "common baseline"
    needs: ClassVar[frozenset[str]] = frozenset()

    def allocate(self, table: Sequence[Sequence[Option]], problem: Problem) -> tuple[Option, ...]:
        """One option a group, the same step wherever a group has it.

        Raises:
            InfeasibleBudget: no step meets the limit.
        """
        problem.check_feasible(table)
        if not table:
            return ()
        labels = sorted({option.step.label() for options in table for option in options})
        candidates = [
            tuple(
                next((o for o in options if o.step.label() == label), min(options, key=lambda o: o.damage))
                for options in table
            )
            for label in labels
        ]
        fitting = [choice for choice in candidates if problem.fits(choice)]
        if not fitting:
            limit = next(one for one in problem.limits if all(one.total(c) > one.at_most for c in candidates))
            raise InfeasibleBudget(
                f"no single step keeps {limit.of} at or below {limit.at_most:.6g}",
                expected=f"at least {min(limit.total(choice) for choice in candidates):.6g}",
                mend="raise the budget, or allocate with integer_program",
            )
        return min(fitting, key=problem.total)
