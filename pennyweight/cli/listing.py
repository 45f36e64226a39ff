"""Every method, format and engine: for people a table a room, or of one name its page; for programs all of it."""

from __future__ import annotations

import inspect
import itertools
import operator
from argparse import Namespace
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pennyweight import catalogue
from pennyweight.cli.output import print_json
from pennyweight.errors import UnknownName
from pennyweight.export.engines import ENGINES
from pennyweight.formats import FORMATS

Row = dict[str, Any]
EVIDENCE = {"loaded": "runs our files", "read": "its sources read"}


def listing(arguments: Namespace) -> int:
    """Show every method, format and engine, or those that were asked for."""
    everything, asked = {"methods": _methods(), "formats": _formats(), "engines": _engines()}, set(arguments.what)
    names = {what: [_names(what, row) for row in rows] for what, rows in everything.items()}
    known = set[str]().union(*itertools.chain.from_iterable(names.values()))
    for name in sorted(asked - known):
        raise UnknownName(
            f"there is no {name!r}", expected=f"a name, or one of {', '.join((*catalogue.rooms(), *everything))}",
            mend=catalogue.nearest(name, known), site="list",
        )  # fmt: skip
    value = {
        what: [row for row, own in zip(rows, names[what], strict=True) if not asked or asked & own]
        for what, rows in everything.items()
    }
    if arguments.json:
        print_json(value)
    else:
        _show(value, asked)
    return 0


def _names(what: str, row: Row) -> set[str]:
    """What a row answers to."""
    return {what, str(row["name"]), *({str(row["room"])} if "room" in row else ())}


def _methods() -> list[Row]:
    return [
        {
            "name": kind.name, "room": room, "paper": kind.paper, "needs": sorted(kind.needs), "what": _first(kind),
            "page": _page(kind),
        }
        for room, kind in catalogue.every()
    ]  # fmt: skip


def _formats() -> list[Row]:
    return [
        {
            "name": kind.name, "what": _first(kind), "such as": [format.label() for format in kind.examples()],
            "page": _page(kind),
        }
        for kind in FORMATS
    ]  # fmt: skip


def _engines() -> list[Row]:
    return [
        {
            "name": e.name, "files": e.file_format, "checked": e.version, "how": e.evidence,
            "rounds": [f"{w.label()} | {i.label()}" for one in e.rounds for w in one.weights for i in one.inputs],
            "caches": [cache.label() for cache in e.caches],
        }
        for e in ENGINES
    ]  # fmt: skip


def _first(kind: type[Any]) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def _page(kind: type[Any]) -> str:
    """What its file begins with, a line a paragraph, and its own words."""
    paragraphs = inspect.cleandoc(getattr(inspect.getmodule(kind), "__doc__", None) or "").split("\n\n")
    return "\n\n".join([*(" ".join(text.split("\n")) for text in paragraphs), inspect.cleandoc(kind.__doc__ or "")])


def _show(value: Mapping[str, Sequence[Row]], asked: Collection[str]) -> None:
    """Everything there is, a table a room; of what was asked for by its name, the whole page."""
    for room, rows in itertools.groupby(value["methods"], key=operator.itemgetter("room")):
        _rows(room, list(rows), ("needs", "paper"), asked)
    _rows("formats", value["formats"], ("such as",), asked)
    _rows("engines", [row | {"what": EVIDENCE[row["how"]]} for row in value["engines"]], ("files", "checked"), ())
    for row in value["engines"]:
        if row["rounds"]:
            caches = f"; keys and values in {', '.join(row['caches'])}" if row["caches"] else ""
            said = f"{row['name']} also rounds what layers read: {', '.join(row['rounds'])}{caches}\n"
            Console(highlight=False).print(said)


def _rows(title: str, rows: Sequence[Row], columns: Sequence[str], asked: Collection[str]) -> None:
    """A table of names, which are never cut short: people copy them."""
    console, pages = Console(highlight=False), [row for row in rows if row["name"] in asked]
    if len(pages) < len(rows):
        table = Table(title=title, title_justify="left", title_style="bold", show_edge=False)
        table.add_column("name", no_wrap=True)
        table.add_column("what it does" if title != "engines" else "how we know")
        for column in columns:
            table.add_column(column, overflow="fold", max_width=20)
        for row in rows:
            table.add_row(row["name"], row["what"], *(_joined(row[column]) or "-" for column in columns))
        console.print(table)
        console.print()
    for row in pages:
        said = "; ".join(f"{column}: {_joined(row[column])}" for column in columns if row[column])
        console.print(Text(f"{row['name']} ({title})", style="bold"))
        console.print(Text(said, style="dim"))
        console.print(Text(f"\n{row['page']}\n"))


def _joined(cell: Any) -> str:
    return ", ".join(cell) if isinstance(cell, list) else str(cell)
