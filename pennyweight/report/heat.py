"""What became of each block, as a grid: a row a role, a column a block, one colour a site."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pennyweight.report.html import Html, tag
from pennyweight.report.plot import figure, frame, label
from pennyweight.report.record import Values
from pennyweight.report.words import decimal, number, share, significant

CELL, ROW, TOP = 27, 24, 22
NARROW = 48  # blocks above which cells become small and lose their numbers
COOL = ((250, 236, 178), (158, 207, 162), (70, 160, 172), (45, 105, 160), (38, 50, 110))
WARM = ((253, 240, 215), (250, 200, 140), (236, 130, 80), (190, 60, 55), (105, 15, 45))


@dataclass(frozen=True)
class Grid:
    """Sites of one stack of blocks.

    Args:
        stack: what the names share before the block's number.
        roles: in the order of their first site.
        blocks: numbers, in order.
        cells: ledger row by role and block.
    """

    stack: str
    roles: tuple[str, ...]
    blocks: tuple[int, ...]
    cells: Mapping[tuple[str, int], Values]


def grids(ledger: Sequence[Values]) -> tuple[list[Grid], list[Values]]:
    """Sort sites by stack, block and role; the rest belongs to no block.

    The first number in a dotted name is the block. The role is the last part of the name, or all that follows the
    number where a block has two sites that end alike (experts, cross attention).
    """
    stacks: dict[str, list[tuple[int, str, Values]]] = {}
    outside = []
    for row in ledger:
        match = re.match(r"(.*?)(?:^|\.)(\d+)\.(.+)$", str(row.get("site", "")))
        if match:
            stacks.setdefault(match.group(1), []).append((int(match.group(2)), match.group(3), row))
        else:
            outside.append(row)
    found = []
    for stack, members in stacks.items():
        short = Counter((block, path.rpartition(".")[2]) for block, path, _ in members)
        twice = any(count > 1 for count in short.values())
        cells = {(path if twice else path.rpartition(".")[2], block): row for block, path, row in members}
        roles = tuple(dict.fromkeys(role for role, _ in cells))
        found.append(Grid(stack, roles, tuple(sorted({block for _, block in cells})), cells))
    return found, outside


def bits_picture(grid: Grid, name: str) -> Html:
    """Draw the stored bits per weight of every site."""
    values = [float(row["bits"]) for row in grid.cells.values() if not dense(row) and number(row.get("bits"))]
    low, high = (math.floor(min(values)), math.ceil(max(values))) if values else (0, 1)
    high = max(high, low + 1)

    def place(row: Values) -> tuple[float, str] | None:
        bits = number(row.get("bits"))
        return ((bits - low) / (high - low), decimal(bits, 1)) if bits else None

    marks = [(f"{bits} bits", (bits - low) / (high - low)) for bits in range(low, high + 1)] if values else []
    return _picture(grid, name, "Stored bits per weight of every site", place, COOL, marks, numbers=True)


def error_picture(grid: Grid, name: str) -> Html:
    """Draw the relative output error of every site, on a logarithmic scale."""
    return _logarithmic(grid, name, "Relative output error of every site", "error", lambda error: share(error, 1))


def price_picture(grid: Grid, name: str) -> Html:
    """Draw what one more megabyte would save at every site, on a logarithmic scale."""
    title = "Nats per token that one more megabyte would save there, as predicted"
    return _logarithmic(grid, name, title, "price", lambda price: significant(price, 1))


def _logarithmic(grid: Grid, name: str, title: str, key: str, words: Callable[[float], str]) -> Html:
    values = [e for row in grid.cells.values() if not dense(row) and (e := number(row.get(key))) and e > 0]
    low, high = (math.log10(min(values)), math.log10(max(values))) if values else (-1.0, 0.0)
    low, high = (low, high) if high - low > 0.5 else (low - 0.25, high + 0.25)  # equal values are no extremes

    def place(row: Values) -> tuple[float, str] | None:
        value = number(row.get(key))
        return ((math.log10(value) - low) / (high - low), "") if value and value > 0 else None

    steps = (1, 3) if high - low < 4 else (1,)
    rounds = [n * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for n in steps]
    marks = [
        (words(e), (math.log10(e) - low) / (high - low)) for e in rounds if values and low <= math.log10(e) <= high
    ]
    return _picture(grid, name, title, place, WARM, marks, numbers=False)


def dense(row: Values) -> bool:
    """Whether a site was left as it was."""
    return str(row.get("actual", "")).startswith("dense")


def _picture(
    grid: Grid, name: str, title: str, place: Callable[[Values], tuple[float, str] | None],
    ramp: Sequence[tuple[int, int, int]], marks: Sequence[tuple[str, float]], *, numbers: bool,
) -> Html:  # fmt: skip
    cell = CELL if len(grid.blocks) <= NARROW else 12
    names = _short(grid.roles)
    left = 12 + 8 * max(len(words) for words in names.values())
    every = next(step for step in (1, 2, 5, 10, 20, 50, 100) if len(str(grid.blocks[-1])) * 9 < cell * step)
    parts = [_hatch(name)]
    for column, block in enumerate(grid.blocks):
        if column % every == 0:
            parts.append(label(left + (column + 0.5) * cell, TOP - 8, str(block), "middle"))
    for index, role in enumerate(grid.roles):
        y = TOP + index * ROW
        parts.append(label(left - 8, y + ROW * 0.66, names[role], "end"))
        for column, block in enumerate(grid.blocks):
            row = grid.cells.get((role, block))
            if row is not None:
                found = None if dense(row) else place(row)
                parts += _cell(left + column * cell, y, cell, row, found, ramp, name, numbers=numbers)
    size = (left + len(grid.blocks) * cell + 6, TOP + len(grid.roles) * ROW + 4)
    described = f"{len(grid.roles)} roles by {len(grid.blocks)} blocks; every value is in the table of all sites below."
    image = tag(
        "div", frame(name, title, described, parts, size), class_="scroll grid", style=f"--least: {size[0]:.0f}px",
        tabindex="0", role="region", aria_label=title,
    )  # fmt: skip
    swatches = [
        tag("span", tag("i", style=f"background: {_css(ramp, at)}", class_="swatch"), words, class_="entry")
        for words, at in marks
    ]
    kept = any(dense(row) for row in grid.cells.values())
    hatched = [tag("span", tag("i", class_="swatch hatch"), "kept dense", class_="entry")] if kept else []
    where = f" ({grid.stack})" if grid.stack else ""
    return figure(image, tag("b", f"{title}{where}. "), *swatches, *hatched, class_="wide")


def _cell(
    x: float, y: float, cell: float, row: Values, found: tuple[float, str] | None,
    ramp: Sequence[tuple[int, int, int]], name: str, *, numbers: bool,
) -> list[Html]:  # fmt: skip
    words = f"{row.get('site')}: {row.get('actual')}"
    if not dense(row):
        words += f", {decimal(row.get('bits'), 3)} bits per weight, relative output error {share(row.get('error'))}"
    fill = f"url(#{name}-hatch)" if found is None else _css(ramp, found[0])
    box = tag(
        "rect", tag("title", words), x=f"{x + 0.5:.1f}", y=f"{y + 0.5:.1f}", width=f"{cell - 1:.1f}", height=ROW - 1,
        fill=fill, rx=2,
    )  # fmt: skip
    if found is None or not numbers or cell < CELL:
        return [box]
    # the number must stand out from its cell in every theme
    ink = "#101418" if _luminance(_colour(ramp, found[0])) > 0.3 else "#ffffff"
    return [
        box,
        tag(
            "text",
            found[1],
            x=f"{x + cell / 2:.1f}",
            y=f"{y + ROW * 0.66:.1f}",
            text_anchor="middle",
            class_="in-cell",
            style=f"fill: {ink}",
        ),
    ]


def _hatch(name: str) -> Html:
    lines = [tag("rect", width=6, height=6, class_="hatch-ground"), tag("path", d="M0 6 L6 0", class_="hatch-line")]
    return tag("defs", tag("pattern", *lines, id=f"{name}-hatch", width=6, height=6, patternUnits="userSpaceOnUse"))


def _short(roles: Sequence[str]) -> dict[str, str]:
    """Leave out an ending such as `_proj` that all roles share."""
    endings = {role.rpartition("_")[2] if "_" in role else "" for role in roles}
    ending = f"_{endings.pop()}" if len(roles) > 1 and len(endings) == 1 else "_"
    return {role: role.removesuffix(ending) if len(ending) > 1 else role for role in roles}


def _colour(ramp: Sequence[tuple[int, int, int]], at: float) -> tuple[float, float, float]:
    position = min(max(at, 0.0), 1.0) * (len(ramp) - 1)
    index = min(int(position), len(ramp) - 2)
    a, b, part = ramp[index], ramp[index + 1], position - index
    return a[0] + (b[0] - a[0]) * part, a[1] + (b[1] - a[1]) * part, a[2] + (b[2] - a[2]) * part


def _css(ramp: Sequence[tuple[int, int, int]], at: float) -> str:
    return "#" + "".join(f"{round(part):02x}" for part in _colour(ramp, at))


def _luminance(colour: tuple[float, float, float]) -> float:
    """Relative luminance as WCAG 2 defines it, in [0, 1]."""
    r, g, b = ((c / 255) / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
