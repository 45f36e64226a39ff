"""The evidence of one claim as it grew: the wealth of the bets, and the bound that could be read at any time."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pennyweight.methods.certification import AnytimeEngine
from pennyweight.report.html import Html
from pennyweight.report.plot import Axes, Point, dot, figure, key, line, picture, span, told_below
from pennyweight.report.record import Scores
from pennyweight.report.shown import complete, named, of
from pennyweight.report.words import decimal, integer, significant

Array = NDArray[np.float64]

BOUNDS = 24  # times at which the upper bound is computed for the picture; each is a root
POINTS = 600  # of a drawn curve; more are closer together than a screen's dots
SETTLED = 8  # units before which a mean swings widely and would flatten everything after it


def bets(scores: Scores) -> bool:
    """Whether the bound has a path: engines for a fixed number of units have only the end."""
    return isinstance(scores.engine, AnytimeEngine)


def wealth(scores: Scores, name: str) -> Html:
    """Log wealth at the margin after each unit, with the line it must reach.

    Args:
        scores: of a claim whose engine bets.
        name: of the picture, unique on the page.

    Raises:
        InvalidMeasurement: the scores do not fit the terms of the claim.
        InvalidBudget: the terms leave nothing to bet on.
    """
    claim, terms, x = scores.claim, scores.claim.terms, scores.degradation
    assert isinstance(scores.engine, AnytimeEngine)
    path = scores.engine.path(x, terms)
    threshold = -math.log(terms.alpha)
    finite = path[np.isfinite(path)]
    low, high = float(finite.min(initial=0.0)), float(finite.max(initial=threshold))
    axes = Axes((0.0, max(len(x), 1) * 1.03), span([low, high, threshold], room=0.12))
    parts = axes.frame(f"{claim.counted} scored", "log wealth")
    parts += axes.across(threshold, "limit") + axes.across(0.0, "zero")
    points: list[Point] = [(0.0, 0.0)]
    # above the box all values look alike: a ruled-out margin (infinite wealth) is drawn on its upper edge
    points += [(t + 1.0, min(float(path[t]), axes.y[1])) for t in _some(path)]
    parts.append(axes.curve(points, "series"))
    crossed = np.flatnonzero(path >= threshold)
    unit = claim.counted.removesuffix("s")
    if len(crossed):
        first = int(crossed[0]) + 1
        words = f"the wealth reaches the line at {unit} {first}"
        parts.append(dot(axes.at(first, min(float(path[first - 1]), axes.y[1])), 5.5, "dot", words))
        told = f"It first reaches the line after {unit} {integer(first)}."
    else:
        told = "It never reaches the line."
    parts += axes.upright(len(x), "stop")
    if np.isinf(path).any():
        told += (
            f" At the end the {claim.counted} left can no longer lift the mean to the margin: the wealth is infinite, "
            "drawn on the upper edge."
        )
    return figure(
        picture(name, f"Log wealth of the bets against the margin: {named(claim)}", told, parts),
        key("series", "log wealth of the bets"),
        key("limit", f"needed to certify: {threshold:.2f} = log(1/{terms.alpha:.3g})"),
        key("stop", f"stopped after {unit} {integer(len(x))}"),
        told_below(told),
    )


def running(scores: Scores, name: str) -> Html:
    """Mean so far with its upper bound: a curve where the bound may be read at any time, else only its end.

    Args:
        scores: of a claim.
        name: of the picture, unique on the page.

    Raises:
        InvalidMeasurement: the scores do not fit the terms of the claim.
        InvalidBudget: the terms leave nothing to bet on.
    """
    claim, terms, x = scores.claim, scores.claim.terms, scores.degradation
    mean = np.cumsum(x) / np.arange(1, len(x) + 1)
    bounds = _bounds(scores)
    settled = mean[min(max(SETTLED, len(mean) // 10) - 1, len(mean) - 1) :]
    shown = [0.0, float(settled.min()), float(settled.max()), claim.bound]
    shown += [terms.margin] if claim.budget.is_claim else []
    room = max(shown) - min(shown)
    highest = min(max((b for _, b in bounds), default=claim.bound), max(shown) + 0.6 * room)
    axes = Axes((0.0, len(x) * 1.03), span([*shown, highest], room=0.1))
    parts = axes.frame(f"{claim.counted} scored", claim.score_unit)
    if claim.budget.is_claim:
        parts += axes.across(terms.margin, "limit")
    parts.append(axes.curve([(t + 1.0, float(mean[t])) for t in _some(mean)], "series"))
    end, top = axes.at(len(x), float(mean[-1])), axes.at(len(x), claim.bound)
    final = f"{significant(float(mean[-1]), 4)} {claim.score_unit}"
    told = f"The mean ends at {final} after {integer(len(x))} {claim.counted}"
    if complete(claim):
        told += ": all there are, so this is the value itself."
    else:
        parts += [line(end, top, "whisker"), line((top[0] - 6, top[1]), (top[0] + 6, top[1]), "whisker")]
        told += f"; the bound printed is {significant(claim.bound, 4)}, {of(claim).at_most(claim.bound)}."
    if bounds:
        parts.append(axes.curve([p for p in bounds if p[1] <= axes.y[1]], "bound"))
    parts.append(dot(end, 4.5, "dot", f"mean after {integer(len(x))} {claim.counted}: {final}"))
    legend = [key("series", "mean so far")]
    legend += [key("bound", "upper bound at that time")] if bounds else []
    legend += [key("limit", f"margin of the limit, {decimal(terms.margin, 4)}")] if claim.budget.is_claim else []
    legend += [] if complete(claim) else [key("whisker", "up to the bound printed")]
    title = f"Mean degradation so far, and its upper bound: {named(claim)}"
    return figure(picture(name, title, told, parts), *legend, told_below(told))


def _bounds(scores: Scores) -> list[Point]:
    """Upper bounds at some times, none of which needed to be chosen beforehand."""
    if not bets(scores):
        return []
    x, terms, documents = scores.degradation, scores.claim.terms, scores.documents
    times = sorted({round(t) for t in np.geomspace(min(SETTLED, len(x)), len(x), BOUNDS)})
    return [(float(t), scores.engine.bound(x[:t], terms, terms.printed_alpha, documents=documents[:t])) for t in times]


def _some(path: Array) -> list[int]:
    """Places of a curve to draw: all of a short one, else evenly spread ones with the extremes among them."""
    if len(path) <= POINTS:
        return list(range(len(path)))
    spread = np.linspace(0, len(path) - 1, POINTS).round().astype(int).tolist()
    return sorted({*spread, int(path.argmax()), int(path.argmin())})
