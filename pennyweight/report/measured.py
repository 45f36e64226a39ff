"""What was measured: the candidates, the evidence behind the claim, and the windows that suffered most."""

from __future__ import annotations

import numpy as np

from pennyweight.errors import PennyweightError
from pennyweight.report import pictures
from pennyweight.report.html import Html, paragraph, raw, section, table, tag
from pennyweight.report.record import Record, Values
from pennyweight.report.words import NONE, at_most, count, decimal, integer, limit, rise, share, significant, size

WORST = 5


def candidates(record: Record, place: int) -> Html:
    """Size against loss."""
    title = "Size and loss of every candidate"
    if not record.ladder:
        return section(place, title, paragraph("The artifact holds no ladder of candidates."))
    margin = record.terms.margin if record.terms is not None and record.claimed else None
    rows = [_rung(index, rung) for index, rung in enumerate(record.ladder, 1)]
    head = (
        "Candidate", "Size", "Bits per weight", "KL predicted", "KL measured", "Perplexity, selection split",
        "Perplexity, certification split", "Bound", "Windows", "Verdict",
    )  # fmt: skip
    return section(
        place,
        title,
        paragraph(_chosen(record)),
        pictures.size_and_loss(record.ladder, margin) or raw(""),
        table(head, rows, caption="Candidates, in the order they were judged", numbers=range(1, 9)),
    )


def _chosen(record: Record) -> str:
    """Say how the candidate came to be chosen."""
    unit = "KL is in nats per token, predicted from calibration text and measured on the selection split."
    if len(record.ladder) == 1:
        return f"There was one candidate, fixed before the certification split was opened. {unit}"
    fixed = "Candidates were compared on the selection split and fixed before the certification split was opened."
    judged = "They were judged from the safest to the smallest"
    if any(rung.get("holds") for rung in record.ladder):
        return f"{fixed} {judged}; the last that passed before the first that did not was chosen. {unit}"
    return f"{fixed} {judged}, until one did not pass. None passed: the safest one was written. {unit}"


def _rung(index: int, rung: Values) -> list[object]:
    name = tag("b", f"{index} · chosen") if rung.get("chosen") else str(index)
    selected = rung.get("selection") or {}
    exact = rung.get("verdict") == "exact"
    bound = "exact" if exact else at_most(rung.get("bound"))
    return [
        name, size(rung.get("bytes")), decimal(rung.get("bits")), significant(rung.get("predicted_kl")),
        significant(selected.get("kl")), rise(selected.get("perplexity"), 3), rise(rung.get("estimate"), 3), bound,
        integer(rung.get("scored")), _judged(rung),
    ]  # fmt: skip


def _judged(rung: Values) -> str:
    kind = str(rung.get("verdict", NONE))
    return f"{kind}, {'within' if rung.get('holds') else 'not within'} the limit" if kind == "exact" else kind


def evidence(record: Record, place: int) -> Html:
    """How the claim was reached."""
    title = "How the evidence grew"
    loss = record.measured.get("perplexity")
    if loss is None or not len(loss.windows):
        return section(place, title, paragraph("The artifact holds no scores of windows."))
    x, terms = loss.degradation, record.terms
    parts: list[Html] = []
    if record.verdict == "exact":
        parts.append(
            paragraph(
                tag("b", "Every window was scored. "),
                f"The text has {integer(len(x))} windows and all of them were compared, so nothing was left to "
                "chance: the figure above is the value itself and no longer an estimate. The picture shows how the "
                "bets stood on the way; the result does not rest on them.",
                class_="notice",
            )
        )
    if not record.claimed:
        parts.append(paragraph("No limit on the loss was set, so there is no line the evidence had to reach."))
    if terms is None:
        parts.append(paragraph("The terms of the claim cannot be read, so its evidence is not drawn again here."))
    else:
        try:
            if record.claimed:
                parts.append(_explained(record))
                parts.append(pictures.wealth(x, terms))
            parts.append(pictures.running_mean(x, terms, claimed=record.claimed))
        except PennyweightError as error:  # scores that do not fit the terms: `verify` says more about it
            parts.append(
                paragraph(f"The evidence does not fit the terms of the claim: {error.happened}.", class_="alarm")
            )
    parts.append(pictures.histogram(x, terms, claimed=record.claimed))
    words, charts = [p for p in parts if not p.startswith("<figure")], [p for p in parts if p.startswith("<figure")]
    return section(place, title, *words, tag("div", *charts, class_="charts"))


def _explained(record: Record) -> Html:
    assert record.terms is not None
    odds = 1 / record.terms.alpha
    return paragraph(
        "Windows were drawn in a random order fixed by hashes. On each, a bet was placed that the mean loss is "
        f"below the limit’s margin of {decimal(record.terms.margin, 4)} nats per token. If the loss were at or above "
        f"the margin, the chance that the wealth ever grows {odds:.4g}-fold would be at most "
        f"{limit(record.terms.alpha)}, whenever one stops looking. Reaching the line therefore certifies."
    )


def worst(record: Record, place: int) -> Html:
    """Windows and documents that lost most: where to look by eye."""
    title = "Where it became worst"
    loss = record.measured.get("perplexity")
    if loss is None or not len(loss.windows):
        return section(place, title, paragraph("The artifact holds no scores of windows."))
    x = loss.degradation
    order = np.argsort(-x, kind="stable")[:WORST]
    divergence, differ = record.measured.get("kl"), record.measured.get("disagreement")
    rows = [
        [
            integer(int(loss.windows[at])), integer(int(loss.documents[at])), f"{x[at]:+.4f}", rise(float(x[at]), 3),
            NONE if divergence is None else significant(float(divergence.degradation[at])),
            NONE if differ is None else share(1 - float(differ.degradation[at])),
        ]
        for at in order
    ]  # fmt: skip
    head = ("Window", "Document", "Degradation, nats per token", "Perplexity", "KL", "Same next token")
    parts = [
        table(head, rows, caption=f"The {len(rows)} worst of {count(len(x), 'window')} scored", numbers=range(1, 6))
    ]
    names = np.unique(loss.documents)
    if len(names) > 1:
        means = {
            int(name): (float(x[loss.documents == name].mean()), int((loss.documents == name).sum())) for name in names
        }
        listed = sorted(means.items(), key=lambda item: -item[1][0])[:WORST]
        rows = [[integer(name), integer(n), f"{mean:+.4f}", rise(mean, 3)] for name, (mean, n) in listed]
        caption = f"The {len(rows)} worst of {count(len(names), 'document')}, by mean"
        titles = ("Document", "Windows", "Mean degradation, nats per token", "Perplexity")
        parts.append(table(titles, rows, caption=caption, numbers=range(1, 4)))
    told = paragraph(
        "Windows and documents are numbered from 0 in the order of the text. A window belongs to the document it "
        "starts in. The worst of many windows is bad by selection too: read these as places to look, not as typical."
    )
    return section(place, title, told, *parts)
