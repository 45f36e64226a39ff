"""Whether probabilities are still right: reliability before and after, and the temperature that repairs it."""

from __future__ import annotations

from pennyweight.flow.profiling.values import Calibration
from pennyweight.methods.probability import CalibrationError
from pennyweight.report.html import Html, paragraph, section, table
from pennyweight.report.plot import Axes, dot, figure, key, line, picture, told_below
from pennyweight.report.record import Record
from pennyweight.report.words import NONE, count, decimal, integer, limit, number, share, significant


def reliability(record: Record, place: int) -> Html:
    """The calibration beside an artifact; it rests on the selection split and is no part of the claims."""
    parts = [] if record.calibration is None else calibrated(record.calibration, "reliable")
    return section(place, "Are its probabilities still right", *parts)


def known(record: Record) -> bool:
    """Whether anything was measured of it."""
    return record.calibration is not None


def calibrated(found: Calibration, name: str) -> list[Html]:
    """The picture, the numbers, and what they say.

    Args:
        found: of one text.
        name: of the picture, unique on the page.
    """
    rows = [_row("before", found.before, found.loss_before), _row("after", found.after, found.loss_after)]
    if found.repaired is not None and found.temperature is not None:
        repaired = f"after, at temperature {decimal(found.temperature, 3)}"
        rows.append(_row(repaired, found.repaired, found.loss_repaired))
    head = (
        "Model", "Calibration error", "without correction for few units", "largest gap (KS)",
        "Loss, nats per token",
    )  # fmt: skip
    caption = f"{integer(found.positions)} positions in {count(found.windows, 'window')}"
    told = _told(found)
    if found.note:
        told += f" {found.note[:1].upper()}{found.note[1:]}."
    return [paragraph(told), curve(found, name), table(head, rows, caption=caption, numbers=range(1, 5))]


def curve(found: Calibration, name: str) -> Html:
    """How often the most likely token is right, against how likely the model holds it."""
    axes = Axes((0.0, 1.0), (0.0, 1.0))
    parts = axes.frame("probability of the most likely token", "share of times it is right")
    parts.append(line(axes.at(0, 0), axes.at(1, 1), "zero"))
    sides = [("before", found.before, "series", "dot"), ("after", found.after, "bound", "dot after")]
    for side, errors, stroke, fill in sides:
        points = [(bin_.confidence, bin_.accuracy) for bin_ in errors.curve]
        for bin_ in errors.curve:
            low, high = axes.at(bin_.confidence, bin_.low), axes.at(bin_.confidence, bin_.high)
            parts.append(line(low, high, f"{stroke} thin"))
        parts.append(axes.curve(points, stroke))
        for bin_ in errors.curve:
            words = (
                f"{side}: held {share(bin_.confidence)} likely, right {share(bin_.accuracy)} of {integer(bin_.count)} "
                f"times ({share(bin_.low)} to {share(bin_.high)})"
            )
            parts.append(dot(axes.at(bin_.confidence, bin_.accuracy), 4, fill, words))
    legend = [
        key("series", f"before, error {_error(found.before)}"), key("bound", f"after, error {_error(found.after)}"),
        key("zero", "probabilities that are right"),
    ]  # fmt: skip
    if found.repaired is not None and found.temperature is not None:
        parts.append(axes.curve([(bin_.confidence, bin_.accuracy) for bin_ in found.repaired.curve], "stop"))
        legend.insert(2, key("stop", f"after, at temperature {decimal(found.temperature, 3)}"))
    described = f"{len(found.before.curve)} bins before, with an error of {_error(found.before)}; "
    described += f"{len(found.after.curve)} after, with {_error(found.after)}."
    bars = f"Upright lines are Clopper-Pearson intervals at {limit(found.after.confidence)}, one bin at a time. "
    bars += "They treat positions as independent, which neighbours are not, so they are too short. "
    bars += "Below the diagonal a model believes more than it knows."
    image = picture(name, "Reliability of the probabilities, before and after", described, parts)
    return figure(image, *legend, told_below(bars))


def _told(found: Calibration) -> str:
    told = "How likely a model holds its first choice, against how often that choice is right."
    change = number(found.brier)
    if change is not None:
        told += f" The Brier score changes by {'+' if change > 0 else ''}{significant(change)}"
        interval = found.brier_interval
        ends = "" if interval is None else f"{significant(interval.low)} to {significant(interval.high)}"
        told += f" ({ends} at {limit(interval.confidence)})." if interval is not None else "."
    if found.temperature is not None:
        told += (
            f" Dividing the compressed model’s logits by {decimal(found.temperature, 4)} repairs what one number can; "
            f"it was fitted on {count(found.fitted_windows, 'other window')} than the "
            f"{integer(found.windows)} reported on."
        )
    return told


def _row(name: str, errors: CalibrationError, loss: float | None) -> list[object]:
    loss_ = NONE if loss is None else decimal(loss, 4)
    return [name, _error(errors), share(errors.plug_in), share(errors.ks), loss_]


def _error(errors: CalibrationError) -> str:
    return share(errors.debiased)
