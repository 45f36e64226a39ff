"""What was measured: the candidates, the evidence behind each claim, and the units that suffered most."""

from __future__ import annotations

import numpy as np

from pennyweight.budget import Claim, Measurement
from pennyweight.errors import PennyweightError
from pennyweight.report import path, pictures
from pennyweight.report.html import Html, folded, join, paragraph, raw, section, table, tag
from pennyweight.report.record import Record, Scores, Values
from pennyweight.report.shown import Shown, complete, named, of
from pennyweight.report.words import NONE, count, decimal, integer, limit, rise, share, significant, size

WORST = 5


def candidates(record: Record, place: int) -> Html:
    """Size against loss."""
    title = "Size and loss of every candidate"
    if not record.ladder:
        return section(place, title, paragraph("The artifact holds no ladder of candidates."))
    # a rung's bound and estimate are those of the certificate's first claim
    claim = record.certificate.claims[0]
    metric = of(claim)
    rows = [_rung(index, rung, metric) for index, rung in enumerate(record.ladder, 1)]
    head = (
        "Candidate", "Size", "Bits per weight", "KL predicted", "KL measured", f"{_short(metric)}, selection split",
        f"{_short(metric)}, certification split", "Bound", "Units", "Verdict",
    )  # fmt: skip
    return section(
        place,
        title,
        paragraph(_chosen(record)),
        pictures.size_and_loss(record.ladder, metric, claim.terms.margin if claim.budget.is_claim else None) or raw(""),
        table(head, rows, caption="Candidates, in the order they were judged", numbers=range(1, 9)),
    )


def _short(metric: Shown) -> str:
    return metric.name.capitalize()


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


def _rung(index: int, rung: Values, metric: Shown) -> list[object]:
    name = tag("b", f"{index} · chosen") if rung.get("chosen") else str(index)
    chosen = rung.get("selection") or {}
    bound = "exact" if rung.get("verdict") == "exact" else metric.at_most(rung.get("bound"))
    return [
        name, size(rung.get("bytes")), decimal(rung.get("bits")), significant(rung.get("predicted_kl")),
        significant(chosen.get("kl")), metric.value(pictures.selected(rung, metric), 3),
        metric.value(rung.get("estimate"), 3), bound, integer(rung.get("scored")), _judged(rung),
    ]  # fmt: skip


def _judged(rung: Values) -> str:
    kind = str(rung.get("verdict", NONE))
    return f"{kind}, {'within' if rung.get('holds') else 'not within'} the limit" if kind == "exact" else kind


def evidence(record: Record, place: int) -> Html:
    """How each claim was reached."""
    title = "How the evidence grew"
    found = [scores for claim in record.claims if (scores := record.scores(claim)) is not None]
    if not found:
        return section(place, title, paragraph("The artifact holds no scores of units."))
    if not record.claimed:
        words = "No limit on the loss was set, so there is no line the evidence had to reach."
        return section(place, title, paragraph(words), *_grown(found[0], 0, alone=True))
    parts: list[Html] = []
    limits = [scores for scores in found if scores.claim.budget.is_claim]
    if any(path.bets(scores) for scores in limits):
        parts.append(
            paragraph(
                "Units were drawn in a random order fixed by hashes. On each, a bet was placed that the mean loss is "
                "below the margin of the limit. If the loss were at or above the margin, the chance that the wealth "
                "ever grows so large that it reaches the line would be at most the error level, whenever one stops "
                "looking. Reaching the line therefore certifies."
            )
        )
    for index, scores in enumerate(limits):
        parts += _grown(scores, index, alone=len(limits) == 1)
    return section(place, title, *parts)


