"""Why every site got what it got: what a step more or less would have cost, and what the last byte bought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pennyweight.formats import Dense
from pennyweight.plan import Option, Plan
from pennyweight.problem import Table

Move = tuple[str, int, float]  # step, change of bytes, change of damage


@dataclass(frozen=True, kw_only=True)
class Reason:
    """One group.

    Args:
        sites: names.
        step: chosen.
        bytes: of it.
        damage: predicted, nats per token.
        dearer: the larger option that saves most nats a byte: its step, bytes more, nats less; None if the table has
            none.
        cheaper: the smaller option that costs fewest nats a byte: its step, bytes less, nats more.
    """

    sites: tuple[str, ...]
    step: str
    bytes: int
    damage: float
    dearer: Move | None
    cheaper: Move | None


def explain(table: Table, plan: Plan) -> list[Reason]:
    """A reason a group, in the order of the table.

    Args:
        table: that the plan was chosen from.
        plan: whose steps are in it.
    """
    return [_reason(row, chosen) for row, chosen in zip(table, chosen_by(table, plan), strict=True)]


def chosen_by(table: Table, plan: Plan) -> list[Option]:
    """The options of a plan, group by group."""
    found = []
    for row in table:
        step = plan.steps.get(row[0].sites[0])
        label = step.label() if step is not None else None
        found.append(next(o for o in row if (label or "dense") == (_label(o) or "dense")))
    return found


def prices(reasons: Sequence[Reason]) -> tuple[float | None, float | None]:
    """Nats a megabyte: what the next one would save, and what one less would cost; None where there is no such move.

    The first is usually at most the second where the plan is the best of its size; whole steps can make it otherwise.
    """
    saved = [-change / more for reason in reasons if reason.dearer for _, more, change in [reason.dearer] if more > 0]
    spent = [change / -less for reason in reasons if reason.cheaper for _, less, change in [reason.cheaper] if less < 0]
    return (1e6 * max(saved) if saved else None), (1e6 * min(spent) if spent else None)


def record(table: Table, plan: Plan, binding: str) -> dict[str, Any]:
    """What goes beside an artifact.

    Args:
        table: that the plan was chosen from.
        plan: that was.
        binding: the limit that a smaller plan would have broken.
    """
    reasons = explain(table, plan)
    more, less = prices(reasons)
    rows = [
        {"sites": list(r.sites), "step": r.step, "bytes": r.bytes, "damage": r.damage,
         "dearer": r.dearer and [*r.dearer], "cheaper": r.cheaper and [*r.cheaper]}
        for r in reasons
    ]  # fmt: skip
    return {"groups": rows, "next_megabyte_saves": more, "last_megabyte_cost": less, "binding": binding}


def _reason(row: Sequence[Option], chosen: Option) -> Reason:
    moves = [(_label(o) or "dense", o.bytes - chosen.bytes, o.damage - chosen.damage) for o in row if o is not chosen]
    dearer = [move for move in moves if move[1] > 0 and move[2] < 0]
    cheaper = [move for move in moves if move[1] < 0]
    return Reason(
        sites=chosen.sites, step=_label(chosen) or "dense", bytes=chosen.bytes, damage=chosen.damage,
        dearer=max(dearer, key=lambda move: -move[2] / move[1], default=None),
        cheaper=min(cheaper, key=lambda move: move[2] / -move[1], default=None),
    )  # fmt: skip


def _label(option: Option) -> str:
    """Of its step; empty where it keeps the group dense."""
    return "" if isinstance(option.step.stages[0].format, Dense) else option.step.label()
