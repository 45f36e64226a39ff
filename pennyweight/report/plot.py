"""Axes for small pictures: plain SVG, coloured by the style sheet so that dark and printed pages look right too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pennyweight.report.html import Html, raw, tag

WIDTH, HEIGHT = 560, 330
LEFT, RIGHT, TOP, BOTTOM = 74, 18, 22, 58

Point = tuple[float, float]


@dataclass(frozen=True)
class Axes:
    """A box with two linear scales.

    Args:
        x: smallest and largest value shown.
        y: smallest and largest value shown.
    """

    x: Point
    y: Point

    def at(self, x: float, y: float) -> Point:
        """Find where a value lies in the picture; beyond the box it is put on its edge."""
        across = (min(max(x, self.x[0]), self.x[1]) - self.x[0]) / (self.x[1] - self.x[0])
        up = (min(max(y, self.y[0]), self.y[1]) - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def frame(self, x_title: str, y_title: str) -> list[Html]:
        """Draw grid lines, numbers and titles."""
        parts = []
        for value in ticks(*self.x, 5):
            x, bottom = self.at(value, self.y[0])
            parts.append(line((x, bottom), (x, bottom + 5), "axis"))
            parts.append(label(x, bottom + 20, _tick(value, self.x), "middle"))
        for value in ticks(*self.y, 5):
            left, y = self.at(self.x[0], value)
            parts.append(line((left, y), (WIDTH - RIGHT, y), "rule"))
            parts.append(label(left - 8, y + 4, _tick(value, self.y), "end"))
        corner = self.at(self.x[0], self.y[0])
        parts.append(line(corner, (WIDTH - RIGHT, corner[1]), "axis"))
        middle = (TOP + HEIGHT - BOTTOM) / 2
        parts.append(label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x_title, "middle"))
        turned = tag(
            "text", y_title, x=0, y=0, text_anchor="middle", transform=f"translate(16 {middle:.1f}) rotate(-90)"
        )
        return [*parts, turned]

    def across(self, y: float, class_: str) -> list[Html]:
        """Draw a level line, if it lies inside the box; its words stand in the legend, where nothing collides."""
        return [line(self.at(self.x[0], y), self.at(self.x[1], y), class_)] if self.y[0] <= y <= self.y[1] else []

    def upright(self, x: float, class_: str) -> list[Html]:
        """Draw an upright line, if it lies inside the box."""
        return [line(self.at(x, self.y[0]), self.at(x, self.y[1]), class_)] if self.x[0] <= x <= self.x[1] else []

    def curve(self, points: Sequence[Point], class_: str) -> Html:
        """Draw a line through points."""
        steps = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*point) for point in points))
        return tag("polyline", points=steps, class_=class_)


def picture(name: str, title: str, description: str, parts: Sequence[Html]) -> Html:
    """Make an SVG that a screen reader can name and describe."""
    return frame(name, title, description, parts, (WIDTH, HEIGHT))


def frame(name: str, title: str, description: str, parts: Sequence[Html], size: tuple[float, float]) -> Html:
    """Make one of any size; `name` must be unique on the page."""
    width, height = size
    return tag(
        "svg",
        tag("title", title, id=f"{name}-title"),
        tag("desc", description, id=f"{name}-text"),
        *parts,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        role="img",
        aria_labelledby=f"{name}-title {name}-text",
    )


def figure(image: Html, *words: object, class_: str | None = None) -> Html:
    """Put a picture with its caption."""
    return tag("figure", image, tag("figcaption", *words), class_=class_)


def key(class_: str, words: str) -> Html:
    """Make one entry of a legend."""
    mark = tag("svg", line((0, 6), (22, 6), class_), viewBox="0 0 22 12", class_="key", aria_hidden="true")
    return tag("span", mark, raw(" "), words, class_="entry")


def told_below(words: str) -> Html:
    """Put the sentence of a caption on a line of its own, below the legend."""
    return tag("span", words, class_="told")


def line(start: Point, end: Point, class_: str) -> Html:
    """Draw a straight line."""
    (x1, y1), (x2, y2) = start, end
    return tag("line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}", class_=class_)


def label(x: float, y: float, words: str, anchor: str, class_: str | None = None) -> Html:
    """Put words at a place."""
    return tag("text", words, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=class_)


def dot(place: Point, radius: float, class_: str, words: str) -> Html:
    """Draw a point that says what it is."""
    return tag("circle", tag("title", words), cx=f"{place[0]:.1f}", cy=f"{place[1]:.1f}", r=radius, class_=class_)


def mark(place: Point, words: str, *, square: bool = False) -> Html:
    """Draw an estimate that says what it is: a square, or a dot."""
    if not square:
        return dot(place, 4.5, "dot", words)
    x, y = place
    return tag("rect", tag("title", words), x=f"{x - 5:.1f}", y=f"{y - 5:.1f}", width=10, height=10, class_="dot")


def span(values: Sequence[float], *, room: float = 0.08, least: float = 1e-9) -> Point:
    """Find the smallest and largest value with room on both sides; never empty."""
    low, high = min(values), max(values)
    extra = max((high - low) * room, least, abs(high) * 1e-3)
    return low - extra, high + extra


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """Find round numbers between two values, about so many."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _tick(value: float, span: Point) -> str:
    marks = ticks(*span, 5)
    step = min((b - a for a, b in pairwise(marks)), default=span[1] - span[0])
    decimals = max(0, -math.floor(math.log10(step)))
    scaled = step * 10**decimals
    decimals += abs(scaled - round(scaled)) > 1e-6  # a step of 2.5 needs one more
    return f"{value + 0.0:.{min(decimals, 6)}f}".replace("-", "−")
