"""Markup that cannot forget to escape: every string is text unless it is `Html` already."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from html import escape

VOID = frozenset({"meta", "br", "wbr"})


class Html(str):
    """Text that is markup already. Only this module makes it."""

    __slots__ = ()


def text(value: object) -> Html:
    """Escape a value, unless it is markup; None is nothing."""
    if isinstance(value, Html):
        return value
    return Html("" if value is None else escape(str(value), quote=True))


def join(parts: Iterable[object], separator: str = "") -> Html:
    """One piece of markup out of several."""
    return Html(text(separator).join(text(part) for part in parts))


def tag(element: str, /, *children: object, **attributes: object) -> Html:
    """Write one element.

    Args:
        element: its name.
        *children: markup, or values that are escaped.
        **attributes: `class_` stands for class and `stroke_width` for stroke-width; None leaves one out.
    """
    words = [
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    ]
    start = f"<{element}{''.join(words)}>"
    return Html(start if element in VOID else f"{start}{join(children)}</{element}>")


def raw(markup: str) -> Html:
    """Mark our own constants (the style sheet, the doctype) as markup. Never for anything that was read."""
    return Html(markup)


def table(
    head: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str, numbers: Collection[int] = ()
) -> Html:
    """Make a table with headers for columns and rows, in a box of its own that scrolls when the page is narrow.

    Args:
        head: one title a column.
        rows: cells; the first of each is the row's header.
        caption: what the table shows.
        numbers: indices of the columns that hold numbers, which are aligned right.
    """

    def kind(column: int) -> str | None:
        return "number" if column in numbers else None

    titles = [tag("th", title, scope="col", class_=kind(index)) for index, title in enumerate(head)]
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            *(tag("td", cell, class_=kind(index)) for index, cell in enumerate(row) if index),
        )
        for row in rows
    ]
    whole = tag("table", tag("caption", caption), tag("thead", tag("tr", *titles)), tag("tbody", *body))
    # tabindex: a box that scrolls must be reachable from the keyboard
    return tag("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)


def section(number: int, title: str, *children: object) -> Html:
    """Make a numbered part of the page."""
    return tag("section", tag("h2", f"{number}. {title}"), *children, id=f"part-{number}")


def paragraph(*children: object, class_: str | None = None) -> Html:
    """Make a paragraph."""
    return tag("p", *children, class_=class_)


def bullets(items: Iterable[object]) -> Html:
    """Make a list."""
    return tag("ul", *(tag("li", item) for item in items))


def folded(summary: str, *children: object) -> Html:
    """Make something that opens on a click."""
    return tag("details", tag("summary", summary), *children)
