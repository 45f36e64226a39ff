"""Choose one option for every group by an integer program.

Source: Hubara et al. Improving Post Training Neural Quantization: Layer-wise Calibration and Integer Programming.
arXiv:2006.10518, section 4. Departs from it: any sum may be the limit and any other the objective, groups (not layers)
are decided, so that tied tensors and inputs an engine fuses get one answer, and dominated options are dropped first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from pennyweight.errors import InfeasibleBudget
from pennyweight.methods.allocation.limit import Limit
from pennyweight.plan import Option


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

    def allocate(self, table: Sequence[Sequence[Option]], limit: Limit) -> tuple[Option, ...]:
        """One option a group: the least total value whose total cost is within the limit.

        Raises:
            InfeasibleBudget: nothing is within the limit.
        """
        limit.check_feasible(table)
        groups = [_undominated(options, limit) for options in table]
        cheapest = tuple(min(options, key=limit.cost) for options in groups)
        if limit.at_most <= 0 or not groups:
            return cheapest
        flat = [(g, option) for g, options in enumerate(groups) for option in options]
        value = np.array([limit.value(option) for _, option in flat])
        cost = np.array([limit.cost(option) for _, option in flat])
        rows = np.array([g for g, _ in flat])
        one_each = csr_array((np.ones(len(flat)), (rows, np.arange(len(flat)))), shape=(len(groups), len(flat)))
        # Both rows are scaled to about one: HiGHS judges feasibility by absolute tolerances.
        cost_unit, value_unit = limit.at_most, max(float(value.max()), 1e-300)
        result = milp(
            value / value_unit,
            integrality=np.ones(len(flat)),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint((cost / cost_unit)[None, :], -np.inf, 1 - 1e-9),
            ],
            options={"mip_rel_gap": self.gap, "time_limit": 60},
        )
        if result.x is None:
            # Only the rounding of the limit above can bring us here: the cheapest option of every group is feasible.
            return cheapest
        chosen = tuple(option for (_, option), x in zip(flat, result.x, strict=True) if x > 0.5)
        total = sum(limit.cost(option) for option in chosen)
        if total > limit.at_most:
            raise InfeasibleBudget(
                f"the solver returned {total:.9g}, above {limit.at_most:.9g}", site="integer_program"
            )
        return chosen


def _undominated(options: Sequence[Option], limit: Limit) -> list[Option]:
    """Options that no other beats on both counts, in a fixed order."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda o: (limit.cost(o), limit.value(o), o.step.label())):
        if not kept or limit.value(option) < limit.value(kept[-1]):
            kept.append(option)
    return kept
