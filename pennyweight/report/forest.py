"""Every claim and group on one axis: its degradation over its own margin, so that the limit is 1 for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pennyweight.budget import Claim
from pennyweight.report.html import Html, bullets, folded, join, paragraph, raw, section, table, tag
from pennyweight.report.plot import figure, frame, key, label, line, mark, told_below
from pennyweight.report.plot import ticks as round_numbers
from pennyweight.report.record import Record
from pennyweight.report.shown import complete, named, of
from pennyweight.report.words import decimal, integer

WIDTH, LEFT, RIGHT, TOP, ROW = 900, 270, 200, 12, 26
BOTTOM = 52
FARTHEST = 4.0  # margins shown at most, unless a claim itself is beyond: a group of few units is bounded by the cap
SHOWN = 20  # groups of a claim that are drawn; the table has them all
NAME = 34  # letters of a name that are drawn; the table has all of it


@dataclass(frozen=True)
class Line:
    """One row.

    Args:
        name: of the claim or group.
        is_group: whether it stands under a claim.
        estimate: degradation over margin, or None where no unit was scored.
        bound: upper bound over margin; None where the estimate is exact, or nothing is claimed.
        counts: units scored of those there are, in words.
        told: the row in words.
        exact: whether every unit was scored.
    """

    name: str
    is_group: bool
    estimate: float | None
    bound: float | None
    counts: str
    told: str
    exact: bool = False


def groups(record: Record, place: int) -> Html:
    """Forest of claims and groups, the worst group of each claim, and a table."""
    parts: list[Html] = []
    rows = [row for claim in record.limits for row in lines(claim)]
    if rows:
        axis = "degradation over its own margin: below 1 is within the limit"
        parts.append(forest(rows, "forest", "Every claim and group against its limit", axis, limit=1.0))
    sliced = [claim for claim in record.claims if claim.slices]
    if sliced:
        parts.append(tag("h3", "The worst group"))
        parts.append(bullets(worst(claim) for claim in sliced))
        parts.append(
            paragraph(
                "A line reaches to a bound that holds for all groups of the claim at once, so any of them may be "
                "looked at. Groups with few units have wide bounds because little is known of them, not because they "
                "lost much.",
                class_="quiet",
            )
        )
    for claim in sliced:
        parts.append(_table(claim))
    return section(place, "Every claim and group against its limit", *parts)


def worth_drawing(record: Record) -> bool:
    """Whether there is more than one thing to compare."""
    return len(record.limits) > 1 or any(claim.slices for claim in record.claims)


def lines(claim: Claim) -> list[Line]:
    """The rows of one claim: itself, then its groups from the largest bound down."""
    margin = claim.terms.margin
    metric, rows = of(claim), list[Line]()
    exact = complete(claim)
    told = f"{named(claim)}: {metric.value(claim.estimate)}"
    told += ", exact" if exact else f", at most {metric.at_most(claim.bound)}"
    rows.append(
        Line(
            f"{named(claim)} ≤ {metric.limit(margin)}", False, claim.estimate / margin,
            None if exact else claim.bound / margin, _counts(claim.scored, claim.terms.population), told,
            exact=exact,
        )
    )  # fmt: skip
    for part in claim.slices[:SHOWN]:
        known = part.population is not None and part.scored == part.population
        told = f"{part.group}: no unit was scored"
        if part.scored:
            told = f"{part.group}: {metric.value(part.estimate)}"
            told += ", exact" if known else f", at most {metric.at_most(part.bound)}"
        rows.append(
            Line(
                part.group, True, part.estimate / margin if part.scored else None,
                None if known and part.scored else part.bound / margin, _counts(part.scored, part.population), told,
                exact=known and part.scored > 0,
            )
        )  # fmt: skip
    return rows


def worst(claim: Claim) -> Html:
    """Name the group that the bound on the worst group comes from, and the one that looks worst."""
    metric = of(claim)
    scored = [part for part in claim.slices if part.scored]
    if not scored:
        return join([tag("b", named(claim)), ": no unit of any group was scored."])
    bound = max(claim.slices, key=lambda part: part.alone)
    seen = max(scored, key=lambda part: part.estimate)
    told = [tag("b", named(claim)), ": the largest mean measured is ", metric.value(seen.estimate), ", in "]
    told += [tag("b", seen.group), f" ({_counts(seen.scored, seen.population)} {claim.counted})"]
    if complete(claim):
        return join([*told, "; every unit was scored, so no group is worse."])
    told += ["; whichever group is the worst, its mean is at most ", metric.at_most(bound.alone), ", the bound of "]
    return join([*told, tag("b", bound.group), f" ({_counts(bound.scored, bound.population)} {claim.counted})."])


def forest(rows: list[Line], name: str, title: str, axis: str, *, limit: float | None = None) -> Html:
    """Draw dots and lines to the bounds.

    Args:
        rows: one or more, claims first and their groups under them.
        name: of the picture, unique on the page.
        title: what it shows.
        axis: what is measured along it.
        limit: where an upright line is drawn; None for a picture without one.
    """
    values = [v for row in rows for v in (row.estimate, row.bound) if v is not None]
    own = [v for row in rows if not row.is_group for v in (row.estimate, row.bound) if v is not None]
    span = max([0.0, *map(abs, own)])
    low, high = min([0.0, *values]), max([0.0, *values])
    if limit is not None:
        span = max(FARTHEST * limit, 1.1 * span)
        low, high = max(low, -span), min(max(high, 1.15 * limit), span)
    room = 0.04 * (high - low) or 1.0
    low, high = low - room, high + room
    bottom = TOP + len(rows) * ROW

    def across(value: float) -> float:
        inside = min(max(value, low), high)
        return LEFT + (inside - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    parts: list[Html] = []
    for value in round_numbers(low, high, 6):
        parts.append(line((across(value), TOP), (across(value), bottom), "rule"))
        parts.append(label(across(value), bottom + 18, f"{value:g}".replace("-", "−"), "middle"))
    parts.append(line((across(0), TOP), (across(0), bottom), "zero"))
    for index, row in enumerate(rows):
        parts += _row(row, TOP + (index + 0.5) * ROW, across, high)
    if limit is not None:
        parts.append(line((across(limit), TOP - 4), (across(limit), bottom + 4), "limit"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(label(middle, bottom + 40, axis, "middle"))
    told = f"{len(rows)} rows. " + "; ".join(row.told for row in rows[:8]) + "."
    image = frame(name, title, told, parts, (WIDTH, bottom + BOTTOM))
    clipped = any(v > high or v < low for v in values)
    return figure(
        tag("div", image, class_="scroll grid", style=f"--least: {WIDTH * 0.75:.0f}px", tabindex="0", role="region",
            aria_label=title),
        tag("span", "■ a claim, measured" if any(not row.is_group for row in rows) else "", class_="entry"),
        tag("span", "● a group, measured" if any(row.is_group for row in rows) else "", class_="entry"),
        key("whisker", "up to its upper bound"),
        key("limit", "the limit") if limit is not None else raw(""),
        told_below("A bound beyond the picture ends in an arrow.") if clipped else raw(""),
        class_="wide",
    )  # fmt: skip


def _row(row: Line, y: float, across: Callable[[float], float], high: float) -> list[Html]:
    indent = 22 if row.is_group else 0
    words = row.name if len(row.name) <= NAME else row.name[: NAME - 1] + "…"
    parts = [label(8 + indent, y + 4, words, "start", None if row.is_group else "strong")]
    parts.append(label(WIDTH - RIGHT + 16, y + 4, f"{row.counts}{', exact' if row.exact else ''}", "start"))
    if row.bound is not None:
        start = across(row.estimate if row.estimate is not None else 0.0)
        end = across(row.bound)
        if row.estimate is not None:
            parts.append(line((start, y), (end, y), "whisker"))
        if row.bound > high:
            parts += [line((end - 6, y - 5), (end, y), "whisker"), line((end - 6, y + 5), (end, y), "whisker")]
        else:
            parts.append(line((end, y - 5), (end, y + 5), "whisker"))
    if row.estimate is not None:
        parts.append(mark((across(row.estimate), y), row.told, square=not row.is_group))
    return parts


def _counts(scored: int, population: int | None) -> str:
    return integer(scored) if population is None else f"{integer(scored)} of {integer(population)}"


def _table(claim: Claim) -> Html:
    metric, margin = of(claim), claim.terms.margin
    head: tuple[str, ...] = (
        "Group",
        f"{claim.counted.capitalize()} scored",
        "Measured",
        "Bound, all groups at once",
        "Bound, alone",
    )
    head += ("Bound over margin",) if claim.budget.is_claim else ()
    rows = []
    for part in claim.slices:
        known = part.scored > 0 and part.population is not None and part.scored == part.population
        row: list[object] = [part.group, _counts(part.scored, part.population)]
        row.append(metric.value(part.estimate) if part.scored else "none scored")
        row += ["exact", "exact"] if known else [f"≤ {metric.at_most(part.bound)}", f"≤ {metric.at_most(part.alone)}"]
        rows.append([*row, decimal(part.bound / margin, 2)] if claim.budget.is_claim else row)
    title = f"Groups: {named(claim)}"
    whole = table(head, rows, caption=title, numbers=range(1, 6))
    return folded(f"{title}, {len(rows)} in all", whole)
