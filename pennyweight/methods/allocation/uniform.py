"""The same option for every group: the baseline of every allocation.

Source: common practice.
"""

from __future__ import annotations

import math
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
    gap: ClassVar[float] = math.inf

    def allocate(self, table: Sequence[Sequence[Option]], problem: Problem) -> tuple[Option, ...]:
        """One option a group, the same step wherever a group has it.

        Raises:
            InfeasibleBudget: no step meets every limit.
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
            raise self._refusal(candidates, problem)
        return min(fitting, key=problem.total)

    def _refusal(self, candidates: Sequence[Sequence[Option]], problem: Problem) -> InfeasibleBudget:
        """Name the limits that no step meets; or all of them, where each is met by some step and together by none."""
        missed = [one for one in problem.limits if all(one.total(choice) > one.at_most for choice in candidates)]
        if missed:
            least = {one: min(one.total(choice) for choice in candidates) for one in missed}
            expected = "at least " + " and ".join(f"{total:.6g}" for total in least.values())
        else:
            nearest = min(candidates, key=lambda choice: _excess(choice, problem))
            expected = "limits that one step meets; the nearest takes " + " and ".join(
                f"{one.of} of {one.total(nearest):.6g}" for one in problem.limits
            )
        return InfeasibleBudget(
            "no single step keeps "
            + " and ".join(f"{one.of} at or below {one.at_most:.6g}" for one in missed or problem.limits),
            expected=expected, mend="raise the budget, or allocate with integer_program", site=self.name,
        )  # fmt: skip


def _excess(choice: Sequence[Option], problem: Problem) -> float:
    """By what share a choice exceeds the limit that it exceeds most."""
    return max(limit.total(choice) / max(limit.at_most, 1e-300) for limit in problem.limits)