def _grown(scores: Scores, index: int, *, alone: bool) -> list[Html]:
    """The pictures of one claim, with what needs to be said before them."""
    claim = scores.claim
    said: list[Html] = [] if alone else [tag("h3", named(claim))]
    if complete(claim):
        every = f"Every {claim.counted.removesuffix('s')} was scored. "
        told = (
            f"There are {integer(claim.scored)} {claim.counted} and all of them were compared, so nothing was left to "
            "chance: the figure above is the value itself and no longer an estimate. The pictures show how the "
            "evidence stood on the way; the result does not rest on them."
        )
        said.append(paragraph(tag("b", every), told, class_="notice"))
    if claim.budget.is_claim:
        said.append(paragraph(_explained(scores)))
    charts: list[Html] = []
    try:
        if claim.budget.is_claim and path.bets(scores):
            charts.append(path.wealth(scores, f"wealth{index}"))
        charts.append(path.running(scores, f"mean{index}"))
    except PennyweightError as error:  # scores that do not fit the terms: `verify` says more about it
        said.append(paragraph(f"The evidence does not fit the terms of the claim: {error.happened}.", class_="alarm"))
    spread = [] if scores.discrete else [pictures.histogram(scores, f"spread{index}")]
    if alone or not spread:
        return [*said, tag("div", *charts, *spread, class_="charts")]
    title = f"How the degradation is spread over {claim.counted}: {named(claim)}"
    return [*said, tag("div", *charts, class_="charts"), folded(title, *spread)]


def _explained(scores: Scores) -> Html:
    claim, terms = scores.claim, scores.claim.terms
    margin = f"{significant(terms.margin, 4)} {claim.score_unit}"
    if path.bets(scores):
        words = f"The margin is {margin}, the error level {limit(terms.alpha)}: a {1 / terms.alpha:.4g}-fold wealth."
    else:
        words = (
            f"The margin is {margin}. The bound {claim.rule} does not bet: it holds for a number of units fixed "
            "beforehand and was read once, at the end, so there is no path of evidence to draw."
        )
        if terms.scope == "asymptotic":
            words += " It holds approximately, the better the more documents there are."
    return join([words])


def worst(record: Record, place: int) -> Html:
    """Windows and documents that lost most: where to look by eye."""
    title = "Where it became worst"
    tables: list[Html] = []
    told = ""
    text = record.text
    loss = text.scored.get("perplexity") if text is not None else None
    if text is not None and loss is not None and len(loss.drawn):
        tables += _worst_windows(loss, text.scored.get("kl"), text.scored.get("disagreement"))
        told = (
            "Windows and documents are numbered from 0 in the order of the text. A window belongs to the document it "
            "starts in. "
        )
    tables += [_flipped(scores) for claim in record.claims if (scores := _of_questions(record, claim)) is not None]
    if not tables:
        return section(place, title, paragraph("The artifact holds no scores of units."))
    told += "The worst of many is bad by selection too: read these as places to look, not as typical."
    return section(place, title, paragraph(told), *tables)


def _of_questions(record: Record, claim: Claim) -> Scores | None:
    scores = record.scores(claim)
    return scores if scores is not None and scores.discrete else None


def _flipped(scores: Scores) -> Html:
    """How many questions became worse, better, or stayed; which ones is in the evidence."""
    x, claim = scores.degradation, scores.claim
    worse, better = int((x > 0).sum()), int((x < 0).sum())
    changes = (("became worse", worse), ("became better", better), ("did not change", len(x) - worse - better))
    rows = [[name, integer(amount), share(amount / len(x))] for name, amount in changes]
    caption = f"{named(claim)}: {count(len(x), claim.counted.removesuffix('s'))} scored"
    return table(("Under this metric", claim.counted.capitalize(), "Share"), rows, caption=caption, numbers={1, 2})


def _worst_windows(loss: Measurement, divergence: Measurement | None, differ: Measurement | None) -> list[Html]:
    x = loss.degradation
    order = np.argsort(-x, kind="stable")[:WORST]
    rows = [
        [
            integer(int(loss.drawn[at])), integer(int(loss.documents[at])), f"{x[at]:+.4f}", rise(float(x[at]), 3),
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
    return parts
