"""Two pictures of what was measured: size against loss, and how the loss is spread over units."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pennyweight.report.html import Html, tag
from pennyweight.report.plot import Axes, dot, figure, key, line, picture, span, told_below
from pennyweight.report.record import Scores, Values
from pennyweight.report.shown import Shown
from pennyweight.report.words import NONE, decimal, integer, number, significant, size


def size_and_loss(ladder: Sequence[Values], metric: Shown, margin: float | None) -> Html | None:
    """Every candidate: bytes across, loss up; None when no candidate has both numbers.

    Args:
        ladder: candidates in the order they were judged.
        metric: of the first claim, which the rungs' bounds are about.
        margin: of that claim, or None if it has no limit.
    """
    rungs = [(rung, number(rung.get("bytes")), selected(rung, metric)) for rung in ladder]
    known = [(rung, bytes_ / 1e6, metric.plain(loss)) for rung, bytes_, loss in rungs if bytes_ and loss is not None]
    if not known:
        return None
    bounds = [metric.plain(bound) for rung, _, _ in known if (bound := number(rung.get("bound"))) is not None]
    levels = [] if margin is None else [metric.plain(margin)]
    heights = [0.0, *(y for _, _, y in known), *bounds, *levels]
    axes = Axes(span([x for _, x, _ in known], room=0.15), span(heights, room=0.1))
    what = "rise of perplexity" if metric.name == "perplexity" else metric.name
    parts = axes.frame("size on disk, MB", f"{what}, {metric.suffix}")
    for level in levels:
        parts += axes.across(level, "limit")
    order = sorted((x, y) for _, x, y in known)
    parts.append(axes.curve(order, "series"))
    for rung, x, y in known:
        bound = number(rung.get("bound"))
        if bound is not None:
            place, top = axes.at(x, y), axes.at(x, metric.plain(bound))
            parts += [line(place, top, "whisker"), line((top[0] - 7, top[1]), (top[0] + 7, top[1]), "whisker")]
        loss = metric.value(selected(rung, metric))
        words = f"{size(rung.get('bytes'))}, {loss} on the selection split, {rung.get('verdict', NONE)}"
        if rung.get("chosen"):
            parts.append(dot(axes.at(x, y), 10, "ring", f"chosen: {words}"))
        parts.append(dot(axes.at(x, y), 5.5, "dot", words))
    lowest, highest = min(known, key=lambda k: k[1]), max(known, key=lambda k: k[1])
    described = (
        f"{len(known)} candidates from {size(lowest[0].get('bytes'))} ({metric.value(selected(lowest[0], metric))}) "
        f"to {size(highest[0].get('bytes'))} ({metric.value(selected(highest[0], metric))})."
    )
    return figure(
        picture("curve", "Size against loss of every candidate", described, parts),
        key("series", "measured on the selection split"),
        key("whisker", "up to the bound (or exact value) on the certification split"),
        *(key("limit", f"the limit, {metric.limit(margin)}") for _ in levels if margin is not None),
        tag("span", "◯ ", tag("b", "ringed"), ": the candidate chosen", class_="entry"),
    )


def selected(rung: Values, metric: Shown) -> float | None:
    """Loss of a candidate on the selection split of the text; None for metrics of questions."""
    return number((rung.get("selection") or {}).get(metric.name))


def histogram(scores: Scores, name: str) -> Html:
    """How many units lost how much."""
    x, claim, terms = scores.degradation, scores.claim, scores.claim.terms
    unit = claim.score_unit
    low, high = float(x.min()), float(x.max())
    bins = int(min(max(math.sqrt(len(x)) * 1.6, 6), 40))
    counts, edges = np.histogram(x, bins=bins, range=span([low, high], room=0.02))
    axes = Axes(span([float(edges[0]), float(edges[-1]), 0.0], room=0.03), (0.0, float(counts.max()) * 1.3))
    parts = axes.frame(f"degradation of one unit, {unit}", claim.counted)
    for amount, left, right in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        (x0, y0), (x1, y1) = axes.at(left, amount), axes.at(right, 0)
        words = f"{amount} {claim.counted} from {left:.4f} to {right:.4f}"
        bar = tag(
            "rect", tag("title", words), x=f"{x0 + 0.5:.1f}", y=f"{y0:.1f}", width=f"{max(x1 - x0 - 1, 0.5):.1f}",
            height=f"{y1 - y0:.1f}", class_="bar",
        )  # fmt: skip
        parts.append(bar)
    mean = float(x.mean())
    parts += axes.upright(mean, "stop")
    legend = [key("stop", f"mean {decimal(mean, 4)}")]
    if claim.budget.is_claim:
        parts += axes.upright(terms.margin, "limit")
        legend.append(key("limit", f"margin of the limit, {decimal(terms.margin, 4)}"))
    if terms.cap <= axes.x[1]:
        parts += axes.upright(terms.cap, "whisker")
        legend.append(key("whisker", f"cap {decimal(terms.cap, 3)}"))
    worse = int((x > 0).sum())
    told = (
        f"{integer(worse)} of {integer(len(x))} {claim.counted} became worse, {integer(len(x) - worse)} equal or "
        f"better; from {significant(low)} to {significant(high)} {unit}."
    )
    return figure(
        picture(name, f"How the degradation is spread over {claim.counted}", told, parts), *legend, told_below(told)
    )
