"""The page of `pennyweight measure`: everything two models differ in, with intervals; nothing on it is certified."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import PurePath

from pennyweight.flow.profiling.values import Change, Groups, Interval, Profile, Tail, TaskProfile, TextProfile
from pennyweight.report.forest import Line, forest
from pennyweight.report.html import Html, bullets, folded, join, paragraph, section, table, tag
from pennyweight.report.reliability import calibrated
from pennyweight.report.shown import shown
from pennyweight.report.words import NONE, count, decimal, integer, limit, share, significant, size

DRAWN = 20  # groups in a picture; the table has them all


def title(profile: Profile) -> str:
    """Name of the page."""
    return f"Measured: {profile.reference} and {profile.compressed} · Pennyweight"


def parts(profile: Profile) -> list[Html]:
    """The whole page: a sentence, then each text and each task."""
    texts = [_text(text, index, profile) for index, text in enumerate(profile.texts)]
    tasks = [_task(task, index, profile) for index, task in enumerate(profile.tasks)]
    sections = [section(place, name, *inside) for place, (name, inside) in enumerate([*texts, *tasks], 2)]
    return [_head(profile), *sections]


def _head(profile: Profile) -> Html:
    said = [*(_rise(text) for text in profile.texts), *(_drop(task) for task in profile.tasks)]
    sentence = "; ".join(said) if said else "nothing was measured"
    models = join([tag("b", profile.reference), " → ", tag("b", profile.compressed)])
    sizes = f" · {size(profile.bytes_before)} → {size(profile.bytes_after)}"
    banner = tag(
        "header", tag("p", "◆ Measured, not certified", class_="badge"),
        tag("h1", f"{sentence[:1].upper()}{sentence[1:]}."), paragraph(models, sizes, class_="model"),
        class_="banner open",
    )  # fmt: skip
    told = (
        f"Every interval on this page holds by itself at {limit(profile.confidence)}. There are many of them, and a "
        "few of many are wrong: to rely on one number, name its limit first and run pennyweight certify."
    )
    return join([banner, paragraph(told)])


def _rise(text: TextProfile) -> str:
    for change in text.metrics:
        if change.metric == "perplexity":
            return f"{shown(change.metric, change.unit).changed(change.degradation)} on {_name(text.on, text.source)}"
    return f"{count(text.windows, 'window')} of {_name(text.on, text.source)} were scored"


def _drop(task: TaskProfile) -> str:
    falls = "falls" if task.drop >= 0 else "rises"
    return f"{task.metric} {falls} by {_points(abs(task.drop))} on {_name(task.on, task.source)}"


def _name(on: str, source: str) -> str:
    return PurePath(on).name if on else source


def _text(text: TextProfile, index: int, profile: Profile) -> tuple[str, list[Html]]:
    told = (
        f"{integer(text.windows)} of {count(text.of, 'window')} of {text.length} tokens, from "
        f"{count(text.documents, 'document')}."
    )
    inside = [paragraph(told), *_notes(text.notes), changes(text.metrics, profile.confidence, scores=True)]
    if text.tails:
        inside += [tag("h3", "The worst windows"), bullets(_tail(tail) for tail in text.tails)]
    for number_, groups in enumerate(text.groups):
        inside += grouped(groups, f"text{index}-{number_}")
    if text.calibration is not None:
        inside += [tag("h3", "Are its probabilities still right"), *calibrated(text.calibration, f"reliable{index}")]
    return f"Text: {_name(text.on, text.source)}", inside


def _task(task: TaskProfile, index: int, profile: Profile) -> tuple[str, list[Html]]:
    told = (
        f"{integer(task.questions)} of {count(task.of, 'question')}. {task.metric.capitalize()} is "
        f"{share(task.accuracy_before)} before and {share(task.accuracy_after)} after; it falls by "
        f"{_points(task.drop)}, {_ends(task.drop_interval, _points)}."
    )
    inside = [paragraph(told), *_notes(task.notes), flips(task)]
    inside += [tag("h3", "Every metric"), changes(task.metrics, profile.confidence)]
    for number_, groups in enumerate((*task.groups, *((task.margins,) if task.margins is not None else ()))):
        inside += grouped(groups, f"task{index}-{number_}")
    return f"Task: {_name(task.on, task.source)}", inside


def changes(metrics: Sequence[Change], confidence: float, *, scores: bool = False) -> Html:
    """A line for every metric.

    Args:
        metrics: of one text or task.
        confidence: of the intervals.
        scores: whether the scores themselves are shown; those of questions count mistakes, which misleads.
    """
    head = [
        "Metric", *(("Before", "After") if scores else ()), "Degradation", f"Interval, {limit(confidence)}",
        "These very units", "Worst unit", "Noise floor", "Note",
    ]  # fmt: skip
    rows = []
    for change in metrics:
        metric = shown(change.metric, change.unit)
        here = "exact" if change.complete else NONE
        if not change.complete and change.bound is not None:
            here = f"≤ {metric.at_most(change.bound)}"
        ends = NONE if change.interval is None else _ends(change.interval, metric.value)
        worst = f"{metric.value(change.largest, 3)} (number {integer(change.largest_unit)})"
        noise = NONE if change.noise is None else metric.value(change.noise, 2).lstrip("+")
        sides = [_score(change, score) for score in (change.before, change.after)] if scores else []
        note = change.note or (f"{change.above_cap} beyond the cap" if change.above_cap else "")
        rows.append([change.metric, *sides, metric.value(change.degradation), ends, here, worst, noise, note])
    return table(head, rows, caption="Larger is worse", numbers=range(1, 4 if scores else 2))


def _score(change: Change, score: float | None) -> str:
    if score is None:
        return NONE
    # what people call the perplexity; the degradation is the difference of the losses, its logarithms
    return decimal(math.exp(score), 3) if change.metric == "perplexity" else significant(score, 4)


def flips(task: TaskProfile) -> Html:
    """Answers that changed between right and wrong, in both directions."""
    rows: list[Sequence[object]] = [
        [name, integer(number_), share(number_ / task.questions), _ends(interval, share)]
        for name, number_, interval in (
            ("right → wrong", task.lost, task.lost_interval), ("wrong → right", task.gained, task.gained_interval),
        )
    ]  # fmt: skip
    shares = table(("Change", "Questions", "Share", "Interval"), rows, caption="Flips", numbers={1, 2, 3})
    said: list[object] = [
        f"If losses and gains were equally likely, at least so many losses among {task.lost + task.gained} flips "
        f"would come up with probability {significant(task.mcnemar)} (exact McNemar)."
    ]
    if task.retention is not None:
        bound = "" if task.retention_bound is None else f", at least {share(task.retention_bound)}"
        said.append(f"Of what was right before, {share(task.retention)} stays right{bound}.")
    if task.repair is not None:
        said.append(f"Of what was wrong before, {share(task.repair)} becomes right.")
    return join([shares, bullets(said)])


def grouped(groups: Groups, name: str) -> list[Html]:
    """Picture and table of one grouping.

    Args:
        groups: of one metric.
        name: of the picture, unique on the page.
    """
    metric = shown(groups.metric, groups.unit)
    rows, lines = [], list[Line]()
    for group in groups.groups:
        counts = integer(group.scored) if group.units is None else f"{integer(group.scored)} of {integer(group.units)}"
        exact = group.units is not None and group.scored == group.units and group.scored > 0
        seen = NONE if group.degradation is None else metric.value(group.degradation)
        bounds = [
            "exact" if exact else NONE if bound is None else f"≤ {metric.at_most(bound)}"
            for bound in (group.bound, group.alone)
        ]
        sides = [NONE if value is None else share(value) for value in (group.before, group.after)]
        rows.append([group.name, counts, *sides, seen, *bounds, "few units" if group.few else ""])
        estimate = None if group.degradation is None else metric.plain(group.degradation)
        far = None if exact or group.bound is None else metric.plain(group.bound)
        told = f"{group.name}: {seen}" + ("" if exact or group.bound is None else f", at most {bounds[0][2:]}")
        lines.append(Line(group.name, True, estimate, far, counts, told, exact=exact))
    head = ("Group", "Scored", "Before", "After", "Degradation", "Bound, all at once", "Bound, alone", "")
    caption = f"{groups.metric} by {groups.field}: {len(rows)} groups, bounds at {limit(groups.confidence)}"
    said: list[object] = []
    if groups.worst is not None and groups.worst_bound is not None:
        said.append(
            join([
                "Whichever group is the worst, its mean is at most ", metric.at_most(groups.worst_bound),
                "; that bound is the one of ", tag("b", groups.worst), ".",
            ])
        )  # fmt: skip
    said.append(f"The means of the groups lie {metric.value(groups.spread).lstrip('+')} apart.")
    if groups.equity_before is not None and groups.equity_after is not None:
        said.append(
            f"Lowered by the differences between groups, the score is {decimal(groups.equity_before, 3)} before and "
            f"{decimal(groups.equity_after, 3)} after."
        )
    if groups.note:
        said.append(f"{groups.note[:1].upper()}{groups.note[1:]}.")
    image = forest(lines[:DRAWN], name, f"{groups.metric} by {groups.field}", _axis(groups)) if lines else NONE
    whole = folded(caption, table(head, rows, caption=caption, numbers=range(1, 7)))
    return [tag("h3", f"{groups.metric.capitalize()} by {groups.field}"), bullets(said), join([image]), whole]


def _axis(groups: Groups) -> str:
    metric = shown(groups.metric, groups.unit)
    if groups.metric == "perplexity":
        return f"rise of perplexity, {metric.suffix}"
    return f"degradation, {metric.suffix}"


def _tail(tail: Tail) -> str:
    metric = shown(tail.metric, tail.unit)
    lost = metric.value(tail.estimate).lstrip("+")
    told = f"{tail.metric}: the worst {limit(tail.share)} of the windows lose {lost} on average"
    told += "" if tail.bound is None else f", at most {metric.at_most(tail.bound)}"
    told += "; no group of that share or more, known or not, loses more on average"
    return f"{told} ({tail.note})." if tail.note else f"{told}."


def _notes(notes: Sequence[str]) -> list[Html]:
    return [bullets(f"{note[:1].upper()}{note[1:]}." for note in notes)] if notes else []


def _points(value: float) -> str:
    found = significant(100 * value)
    return f"{found}\u202fpoint{'' if found == '1.00' else 's'}"


def _ends(interval: Interval, write: Callable[[float], str]) -> str:
    kind = "" if interval.exact else ", approximate"
    return f"{write(interval.low)} to {write(interval.high)} ({interval.rule}{kind})"
