"""Claims as sentences. Bounds are rounded towards the weaker claim, three digits."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pennyweight.budget import Claim, Opening
from pennyweight.methods.certification.tango import Tango
from pennyweight.promises import Metric

APPROXIMATE = frozenset({Tango.name})  # bounds whose level is kept only in the limit, in a scope that does not say so


def state(claim: Claim, metric: Metric, beyond: tuple[float, bool] | None) -> str:
    """Put one claim in words.

    Args:
        claim: every field but the statement.
        metric: what was measured.
        beyond: bound of the mean with nothing capped, and whether it is exact.
    """
    place, remark = _place(claim), _remark(claim, metric)
    body = _exact(claim, metric) if _is_exact(claim) else _bound(claim, metric, beyond)
    return f"{f'{remark}o' if remark else 'O'}n {place}: {body}{_groups(claim, metric)}."


def state_all(claims: Sequence[Claim], opening: Opening) -> str:
    """Put all claims in words: the gate first, then each claim, then what was done with the text before."""
    limits = [claim for claim in claims if claim.budget.is_claim]
    missed = [claim.budget.label for claim in limits if not claim.holds]
    sentences = []
    if len(limits) > 1:
        together = f"the bounds hold together with {confidence(opening.alpha)} % confidence"
        are = "is" if len(missed) == 1 else "are"
        gate = f"{len(missed)} of {len(limits)} limits {are} not certified ({', '.join(missed)})" if missed else ""
        sentences.append(f"{gate or f'All {len(limits)} limits are certified'}; {together}.")
    before = ""
    for claim in claims:
        place = _place(claim)
        # the same units, drawn in the same order, are not described twice
        sentences.append(claim.statement.replace(f"n {place}", "n the same", 1) if place == before else claim.statement)
        before = place
    if opening.number > 1:
        sentences.append(
            f"This text was opened {opening.number - 1} time{'s' if opening.number > 2 else ''} before; the chance "
            f"that the gate was ever opened wrongly is at most {ceiling(100 * opening.spent)} %."
        )
    return " ".join(sentences)


def amount(metric: Metric, value: float) -> str:
    """A degradation as shown: per cent of perplexity, points of accuracy, or the metric's own unit; rounded up."""
    if metric.name == "perplexity":
        return f"{ceiling(100 * math.expm1(value))} %"
    if metric.percent:
        return f"{ceiling(100 * value)} {'points' if metric.lower == -1 else '%'}"
    return f"{ceiling(value)} {metric.unit}".rstrip()


def ceiling(value: float, digits: int = 3) -> str:
    """Write the smallest number of so many digits that is not below the value, without an exponent."""
    if value == 0:
        return "0"
    decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    # the product is rounded first, or 0.8 would become 0.801 for the sake of its last bit
    return f"{math.ceil(round(value * 10.0**decimals, 6)) / 10.0**decimals:.{decimals}f}"


def confidence(alpha: float) -> str:
    """Confidence in per cent that an error level leaves, rounded down to a hundredth."""
    return f"{math.floor(round(1e4 * (1 - alpha), 6)) / 100:g}"


def _place(claim: Claim) -> str:
    """What the claim is about, how sure it is, and how its units were drawn."""
    terms = claim.terms
    if _is_exact(claim):
        return f"{claim.scope}, exactly (all {terms.population:,} {claim.counted})"
    # without a population the claim is about where the units come from, and not about these very units
    about = claim.scope
    if terms.population is None:
        # one window stands for each document, and a document that is too short for a window has none
        drawn_from = " (documents that hold a whole window)"
        by_document = terms.scope != "asymptotic" and claim.counted == "windows"
        about = f"the source of {claim.scope}{drawn_from if by_document else ''}"
    sure = f"{confidence(terms.printed_alpha + terms.tail_alpha)} % confidence"
    if terms.scope == "asymptotic":
        how = f"asymptotic, {claim.rule} over documents; {claim.scored:,} {claim.counted}"
    else:
        kind = "anytime-valid" if claim.anytime else f"{claim.rule}, number fixed beforehand"
        kind += ", approximate" if claim.rule in APPROXIMATE else ""
        of = f"{claim.scored:,}" if terms.population is None else f"{claim.scored:,} of {terms.population:,}"
        drawn = " drawn independently, by assumption" if terms.population is None else ", in random order"
        how = f"{kind}; {of} {claim.counted}{drawn}"
    return f"{about}, with {sure} ({how})"


