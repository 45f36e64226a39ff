"""What people read on a terminal of a profile and of a power check."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pennyweight.cli.tables import lost
from pennyweight.flow.certifying.power import ClaimPower, Power, Row
from pennyweight.flow.profiling.values import Calibration, Change, Groups, Interval, Profile, TaskProfile, TextProfile

MOST_GROUPS = 20  # rows of a table of groups; --json has all of them
DASH = "-"


def show_profile(found: Profile) -> None:
    """Every text and task, one after the other, and what the figures mean."""
    console = Console(highlight=False)
    console.print(f"{found.compressed} against {found.reference}: {_size(found)}")
    for text in found.texts:
        _text(console, text)
    for task in found.tasks:
        _task(console, task)
    console.print(
        f"\nIntervals hold at {found.confidence:.4g} each, not together; nothing here is a certificate. Intervals and "
        "approximate figures are about sources like these; a bound marked exact is about the very text or task."
    )


def show_power(found: Power) -> None:
    """The answer in one sentence, then what every claim takes."""
    console = Console(highlight=False)
    console.print(Text(found.sentence, style="bold green" if found.feasible else "bold red"), soft_wrap=True)
    for claim in found.claims:
        console.print()
        title = f"{claim.label}: {claim.available:,} {claim.counted} of {claim.on}, scope {claim.scope}"
        console.print(_power_table(claim, claim.rows, title))
        if claim.flips:
            console.print()
            console.print(_power_table(claim, claim.flips, "at typical rates of flips, as many gained as lost"))
        if claim.floor is not None:
            console.print(
                f"Even if nothing is lost, {claim.available:,} {claim.counted} cannot certify less than "
                f"{_amount(claim, claim.floor)} in the scope source."
            )
        if claim.note:
            console.print(f"Note: {claim.note}.")
    meaning = {
        "corpus": "Scope corpus: the claim is about this very text or task, and a full pass always answers it exactly.",
        "source": "Scope source: the claim is about units like these, one of each document.",
    }
    console.print("\n" + meaning[found.scope])


FEASIBLE = {"only exactly, by a full pass": "full pass"}


def _power_table(claim: ClaimPower, rows: Sequence[Row], title: str) -> Table:
    table = _table(title, "candidate", "expected loss", "units", "feasible", "smallest limit")
    for row in rows:
        error = "" if row.standard_error is None else f" ± {_amount(claim, row.standard_error)}"
        table.add_row(
            row.candidate, _amount(claim, row.loss) + error, _count(row.needed),
            FEASIBLE.get(row.feasible, row.feasible), _amount(claim, row.smallest),
        )  # fmt: skip
    return table


def _text(console: Console, text: TextProfile) -> None:
    console.print()
    table = _table(
        f"{text.source}: {text.windows:,} of {text.of:,} windows of {text.length} tokens, {text.documents:,} documents",
        "metric", "worse by", "its interval", "bound, exact", "largest window",
    )  # fmt: skip
    for change in text.metrics:
        name, *_, worse, interval, bound, largest = _change(change)
        table.add_row(name, worse, interval, bound, largest)
    console.print(table)
    for change in text.metrics:
        if change.metric == "perplexity" and change.before is not None and change.after is not None:
            console.print(f"Perplexity {math.exp(change.before):.4g} before, {math.exp(change.after):.4g} after.")
    small = [change.metric for change in text.metrics if _is_noise(change)]
    if small:
        console.print(f"No larger than what the model differs from itself by (noise): {', '.join(small)}.")
    _notes(console, sorted({change.note for change in text.metrics if change.note}))
    for tail in text.tails:
        bound = "" if tail.bound is None else f", at most {_bound(tail.metric, tail.bound)} in the source"
        console.print(
            f"Worst {100 * tail.share:.3g} % of windows by {tail.metric}: "
            f"{shown(tail.metric, tail.percent, tail.estimate)} on average{bound}."
            + (f" ({tail.note})" if tail.note else "")
        )
    if text.calibration is not None:
        _calibration(console, text.calibration)
    for groups in text.groups:
        _groups(console, groups)
    _notes(console, text.notes)


def _task(console: Console, task: TaskProfile) -> None:
    console.print()
    table = _table(
        f"{task.source}: {task.questions:,} of {task.of:,} questions, {task.metric}", "", "value", "interval"
    )
    table.add_row("right before", _share(task.accuracy_before), "")
    table.add_row("right after", _share(task.accuracy_after), "")
    table.add_row("drop", f"{100 * task.drop:+.2f} points", _points(task.drop_interval))
    table.add_row("right -> wrong", f"{task.lost:,}", _points(task.lost_interval))
    table.add_row("wrong -> right", f"{task.gained:,}", _points(task.gained_interval))
    table.add_row("chance of so many losses if flips were even (McNemar)", f"{task.mcnemar:.3g}", "")
    if task.retention is not None and task.retention_bound is not None:
        table.add_row(
            "stays right", _share(task.retention), f"at least {_share(math.floor(1e4 * task.retention_bound) / 1e4)}"
        )
    if task.repair is not None:
        table.add_row("becomes right", _share(task.repair), "")
    console.print(table)
    metrics = _table(
        "scores, the smaller the better", "metric", "before", "after", "worse by", "its interval", "bound, exact",
        "largest question",
    )  # fmt: skip
    for change in task.metrics:
        metrics.add_row(*_change(change))
    console.print(metrics)
    _notes(console, sorted({change.note for change in task.metrics if change.note}))
    for groups in (*task.groups, *((task.margins,) if task.margins else ())):
        _groups(console, groups)
    _notes(console, task.notes)


def _change(change: Change) -> list[str]:
    name, percent = change.metric, change.percent
    means = [change.before, change.after]
    if name == "perplexity":
        cells = [DASH if mean is None else f"{math.exp(mean):.4g}" for mean in means]
    else:
        cells = [DASH if mean is None else _plain(mean, percent) for mean in means]
    interval = change.interval
    ends = DASH if interval is None else (
        f"{shown(name, percent, interval.low)} to {shown(name, percent, interval.high)}"
    )  # fmt: skip
    bound = "all scored" if change.complete else _bound(name, change.bound)
    if change.above_cap:
        bound += f" ({change.above_cap} above the cap)"
    return [
        name, *cells, shown(name, percent, change.degradation), ends, bound, shown(name, percent, change.largest)
    ]  # fmt: skip


def _calibration(console: Console, found: Calibration) -> None:
    table = _table(
        f"calibration of probabilities, {found.positions:,} positions of {found.windows} windows",
        "", "before", "after", "after, repaired",
    )  # fmt: skip
    errors = [found.before, found.after, found.repaired]
    table.add_row("calibration error (ECE, debiased)", *(DASH if e is None else _share(e.debiased) for e in errors))
    losses = [found.loss_before, found.loss_after, found.loss_repaired]
    table.add_row("loss, nats per token", *(DASH if loss is None else f"{loss:.4f}" for loss in losses))
    table.add_row("temperature", "", "1", DASH if found.temperature is None else f"{found.temperature:.4f}")
    interval = found.brier_interval
    ends = "" if interval is None else f"{interval.low:+.3g} to {interval.high:+.3g}"
    table.add_row("Brier score, difference", "", f"{found.brier:+.3g}", ends)
    console.print()
    console.print(table)
    _notes(console, [found.note] if found.note else [])


def _groups(console: Console, groups: Groups) -> None:
    console.print()
    table = _table(
        f"{groups.metric} by {groups.field}", "group", "scored", "right before", "right after", "worse by",
        f"bound, {groups.confidence:.4g} together", "",
    )  # fmt: skip
    name, percent = groups.metric, groups.percent
    for group in groups.groups[:MOST_GROUPS]:
        of = "" if group.units is None else f" of {group.units:,}"
        table.add_row(
            group.name, f"{group.scored:,}{of}", DASH if group.before is None else _share(group.before),
            DASH if group.after is None else _share(group.after), _maybe(name, percent, group.degradation),
            _bound(name, group.bound), "few units" if group.few else "",
        )  # fmt: skip
    console.print(table)
    if len(groups.groups) > MOST_GROUPS:
        console.print(f"and {len(groups.groups) - MOST_GROUPS} groups more; --json shows all of them")
    kind = "exact, all scored" if groups.rule == "exact" else f"{groups.rule}, scope {groups.scope}"
    if groups.worst is not None and groups.worst_bound is not None:
        console.print(f"Worst group: {groups.worst}, at most {_bound(name, groups.worst_bound)} ({kind}).")
    words = f"Spread of the groups: {shown(name, percent, groups.spread)}."
    if groups.equity_before is not None and groups.equity_after is not None:
        words += f" Equity-scaled score: {groups.equity_before:.4f} before, {groups.equity_after:.4f} after."
    console.print(words)
    _notes(console, [groups.note] if groups.note else [])


def shown(metric: str, percent: bool, value: float) -> str:
    """A degradation: per cent of perplexity, a share in per cent, or a number."""
    if metric == "perplexity":
        return f"{100 * math.expm1(value):+.3g} %"
    return _plain(value, percent)


def _plain(value: float, percent: bool) -> str:
    return f"{100 * value:.3g} %" if percent else f"{value:.4g}"


def _maybe(metric: str, percent: bool, value: float | None) -> str:
    return DASH if value is None else shown(metric, percent, value)


def _bound(metric: str, value: float | None) -> str:
    """An upper bound, rounded up: it must not look smaller than it is."""
    return DASH if value is None else lost(metric, value, up=True)


def _amount(claim: ClaimPower, value: float | None) -> str:
    return _maybe(claim.metric, claim.percent, value).removeprefix("+")


def _is_noise(change: Change) -> bool:
    return change.noise is not None and abs(change.degradation) <= change.noise


def _share(value: float) -> str:
    return f"{100 * value:.2f} %"


def _points(interval: Interval) -> str:
    return f"{100 * interval.low:.2f} to {100 * interval.high:.2f} %"


def _count(value: int | None) -> str:
    return DASH if value is None else f"{value:,}"


def _size(found: Profile) -> str:
    share = f" ({found.bytes_after / found.bytes_before:.0%})" if found.bytes_before else ""
    return f"{found.bytes_before / 1e6:,.1f} MB before, {found.bytes_after / 1e6:,.1f} MB after{share}"


def _notes(console: Console, notes: Sequence[str]) -> None:
    for note in notes:
        console.print(f"Note: {note}.")


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title or None, title_justify="left", show_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left", no_wrap=not index)
    return table
