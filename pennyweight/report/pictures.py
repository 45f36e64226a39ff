"""The curves of the page: size against loss, the evidence as it grew, and how the loss is spread over windows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pennyweight.budget import Terms
from pennyweight.methods.certification import PlannedMixture
from pennyweight.report.html import Html, tag
from pennyweight.report.plot import Axes, Point, dot, figure, key, line, picture, span, told_below
from pennyweight.report.record import Values
from pennyweight.report.words import NONE, decimal, integer, limit, number, rise, significant, size

Array = NDArray[np.float64]

BOUNDS = 24  # times at which the upper bound is computed for the picture; each is a root


def size_and_loss(ladder: Sequence[Values], margin: float | None) -> Html | None:
    """Every candidate: bytes across, rise of the perplexity up; None when no candidate has both numbers."""
    rungs = [(rung, number(rung.get("bytes")), _selected(rung)) for rung in ladder]
    known = [
        (rung, bytes_ / 1e6, 100 * math.expm1(loss)) for rung, bytes_, loss in rungs if bytes_ and loss is not None
    ]
    if not known:
        return None
    bounds = [100 * math.expm1(bound) for rung, _, _ in known if (bound := number(rung.get("bound"))) is not None]
    levels = [] if margin is None else [100 * math.expm1(margin)]
    heights = [0.0, *(y for _, _, y in known), *bounds, *levels]
    axes = Axes(span([x for _, x, _ in known], room=0.15), span(heights, room=0.1, least=0.01))
    parts = axes.frame("size on disk, MB", "rise of perplexity, %")
    for level in levels:
        parts += axes.across(level, "limit")
    order = sorted((x, y) for _, x, y in known)
    parts.append(axes.curve(order, "series"))
    for rung, x, y in known:
        bound = number(rung.get("bound"))
        if bound is not None:
            place, top = axes.at(x, y), axes.at(x, 100 * math.expm1(bound))
            parts += [line(place, top, "whisker"), line((top[0] - 7, top[1]), (top[0] + 7, top[1]), "whisker")]
        words = (
            f"{size(rung.get('bytes'))}, {rise(_selected(rung))} on the selection split, {rung.get('verdict', NONE)}"
        )
        if rung.get("chosen"):
            parts.append(dot(axes.at(x, y), 10, "ring", f"chosen: {words}"))
        parts.append(dot(axes.at(x, y), 5.5, "dot", words))
    lowest, highest = min(known, key=lambda k: k[1]), max(known, key=lambda k: k[1])
    described = (
        f"{len(known)} candidates from {size(lowest[0].get('bytes'))} ({rise(_selected(lowest[0]))}) "
        f"to {size(highest[0].get('bytes'))} ({rise(_selected(highest[0]))})."
    )
    return figure(
        picture("curve", "Size against loss of every candidate", described, parts),
        key("series", "measured on the selection split"),
        key("whisker", "up to the bound (or exact value) on the certification split"),
        *(key("limit", f"the limit, {limit(level / 100)}") for level in levels),
        tag("span", "◯ ", tag("b", "ringed"), ": the candidate chosen", class_="entry"),
    )


def _selected(rung: Values) -> float | None:
    return number((rung.get("selection") or {}).get("perplexity"))


def wealth(x: Array, terms: Terms) -> Html:
    """Log wealth at the margin after each window, with the line it must reach."""
    path = PlannedMixture().start(terms).path(x)
    threshold = -math.log(terms.alpha)
    finite = path[np.isfinite(path)]
    low, high = float(finite.min(initial=0.0)), float(finite.max(initial=threshold))
    axes = Axes((0.0, max(len(x), 1) * 1.03), span([low, high, threshold], room=0.12))
    parts = axes.frame("windows scored", "log wealth")
    parts += axes.across(threshold, "limit") + axes.across(0.0, "zero")
    points: list[Point] = [(0.0, 0.0)]
    # above the box all values look alike: a ruled-out margin (infinite wealth) is drawn on its upper edge
    points += [(t + 1.0, min(float(value), axes.y[1])) for t, value in enumerate(path)]
    parts.append(axes.curve(points, "series"))
    crossed = np.flatnonzero(path >= threshold)
    first = int(crossed[0]) + 1 if len(crossed) else None
    if first is not None:
        words = f"the wealth reaches the line at window {first}"
        parts.append(dot(axes.at(first, min(float(path[first - 1]), axes.y[1])), 5.5, "dot", words))
    parts += axes.upright(len(x), "stop")
    if first is not None:
        told = f"It first reaches the line after window {integer(first)}."
    else:
        told = "It never reaches the line."
    if np.isinf(path).any():
        told += (
            " At the end the windows left can no longer lift the mean to the margin: the wealth is infinite, "
            "drawn on the upper edge."
        )
    return figure(
        picture("wealth", "Log wealth of the bets against the margin, window by window", told, parts),
        key("series", "log wealth of the bets"),
        key("limit", f"needed to certify: {threshold:.2f} = log(1/{terms.alpha:.3g})"),
        key("stop", f"stopped after window {integer(len(x))}"),
        told_below(told),
    )


def running_mean(x: Array, terms: Terms, *, claimed: bool) -> Html:
    """Mean loss so far, and the bound that may be read at any time."""
    mean = np.cumsum(x) / np.arange(1, len(x) + 1)
    times = sorted({round(t) for t in np.geomspace(min(8, len(x)), len(x), BOUNDS)})
    engine = PlannedMixture()
    bounds = [(float(t), engine.bound(x[:t], terms)) for t in times]
    # the first windows swing widely and would flatten everything after them
    settled = mean[min(7, len(mean) - 1) :]
    shown = [0.0, float(settled.min()), float(settled.max()), bounds[-1][1]] + ([terms.margin] if claimed else [])
    room = max(shown) - min(shown)
    axes = Axes((0.0, len(x) * 1.03), span([*shown, min(max(b for _, b in bounds), max(shown) + 0.6 * room)], room=0.1))
    parts = axes.frame("windows scored", "nats per token")
    if claimed:
        parts += axes.across(terms.margin, "limit")
    parts.append(axes.curve([p for p in bounds if p[1] <= axes.y[1]], "bound"))
    parts.append(axes.curve([(t + 1.0, float(value)) for t, value in enumerate(mean)], "series"))
    final = significant(float(mean[-1]), 4)
    told = f"The mean degradation ends at {final} nats per token after {integer(len(x))} windows."
    return figure(
        picture("mean", "Mean degradation so far, and its upper bound", told, parts),
        key("series", "mean so far"),
        key("bound", "upper bound at that time"),
        *([_margin(terms)] if claimed else []),
        told_below(told),
    )


def histogram(x: Array, terms: Terms | None, *, claimed: bool) -> Html:
    """How many windows lost how much."""
    low, high = float(x.min()), float(x.max())
    bins = int(min(max(math.sqrt(len(x)) * 1.6, 6), 40))
    counts, edges = np.histogram(x, bins=bins, range=span([low, high], room=0.02))
    axes = Axes(span([float(edges[0]), float(edges[-1]), 0.0], room=0.03), (0.0, float(counts.max()) * 1.3))
    parts = axes.frame("degradation of one window, nats per token", "windows")
    for amount, left, right in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        (x0, y0), (x1, y1) = axes.at(left, amount), axes.at(right, 0)
        words = f"{amount} windows from {left:.4f} to {right:.4f}"
        bar = tag(
            "rect", tag("title", words), x=f"{x0 + 0.5:.1f}", y=f"{y0:.1f}", width=f"{max(x1 - x0 - 1, 0.5):.1f}",
            height=f"{y1 - y0:.1f}", class_="bar",
        )  # fmt: skip
        parts.append(bar)
    mean = float(x.mean())
    parts += axes.upright(mean, "stop")
    legend = [key("stop", f"mean {decimal(mean, 4)}")]
    if terms is not None and claimed:
        parts += axes.upright(terms.margin, "limit")
        legend.append(_margin(terms))
    if terms is not None and terms.cap <= axes.x[1]:
        parts += axes.upright(terms.cap, "whisker")
        legend.append(key("whisker", f"cap {decimal(terms.cap, 3)}"))
    worse = int((x > 0).sum())
    told = (
        f"{integer(worse)} of {integer(len(x))} windows became worse, {integer(len(x) - worse)} equal or better; "
        f"from {significant(low)} to {significant(high)} nats per token."
    )
    return figure(
        picture("spread", "How the degradation is spread over windows", told, parts), *legend, told_below(told)
    )


def _margin(terms: Terms) -> Html:
    return key("limit", f"margin of the limit, {decimal(terms.margin, 4)}")
