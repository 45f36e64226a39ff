"""Few options a group, but those that matter: carrying one out on every group takes as long as a whole plan."""

from __future__ import annotations

from collections.abc import Sequence

from pennyweight.methods.allocation.greedy import hull
from pennyweight.plan import Option
from pennyweight.problem import Problem, Table, undominated


def trim(table: Table, problem: Problem, chosen: Sequence[Option], *, reach: int) -> tuple[tuple[Option, ...], ...]:
    """Of every group the options on its lower hull around the one chosen, cheapest first.

    Args:
        table: of options.
        problem: with one limit, options that lie above a line between two others are left out; with more, only
            those that another beats in everything.
        chosen: a solution of the problem by prediction.
        reach: options to each side of it.
    """
    kept = []
    for options, one in zip(table, chosen, strict=True):
        limit = problem.limits[0]
        alone = len(problem.limits) == 1
        row = hull(options, problem.aim, limit.of) if alone else undominated(options, problem)
        at = min(range(len(row)), key=lambda i: (abs(limit.cost(row[i]) - limit.cost(one)), i))
        near = row[max(0, at - reach) : at + reach + 1]
        kept.append(tuple(near if one in near else sorted([*near, one], key=limit.cost)))
    return tuple(kept)
