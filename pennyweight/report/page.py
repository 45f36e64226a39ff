"""The page: one file, no script, nothing fetched."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.resources import files

from pennyweight.flow.profiling.values import Profile
from pennyweight.flow.search.frontier import Frontier
from pennyweight.report import closing, compared, forest, frontier, measured, reliability, tensors
from pennyweight.report.head import head
from pennyweight.report.html import Html, join, raw, tag
from pennyweight.report.record import Record
from pennyweight.report.verdict import verdict

# the browser enforces what the page promises: no script runs and nothing is loaded from anywhere
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src 'none'"

Part = Callable[[Record, int], Html]


def page(record: Record) -> Html:
    """Lay out the page of an artifact, or of a certificate alone."""
    model = record.summary.get("model") or record.name
    made = (record.run.get("versions") or {}).get("pennyweight")
    parts = [part(record, place) for place, part in enumerate(_parts(record), 2)]
    title = f"{verdict(record).badge[2:]}: {model} · Pennyweight"
    return _document(title, [head(record), *parts], f"Pennyweight {made}" if made else "Pennyweight")


def profile_page(profile: Profile) -> Html:
    """Lay out what was measured of two models."""
    return _document(compared.title(profile), compared.parts(profile), "Pennyweight")


def frontier_page(found: Frontier) -> Html:
    """Lay out the curve of sizes and losses."""
    return _document(frontier.title(found), frontier.parts(found), "Pennyweight")


def _parts(record: Record) -> list[Part]:
    """Sections in their order; a certificate alone has no model whose tensors could be shown."""
    found: list[Part] = [forest.groups] if forest.worth_drawing(record) else []
    found += [] if record.bare else [tensors.blocks, measured.candidates]
    found += [measured.evidence, measured.worst]
    found += [reliability.reliability] if reliability.known(record) else []
    found += [] if record.bare else [tensors.ledger, tensors.accounting]
    return [*found, closing.meaning, closing.using]


def _document(title: str, parts: Iterable[Html], foot: str) -> Html:
    style = files("pennyweight.report").joinpath("style.css").read_text(encoding="utf-8")
    top = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", raw(style)),
    )
    body = tag("body", tag("main", *parts), tag("footer", foot, class_="foot"))
    return join([raw("<!DOCTYPE html>\n"), tag("html", top, body, lang="en"), raw("\n")])
