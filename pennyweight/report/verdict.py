"""The head of the page: one sentence that anyone understands, the claim in full, and the key figures."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pennyweight.report.html import Html, join, paragraph, raw, tag
from pennyweight.report.record import Record
from pennyweight.report.words import (
    NONE,
    at_most,
    count,
    decimal,
    duration,
    integer,
    limit,
    number,
    rise,
    share,
    significant,
    size,
)


@dataclass(frozen=True)
class Verdict:
    """What is said first.

    Args:
        tone: `good`, `open` or `bad`: the colour.
        badge: one or two words, with a mark that needs no colour.
        sentence: for people who read only one.
    """

    tone: str
    badge: str
    sentence: str


def verdict(record: Record) -> Verdict:
    """Put the verdict in plain words; every number in it comes from the artifact."""
    summary, certificate = record.summary, record.certificate
    cap = limit(record.budget.get("at_most"))
    scored, estimate = integer(certificate.get("scored")), certificate.get("estimate")
    holds = certificate.get("holds") is True
    kind = record.verdict
    if not record.claimed:
        return Verdict("open", "◆ Measured, not certified", _measured(record))
    if kind == "certified" and holds:
        sure = limit(record.budget.get("confidence"))
        most = at_most(certificate.get("bound"))
        words = f"With {sure} confidence, the compressed model’s perplexity rises by at most {most} on this text."
        return Verdict("good", "✓ Certified", f"{words} The limit was {cap}.")
    if kind == "exact":
        changes = _changes(estimate)
        if holds:
            words = f"On all {scored} windows of this text, the compressed model’s perplexity {changes}."
            return Verdict("good", "✓ Within the limit, measured exactly", f"{words} The limit was {cap}.")
        words = f"On all {scored} windows of this text, perplexity {changes}, and the limit was {cap}."
        return Verdict("bad", "✗ Not within the limit, measured exactly", words)
    if kind == "futile":
        words = (
            f"Perplexity {_changes(estimate)} on the {scored} windows scored; the loss lies above the limit of {cap}."
        )
        return Verdict("bad", "✗ Not certified", words)
    if kind == "exhausted":
        words = f"The {scored} windows scored do not settle whether the loss is within the limit of {cap}"
        return Verdict("bad", "✗ Not certified", f"{words}. On them, perplexity {_changes(estimate)}.")
    said = summary.get("statement") or certificate.get("statement") or "no statement was recorded."
    return Verdict("bad", f"✗ Not certified (“{kind}”)", f"The artifact makes no claim this page understands: {said}")


def _measured(record: Record) -> str:
    summary, allowed = record.summary, record.budget.get("at_most")
    fits = summary.get("holds") is True
    if record.budget.get("metric") == "size":
        fit = "fit" if fits else "do not fit"
        words = f"The files {fit}: {size(summary.get('bytes_after'))} of {size(allowed)} allowed."
    elif record.budget.get("metric") == "bits":
        words = f"{decimal(summary.get('bits'))} bits per weight, {decimal(allowed)} allowed."
    else:
        words = "No limit was recorded."
    scored = integer(record.certificate.get("scored"))
    changes = _changes(record.certificate.get("estimate"))
    return f"{words} No limit on the loss was set; on {scored} windows, perplexity {changes}."


def _changes(estimate: object) -> str:
    value = number(estimate)
    if value is None:
        return "was not recorded"
    return f"{'rises' if value >= 0 else 'falls'} by {share(abs(math.expm1(value)), 4)}"


def head(record: Record) -> Html:
    """Write the banner, the claim in full, what was handed in, and the figures."""
    found = verdict(record)
    statement = record.certificate.get("statement") or record.summary.get("statement")
    banner = tag(
        "header",
        tag("p", found.badge, class_="badge"),
        tag("h1", found.sentence),
        paragraph(tag("b", record.summary.get("model", record.name)), f" · budget: {_budget(record)}", class_="model"),
        class_=f"banner {found.tone}",
    )
    claim = tag("blockquote", tag("p", statement), tag("footer", "The claim in full, as the certificate states it"))
    parts = [banner, claim if statement else raw("")]
    if record.source:
        parts.append(paragraph(tag("b", "Handed in: "), f"{record.source}.", class_="quiet"))
    if record.rounded_before:
        parts.append(_rounded(record))
    return join([*parts, _cards(record)])


def _budget(record: Record) -> str:
    allowed = record.budget.get("at_most")
    sure = limit(record.budget.get("confidence"))
    match record.budget.get("metric"):
        case "perplexity":
            return f"lose at most {limit(allowed)} of perplexity, at {sure} confidence"
        case "size":
            return f"at most {size(allowed)} on disk"
        case "bits":
            return f"at most {decimal(allowed)} bits per weight"
    return "not recorded"


def _rounded(record: Record) -> Html:
    """Say what the comparison starts from, and whether anything was gained on disk."""
    words = (
        "The model handed in was already quantized. Every loss on this page is measured against that file as it is, "
        "not against the full-precision model it was once made from."
    )
    before, after = number(record.summary.get("bytes_before")), number(record.summary.get("bytes_after"))
    if before and after and after > before:
        words += (
            f" The files here are larger than what was handed in: {size(after)} against {size(before)}, "
            f"{share(after / before - 1)} more."
        )
    return paragraph(tag("b", "Already rounded. "), words, class_="notice")


def _cards(record: Record) -> Html:
    summary, certificate, timing = record.summary, record.certificate, record.timing
    after = number(summary.get("bytes_after"))
    sizes = [
        f"{words} {size(before)}{_against(before, after)}"
        for words, before in (
            ("handed in", number(summary.get("bytes_before"))), ("at 16 bits", number(summary.get("bytes_16_bit"))),
        )
    ]  # fmt: skip
    before, now = decimal(summary.get("perplexity_before")), decimal(summary.get("perplexity_after"))
    scored = f"on the {integer(summary.get('scored'))} windows scored"
    cards = [
        _card("Size on disk", size(after), *sizes),
        _card("Bits per weight", decimal(summary.get("bits")), "stored, over all tensors, scales included"),
        _card("Perplexity", f"{before} → {now}", f"{rise(certificate.get('estimate'))} {scored}"),
        _bound(record),
        _card("Same next token", share(summary.get("agreement")), "positions where both models’ first choice agrees"),
        _card("KL divergence", significant(summary.get("kl")), "nats per token, from the model handed in"),
        _card("Time", duration(timing.get("seconds")), str(timing.get("machine") or "not recorded in this artifact")),
        _card("Peak memory", size(timing.get("peak_memory")), "of the process" if timing else "not recorded"),
    ]
    return tag("dl", *cards, class_="cards")


def _against(before: float | None, after: float | None) -> str:
    if not before or not after:
        return ""
    change = after / before - 1
    return f": now {share(abs(change))} {'larger' if change > 0 else 'smaller'}"


def _bound(record: Record) -> Html:
    certificate, sure = record.certificate, limit(record.budget.get("confidence"))
    scored, population = certificate.get("scored"), record.summary.get("population")
    if record.verdict == "exact" or (scored is not None and scored == population):
        return _card("Exact change", rise(certificate.get("estimate")), "every window was scored: no sampling error")
    name = "Certified bound" if record.verdict == "certified" else "Upper bound"
    above = number(certificate.get("above_cap"))
    notes = [f"rise of perplexity, at {sure} confidence"]
    if above:
        notes.append(f"{count(int(above), 'window')} beyond the cap")
    found = at_most(certificate.get("bound"))
    return _card(name, found if found == NONE else f"≤ {found}", *notes)


def _card(name: str, value: str, *notes: str) -> Html:
    return tag("div", tag("dt", name), tag("dd", value, class_="value"), *(tag("dd", note) for note in notes))
