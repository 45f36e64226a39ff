"""The page of `pennyweight frontier`: one curve, what every size costs, and a table of its plans."""

from __future__ import annotations

import math

from pennyweight.flow.search.frontier import Frontier
from pennyweight.report.html import Html, join, paragraph, section, table, tag
from pennyweight.report.plot import Axes, dot, figure, key, line, picture, span, told_below
from pennyweight.report.words import decimal, integer, significant, size

SMALLEST = 1e-6  # nats; what lies below is drawn there


def title(found: Frontier) -> str:
    """Name of the page."""
    return f"Size and loss: {found.model} for {found.engine} · Pennyweight"


def parts(found: Frontier) -> list[Html]:
    """The whole page."""
    smallest, largest = found.points[0], found.points[-1]
    sentence = (
        f"From {size(smallest.bytes)} at a KL of {significant(smallest.kl, 3)} to {size(largest.bytes)} at "
        f"{significant(largest.kl, 3)}: {integer(len(found.points))} plans, each measured."
    )
    banner = tag(
        "header", tag("p", "◆ Measured, not certified", class_="badge"), tag("h1", sentence),
        paragraph(tag("b", found.model), f" for {found.engine} · 16 bits: {size(found.bytes_16_bit)}", class_="model"),
        class_="banner open",
    )  # fmt: skip
    told = (
        f"KL(reference || compressed) of {integer(found.tokens)} tokens of {found.text}, which the search may look at. "
        "The whiskers are intervals of 95 % for this text, each by itself. Take a plan from here, and have it "
        "certified on text that nothing saw: pennyweight compress MODEL --plan plans/07.toml --lose 'kl 0.05'."
    )
    rows = [
        (f"plans/{p.plan:02d}.toml", size(p.bytes), decimal(p.bits, 2), significant(p.kl, 4),
         f"{significant(p.low, 3)} to {significant(p.high, 3)}", significant(p.predicted, 3))
        for p in found.points
    ]  # fmt: skip
    head = ("Plan", "Files", "Bits a weight", "KL", "95 %", "Predicted")
    plans = table(head, rows, caption="From the smallest to the safest", numbers=range(1, 6))
    return [join([banner, paragraph(told)]), section(2, "What every size costs", curve(found)),
            section(3, "The plans", plans)]  # fmt: skip


def curve(found: Frontier) -> Html:
    """Draw KL over megabytes, on a logarithmic scale, with intervals and what was predicted."""
    points = found.points
    levels = [_log(value) for p in points for value in (p.low or p.kl, p.high, p.predicted)]
    axes = Axes(span([p.bytes / 1e6 for p in points], room=0.04), span(levels, room=0.05))
    parts = axes.frame("files, MB", "log₁₀ of KL, nats per token")
    parts.append(axes.curve([(p.bytes / 1e6, _log(p.predicted)) for p in points], "bound"))
    for p in points:
        parts.append(line(axes.at(p.bytes / 1e6, _log(p.low or p.kl)), axes.at(p.bytes / 1e6, _log(p.high)), "whisker"))
    parts.append(axes.curve([(p.bytes / 1e6, _log(p.kl)) for p in points], "series"))
    for p in points:
        words = f"plan {p.plan:02d}: {size(p.bytes)}, KL {significant(p.kl, 4)}"
        parts.append(dot(axes.at(p.bytes / 1e6, _log(p.kl)), 3.5, "dot", words))
    told = f"KL falls from {significant(points[0].kl, 3)} to {significant(points[-1].kl, 3)} nats per token."
    return figure(
        picture("frontier", "What every size costs", told, parts), key("series", "measured"),
        key("whisker", "95 %"), key("bound", "predicted before anything was carried out"), told_below(told),
    )  # fmt: skip


def _log(kl: float) -> float:
    return math.log10(max(kl, SMALLEST))
