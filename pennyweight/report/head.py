"""The head of the page: verdict, gate, a line for each claim, what the confidence rests on, and the key figures."""

from __future__ import annotations

from pennyweight.budget import Claim
from pennyweight.report.html import Html, bullets, join, paragraph, raw, table, tag
from pennyweight.report.record import Record
from pennyweight.report.shown import approximate, complete, named, of
from pennyweight.report.verdict import capped, verdict
from pennyweight.report.words import (
    NONE,
    decimal,
    duration,
    integer,
    limit,
    number,
    rise,
    rounded_up,
    share,
    significant,
    size,
)

MARKS = {"certified": "✓ certified", "exact": "✓ within, exactly", "measured": "◆ reported only"}


def head(record: Record) -> Html:
    """Write the banner, the claims, what was handed in, and the figures."""
    found = verdict(record)
    statement = record.certificate.statement or record.summary.get("statement")
    banner = tag(
        "header",
        tag("p", found.badge, class_="badge"),
        tag("h1", found.sentence),
        paragraph(_models(record), f" · {_asked(record)}", class_="model"),
        class_=f"banner {found.tone}",
    )
    claim = tag("blockquote", tag("p", statement), tag("footer", "The claim in full, as the certificate states it"))
    parts = [banner, claims(record), claim if statement else raw(""), _rests_on(record)]
    if record.source:
        parts.append(paragraph(tag("b", "Handed in: "), f"{record.source}.", class_="quiet"))
    if record.rounded_before:
        parts.append(_rounded(record))
    return join([*parts, _cards(record)])


def claims(record: Record) -> Html:
    """One line for each claim, and what lets the gate open."""
    rows = [_claim(claim) for claim in record.claims]
    head = ("Limit", "Measured", "Upper bound", "Units scored", "Verdict")
    limits = record.limits
    confidence = limit(record.certificate.confidence)
    nearly = ", approximately: some hold only as units grow many" if any(map(approximate, record.claims)) else ""
    told = f"All bounds in this table hold together with {confidence} confidence{nearly}."
    if all(complete(claim) for claim in record.claims):
        told = "Every unit was scored, so the measured values are the values themselves."
    if len(limits) > 1:
        gate = "The gate is open" if record.certificate.holds else "The gate is closed"
        told = f"{gate}: it asks that every limit is certified. {told}"
    if any(claim.holds and not complete(claim) and claim.bound > claim.terms.margin for claim in limits):
        told += (
            " Bounds that hold together must be wider than one alone. A limit can therefore be certified by its own "
            "test while its bound here lies above it; the gate needs no correction, since one failure closes it."
        )
    return join([table(head, rows, caption="What was asked and what is known", numbers={1, 2}), paragraph(told)])


def _claim(claim: Claim) -> list[object]:
    metric, budget = of(claim), claim.budget
    asked = f"no limit on {claim.metric}"
    if budget.is_claim:
        asked = f"{named(claim)}: at most {metric.limit(claim.terms.margin)}"
    mark = MARKS.get(claim.verdict, f"✗ {claim.verdict}")
    if budget.is_claim and not claim.holds:
        mark = f"✗ {'not within, exactly' if claim.verdict == 'exact' else claim.verdict}"
    population = claim.terms.population
    scored = f"{integer(claim.scored)} of {integer(population)}" if population is not None else integer(claim.scored)
    up_to = " (capped)" if claim.terms.tail_alpha else ""
    bound = "exact" if complete(claim) else f"≤ {metric.at_most(claim.bound)}{up_to}"
    return [asked, metric.value(claim.estimate), bound, f"{scored} {claim.counted}", mark]


def _rests_on(record: Record) -> Html:
    """The opening of the text and the noise floor, in one plain sentence each."""
    opening, floor = record.certificate.opening, record.certificate.noise_floor
    level, spent = limit(opening.alpha), rounded_up(100 * opening.spent)
    said = f"This is opening number {opening.number} of its held-out data, and "
    if len(record.claims) == 1 and not record.claims[0].slices:
        said += f"its claim has an error level of {level}: that is the chance that it is false, at most."
    else:
        said += (
            f"it has an error level of {level}: that is the chance that the gate is open wrongly, at most, and "
            "separately the chance that any bound in the table is too low."
        )
        if len(record.limits) > 1:
            said += " A single limit marked certified while the gate is closed has that level to itself."
        if any(claim.slices for claim in record.claims):
            said += " Groups are a third statement, with that level once more."
    if opening.number > 1:
        said += (
            " Each opening is another chance to be wrong: with all earlier ones, the chance that the gate was ever "
            f"opened wrongly is at most {spent} %."
        )
    sentences: list[object] = [join([tag("b", "Opening. "), said])]
    lines: list[tuple[str, str]] = []
    for claim in record.claims:
        value = number(floor.get(claim.metric))
        if value is not None and all(claim.metric != name for name, _ in lines):
            lines.append((claim.metric, f"{of(claim).value(value, 2).lstrip('+')} ({claim.metric})"))
    if lines:
        told = (
            "Run again with another batch shape, thread count and number format, the model handed in differs from "
            f"itself by {', '.join(words for _, words in lines)}; a limit below that would mean nothing and is refused."
        )
        sentences.append(join([tag("b", "Noise floor. "), told]))
    return bullets(sentences)


