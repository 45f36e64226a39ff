"""Few options a group, but those that matter: carrying one out on every group takes as long as a whole plan."""

from __future__ import annotations

from collections.abc import Sequence

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
        row = hull(options, problem) if len(problem.limits) == 1 else undominated(options, problem)
        limit = problem.limits[0]
        at = min(range(len(row)), key=lambda i: (abs(limit.cost(row[i]) - limit.cost(one)), i))
        near = row[max(0, at - reach) : at + reach + 1]
        kept.append(tuple(near if one in near else sorted([*near, one], key=limit.cost)))
    return tuple(kept)


def hull(options: Sequence[Option], problem: Problem) -> list[Option]:
    """Options on the lower convex hull of value over cost, cheapest first."""
    kept: list[Option] = []
    for option in undominated(options, problem):
        while len(kept) > 1 and _above(kept[-2], kept[-1], option, problem):
            kept.pop()
        kept.append(option)
    return kept


def _above(left: Option, middle: Option, right: Option, problem: Problem) -> bool:
    """Whether the middle one lies on or above the line between the others."""
    cost, value = problem.limits[0].cost, problem.value
    return (value(middle) - value(left)) * (cost(right) - cost(left)) >= (value(right) - value(left)) * (
        cost(middle) - cost(left)
    )
