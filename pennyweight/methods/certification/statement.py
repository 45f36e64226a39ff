"""A certificate as one sentence. Bounds are rounded towards the weaker claim, three digits."""

from __future__ import annotations

import math

from pennyweight.budget import Certificate


def state(certificate: Certificate, *, metric: str, unit: str) -> str:
    """Put the claim in words.

    Args:
        certificate: every field but the statement.
        metric: what was measured, `perplexity`, `kl` or `disagreement`.
        unit: of the scores, such as `nats per token`.
    """
    if certificate.scored == certificate.terms.population:
        return _state_exact(certificate, metric, unit)
    terms, budget = certificate.terms, certificate.budget
    drawn = f"{certificate.scored:,} windows drawn independently"
    if terms.population is not None:
        drawn = f"{certificate.scored:,} of {terms.population:,} windows, in random order"
    claim = (
        f"n {certificate.scope}, with {100 * budget.confidence:.4g} % confidence (anytime-valid; {drawn}): "
        f"{_bounded(certificate.bound, metric, unit)} (excess counted up to {terms.cap:.3g} {unit} in each window); "
        f"at most {_ceiling(100 * certificate.tail_bound)} % of windows exceed that cap."
    )
    if certificate.verdict == "certified":
        return "O" + claim
    limit = _limit(certificate)
    reason = {
        "futile": f"Not certified: the loss lies above the limit of {limit}; o",
        "exhausted": f"Not certified: {certificate.scored:,} windows do not settle the limit of {limit}; o",
        "measured": "No limit on degradation was set; o",
    }[certificate.verdict]
    return reason + claim


def _state_exact(certificate: Certificate, metric: str, unit: str) -> str:
    """Put in words what nothing is left to chance in: every window of the population was scored."""
    terms = certificate.terms
    start = "On"
    if certificate.verdict == "measured":
        start = "No limit on degradation was set; on"
    elif not certificate.holds:
        start = f"Not within the limit of {_limit(certificate)}: on"
    sentence = (
        f"{start} {certificate.scope}, exactly (all {terms.population:,} windows): "
        f"{_changed(certificate.estimate, metric, unit)}"
    )
    if certificate.above_cap:
        exceed = "window exceeds" if certificate.above_cap == 1 else "windows exceed"
        sentence += (
            f"; with excess counted up to {terms.cap:.3g} {unit} in each window, "
            f"{_changed(certificate.bound, metric, unit)}; {certificate.above_cap:,} {exceed} that cap"
        )
    return sentence + "."


def _bounded(bound: float, metric: str, unit: str) -> str:
    if metric != "perplexity":
        return f"{metric} rises by at most {_ceiling(bound)} {unit}"
    rise = 100 * math.expm1(bound)
    if rise < 0:  # rounding the fall down is rounding the rise up
        return f"perplexity falls by at least {_ceiling(rise).removeprefix('-')} %"
    return f"perplexity rises by at most {_ceiling(rise)} %"


def _changed(mean: float, metric: str, unit: str) -> str:
    if metric != "perplexity":
        return f"{metric} changes by {mean:+.4g} {unit}"
    return f"perplexity changes by {100 * math.expm1(mean):+.4g} %"


def _limit(certificate: Certificate) -> str:
    return f"{100 * certificate.budget.at_most:.4g} %"


def _ceiling(value: float, digits: int = 3) -> str:
    """Write the smallest number of so many digits that is not below the value, without an exponent."""
    if value == 0:
        return "0"
    decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    # the product is rounded first, or 0.8 would become 0.801 for the sake of its last bit
    return f"{math.ceil(round(value * 10.0**decimals, 6)) / 10.0**decimals:.{decimals}f}"