def _remark(claim: Claim, metric: Metric) -> str:
    """What stands before a claim that does not hold."""
    if claim.holds:
        return ""
    if claim.verdict == "measured":
        return "No limit on degradation was set; "
    limit = _limit(metric, claim.budget.margin)
    return {
        "exact": f"Not within the limit of {limit}: ",
        # two standard errors, looked at again and again: a reason to stop, and no proof that the limit is broken
        "futile": f"Not certified: the loss lies above the limit of {limit} on the {claim.counted} scored; ",
        "exhausted": f"Not certified: {claim.scored:,} {claim.counted} do not settle the limit of {limit}; ",
    }[claim.verdict]


def _bound(claim: Claim, metric: Metric, beyond: tuple[float, bool] | None) -> str:
    terms, one = claim.terms, claim.counted.removesuffix("s")
    sentence = _bounded(metric, claim.bound)
    if terms.tail_alpha:
        sentence += (
            f" (excess counted up to {terms.cap:.3g} {claim.score_unit} in each {one}); at most "
            f"{ceiling(100 * claim.tail_bound)} % of {claim.counted} exceed that cap"
        )
        if beyond is not None:
            value, exact = beyond
            kind = "" if exact else ", approximately (clustered by document, early stopping not allowed for)"
            sentence += f"; with nothing capped{kind}, at most {amount(metric, value)}"
    if claim.verdict == "certified" and claim.bound > terms.margin:
        sentence += (
            f"; the limit of {_limit(metric, claim.budget.margin)} itself is certified at {confidence(terms.alpha)} %"
        )
    return sentence


def _exact(claim: Claim, metric: Metric) -> str:
    """What nothing is left to chance in: every unit of the population was scored."""
    sentence, one = _changed(metric, claim.estimate), claim.counted.removesuffix("s")
    if claim.above_cap:
        exceed = f"{one} exceeds" if claim.above_cap == 1 else f"{claim.counted} exceed"
        sentence += (
            f"; with excess counted up to {claim.terms.cap:.3g} {claim.score_unit} in each {one}, "
            f"{_changed(metric, claim.bound)}; {claim.above_cap:,} {exceed} that cap"
        )
    return sentence


def _groups(claim: Claim, metric: Metric) -> str:
    if not claim.slices:
        return ""
    named, worst = claim.slices[0], max(part.alone for part in claim.slices)
    # groups have a level of their own: together with the bound above, more could be wrong than the confidence says
    sure = "" if _is_exact(claim) else f" (at {confidence(claim.terms.printed_alpha)} % by itself"
    capped = ", counted up to the same cap)" if sure and claim.terms.tail_alpha else ")" if sure else ""
    return (
        f"; of {len(claim.slices)} groups none loses more than {amount(metric, worst)} on average{sure}{capped}, and "
        f"the weakest bound is that of {named.group} ({named.scored:,} {claim.counted})"
    )


def _is_exact(claim: Claim) -> bool:
    return claim.scored == claim.terms.population


def _limit(metric: Metric, margin: float) -> str:
    """A limit as a person chose it, without zeros at its end."""
    if metric.name == "perplexity":
        return f"{100 * math.expm1(margin):.4g} %"
    if metric.percent:
        return f"{100 * margin:.4g} {'points' if metric.lower == -1 else '%'}"
    return f"{margin:.4g} {metric.unit}".rstrip()


def _bounded(metric: Metric, bound: float) -> str:
    if metric.name == "perplexity" and bound < 0:  # rounding the fall down is rounding the rise up
        return f"perplexity falls by at least {amount(metric, bound).removeprefix('-')}"
    return metric.phrase.format(bound=amount(metric, bound))


def _changed(metric: Metric, mean: float) -> str:
    if metric.name == "perplexity":
        return f"perplexity changes by {100 * math.expm1(mean):+.4g} %"
    if metric.percent:
        unit = "points" if metric.lower == -1 else "%"
        return (
            f"{metric.name} changes by {100 * mean:+.4g} {unit}"
            if metric.lower == -1
            else (f"{metric.name} is {100 * mean:.4g} {unit}")
        )
    return f"{metric.name} is {mean:.4g} {metric.unit}".rstrip()
