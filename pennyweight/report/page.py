"""The page: one file, no script, nothing fetched."""

from __future__ import annotations

from importlib.resources import files

from pennyweight.report import closing, measured, tensors
from pennyweight.report.html import Html, join, raw, tag
from pennyweight.report.record import Record
from pennyweight.report.verdict import head, verdict

# the browser enforces what the page promises: no script runs and nothing is loaded from anywhere
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src 'none'"

PARTS = (
    tensors.blocks, measured.candidates, measured.evidence, measured.worst,
    tensors.ledger, tensors.accounting, closing.meaning, closing.using,
)  # fmt: skip


def page(record: Record) -> Html:
    """Lay out the whole document."""
    style = files("pennyweight.report").joinpath("style.css").read_text(encoding="utf-8")
    model = record.summary.get("model") or record.name
    top = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{verdict(record).badge[2:]}: {model} · Pennyweight"),
        tag("style", raw(style)),
    )
    parts = [part(record, place) for place, part in enumerate(PARTS, 2)]
    made = (record.run.get("versions") or {}).get("pennyweight")
    foot = tag("footer", f"Pennyweight {made}" if made else "Pennyweight", class_="foot")
    body = tag("body", tag("main", head(record), *parts), foot)
    return join([raw("<!DOCTYPE html>\n"), tag("html", top, body, lang="en"), raw("\n")])