def _models(record: Record) -> Html:
    model = tag("b", record.summary.get("model", record.name))
    other = record.summary.get("compressed")
    return join([model, " → ", tag("b", other)]) if other else model


def _asked(record: Record) -> str:
    asked = [f"lose at most {of(c).limit(c.terms.margin)} of {named(c)}" for c in record.limits]
    allowed = record.size_limit
    if allowed is not None and allowed.metric == "size":
        asked.append(f"at most {size(allowed.at_most)} on disk")
    elif allowed is not None and allowed.metric == "memory":
        asked.append(f"at most {size(allowed.at_most)} in memory")
    elif allowed is not None:
        asked.append(f"at most {decimal(allowed.at_most)} bits per weight")
    sure = f", at {limit(record.certificate.confidence)} confidence" if record.limits else ""
    return f"budget: {', '.join(asked) or 'none'}{sure}"


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
    summary, timing = record.summary, record.timing
    after = number(summary.get("bytes_after"))
    starts = [("handed in", number(summary.get("bytes_before")))]
    if not record.bare:
        starts.append(("at 16 bits", number(summary.get("bytes_16_bit"))))
    sizes = [f"{words} {size(before)}{_against(before, after)}" for words, before in starts]
    cards = [_card("Size on disk", size(after), *sizes)]
    if not record.bare:
        cards.append(
            _card("Bits per weight", decimal(summary.get("bits")), "stored, over all tensors, scales included")
        )
    # a certificate on questions alone says nothing of a text
    if not (record.bare and summary.get("perplexity_after") is None):
        text = record.text
        scored = next(iter(text.scored.values())).drawn if text is not None else ()
        on = f"on the {integer(len(scored))} windows scored" if len(scored) else "on the windows scored"
        perplexities = f"{decimal(summary.get('perplexity_before'))} → {decimal(summary.get('perplexity_after'))}"
        agreed = "positions where both models’ first choice agrees"
        cards += [
            _card("Perplexity", perplexities, f"{rise(summary.get('rise'))} {on}"),
            _card("Same next token", share(summary.get("agreement")), agreed),
            _card("KL divergence", significant(summary.get("kl")), "nats per token, from the model handed in"),
        ]
    cards[1 if record.bare else 2 : 0] = [_bound(claim) for claim in record.claims[:1]]
    cards += [
        _card("Time", duration(timing.get("seconds")), str(timing.get("machine") or _unrecorded(record))),
    ]
    if not record.bare:
        cards.append(
            _card("Peak memory", size(timing.get("peak_memory")), "of the process" if timing else "not recorded")
        )
    return tag("dl", *cards, class_="cards")


def _unrecorded(record: Record) -> str:
    return "machine not recorded" if record.timing else "not recorded in this artifact"


def _against(before: float | None, after: float | None) -> str:
    if not before or not after:
        return ""
    change = after / before - 1
    return f": now {share(abs(change))} {'larger' if change > 0 else 'smaller'}"


def _bound(claim: Claim) -> Html:
    metric = of(claim)
    if complete(claim):
        return _card("Exact change", metric.value(claim.estimate), f"{named(claim)}; no sampling error")
    name = "Certified bound" if claim.verdict == "certified" else "Upper bound"
    notes = [f"on {named(claim)}, at {limit(1 - claim.terms.printed_alpha - claim.terms.tail_alpha)} confidence"]
    if words := capped([claim]):
        notes.append(words)
    if claim.above_cap:
        notes.append(f"{integer(claim.above_cap)} {claim.counted} scored beyond it")
    found = metric.at_most(claim.bound)
    return _card(name, found if found == NONE else f"≤ {found}", *notes)


def _card(name: str, value: str, *notes: str) -> Html:
    return tag("div", tag("dt", name), tag("dd", value, class_="value"), *(tag("dd", note) for note in notes))
