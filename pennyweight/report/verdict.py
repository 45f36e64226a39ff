"""The verdict: one sentence that anyone understands, whatever was claimed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pennyweight.budget import Claim
from pennyweight.report.record import Record
from pennyweight.report.shown import approximate, complete, of, task, where
from pennyweight.report.words import THIN, decimal, integer, limit, rounded_up, size


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
    limits = record.limits
    if not limits:
        return Verdict("open", "◆ Measured, not certified", _measured(record))
    if len(limits) == 1:
        return _one(limits[0], record.certificate.confidence)
    missed = [claim for claim in limits if not claim.holds]
    if not missed:
        return Verdict("good", f"✓ All {len(limits)} limits certified", _all_hold(limits, record))
    failed = f"{len(missed)} of {len(limits)} limits"
    told = "; ".join(_missed(claim) for claim in missed)
    are = "is" if len(missed) == 1 else "are"
    return Verdict("bad", f"✗ {failed} not certified", f"{failed} {are} not certified: {told}.")


def _one(claim: Claim, confidence: float) -> Verdict:
    """The verdict on a single limit."""
    metric = of(claim)
    cap = metric.limit(claim.terms.margin)
    scored = f"{integer(claim.scored)} {claim.counted}"
    changed = _of_model(metric.changed(claim.estimate))
    if claim.verdict == "certified" and claim.holds:
        words = f"With {limit(confidence)} confidence, {_of_model(certified(claim))} {where(claim)}"
        words += ", approximately" if approximate(claim) else ""
        words += f", {up_to}" if (up_to := capped([claim])) else ""
        return Verdict("good", "✓ Certified", f"{words}. The limit was {cap}.")
    if claim.verdict == "exact":
        if claim.holds:
            words = f"On all {scored} of {_units(claim)}, {changed}. The limit was {cap}."
            return Verdict("good", "✓ Within the limit, measured exactly", words)
        words = f"On all {scored} of {_units(claim)}, {changed}, and the limit was {cap}."
        return Verdict("bad", "✗ Not within the limit, measured exactly", words)
    if claim.verdict == "futile":
        words = f"{_capital(changed)} on the {scored} scored; the loss seen lies above the limit of {cap}."
        return Verdict("bad", "✗ Not certified", words)
    if claim.verdict == "exhausted":
        words = f"The {scored} scored do not settle whether the loss is within the limit of {cap}. On them, {changed}."
        return Verdict("bad", "✗ Not certified", words)
    said = claim.statement or "no statement was recorded."
    words = f"The artifact makes no claim this page understands: {said}"
    return Verdict("bad", f"✗ Not certified (“{claim.verdict}”)", words)


def certified(claim: Claim) -> str:
    """Say what is certified: the bound, or the limit itself where the bound was widened to hold with others."""
    return of(claim).bounded(min(claim.bound, claim.terms.margin))


def capped(claims: Sequence[Claim]) -> str:
    """Say that very bad units count only up to a cap, and how many of them there can be; nothing where that is not so.

    Where several claims have caps, the largest share is told.
    """
    found = [claim for claim in claims if claim.terms.tail_alpha and not complete(claim)]
    if not found:
        return ""
    unit = found[0].counted.removesuffix("s") if len({claim.counted for claim in found}) == 1 else "unit"
    tail = rounded_up(100 * max(claim.tail_bound for claim in found))
    return f"each {unit} counted up to a cap that at most {tail}{THIN}% exceed"


def _all_hold(limits: Sequence[Claim], record: Record) -> str:
    told = [f"{_within(claim)}{f' ({task(claim)})' if claim.budget.on else ''}" for claim in limits]
    start = f"With {limit(record.certificate.confidence)} confidence, the compressed model"
    if all(complete(claim) for claim in limits):
        start = "Measured on every unit, the compressed model"
    approximately = "approximately, " if any(approximate(claim) for claim in limits) else ""
    end = f", {up_to}" if (up_to := capped(limits)) else ""
    return f"{start} stays within all {len(limits)} limits: {approximately}{', '.join(told[:-1])} and {told[-1]}{end}."


def _within(claim: Claim) -> str:
    metric = of(claim)
    return metric.phrase.format(bound=metric.limit(claim.terms.margin))


def _missed(claim: Claim) -> str:
    metric = of(claim)
    seen = f"{metric.changed(claim.estimate)} on {integer(claim.scored)} {claim.counted} of {_units(claim)}"
    settled = ", which does not settle whether it is met" if claim.verdict == "exhausted" else ""
    return f"{seen}, and the limit was {metric.limit(claim.terms.margin)}{settled}"


def _measured(record: Record) -> str:
    summary, allowed = record.summary, record.size_limit
    words = "No limit was set on the size."
    if allowed is not None and allowed.metric == "size":
        fit = "fit" if summary.get("holds") is True else "do not fit"
        words = f"The files {fit}: {size(summary.get('bytes_after'))} of {size(allowed.at_most)} allowed."
    elif allowed is not None and allowed.metric == "memory":
        words = f"Planned for {size(allowed.at_most)} of memory in the engine, by prediction."
    elif allowed is not None:
        words = f"{decimal(summary.get('bits'))} bits per weight, {decimal(allowed.at_most)} allowed."
    claim = record.claims[0]
    changed = of(claim).changed(claim.estimate)
    return f"{words} No limit on the loss was set; on {integer(claim.scored)} {claim.counted}, {changed}."


def _of_model(words: str) -> str:
    """Say whose perplexity or accuracy it is; a phrase that begins with an amount says so itself."""
    first = words.partition(" ")[0]
    return f"the compressed model’s {words}" if first in ("perplexity", "accuracy") else words


def _units(claim: Claim) -> str:
    return task(claim) if claim.budget.on else "this text"


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
