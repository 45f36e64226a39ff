"""From paired scores to a claim: a pure function, so whoever holds the scores can make the certificate again."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from pennyweight.budget import Budget, Certificate, Measurement, Terms
from pennyweight.errors import InvalidBudget, InvalidMeasurement
from pennyweight.methods.certification.planned_mixture import PlannedMixture
from pennyweight.methods.certification.sequential import decide
from pennyweight.methods.certification.statement import state
from pennyweight.methods.certification.tail import tail_bound


def certify(
    measurement: Measurement, budget: Budget, terms: Terms, *, scope: str, fingerprints: Mapping[str, str]
) -> Certificate:
    """Judge a budget by the windows scored so far, in the order they were drawn.

    A perplexity budget is certified, exact, futile or exhausted; evidence that ends before any of these counts as
    exhausted. A budget on size or bits makes no claim on degradation: its verdict is `measured` and it never holds
    here, but the bound is as good.

    Args:
        measurement: scores of the windows, in the order they were drawn.
        budget: what was allowed.
        terms: fixed before the first window was scored.
        scope: what the claim is about, such as `wiki.test.txt (sha256 12ab…, order seed 7)`; begins the sentence.
        fingerprints: hashes of model, artifact, text, plan and code.

    Raises:
        InvalidBudget: the terms claim more than the budget's margin or confidence allow.
        InvalidMeasurement: no windows, another metric than the budget's, a window scored twice, or more windows than
            the population holds.
    """
    _check(measurement, budget, terms)
    x = measurement.degradation
    above = x > terms.cap
    decision = decide(x, terms, measurement.documents)
    engine = PlannedMixture()
    bound = engine.bound(x, terms)
    if decision.verdict != "exact" and decision.decisive:
        # the bound holds at every time at once, so the window where the evidence peaked may be chosen afterwards
        bound = min(bound, engine.bound(x[: decision.decisive], terms))
    holds = False
    if budget.metric != "perplexity":
        verdict = "measured"
    elif decision.verdict == "exact":
        # nothing was left to chance, so the cap hides nothing either: the whole loss must be within the margin
        verdict, holds = "exact", math.fsum(x) / len(x) < terms.margin
    elif decision.verdict == "certified":
        # wealth and bound are two readings of one process; the last bits of the root must not contradict the verdict
        verdict, holds, bound = "certified", True, min(bound, terms.margin)
    else:
        verdict = "exhausted" if decision.verdict == "continue" else decision.verdict
    certificate = Certificate(
        budget=budget,
        holds=holds,
        verdict=verdict,
        scope=scope,
        rule=PlannedMixture.name,
        terms=terms,
        scored=len(x),
        estimate=math.fsum(x) / len(x),
        bound=bound,
        log_wealth=min(decision.log_wealth, sys.float_info.max),  # JSON has no infinity
        above_cap=int(above.sum()),
        tail_bound=tail_bound(above, alpha=terms.tail_alpha, population=terms.population),
        statement="",
        fingerprints=dict(fingerprints),
    )
    return replace(certificate, statement=state(certificate, metric=measurement.metric, unit=measurement.unit))


def _check(measurement: Measurement, budget: Budget, terms: Terms) -> None:
    if budget.metric == "perplexity":
        if measurement.metric != "perplexity":
            raise InvalidMeasurement(
                f"{measurement.metric} was measured and a limit on perplexity is to be certified",
                expected="losses, in nats per token",
                mend="measure perplexity",
                site="certification",
            )
        if terms.margin > budget.margin:
            raise InvalidBudget(
                f"the terms claim a margin of {terms.margin!r}, the budget allows {budget.margin!r}",
                expected="terms chosen for this budget",
                mend="choose the terms again with choose_terms",
                site="certification",
            )
    if terms.alpha + terms.tail_alpha > (1 - budget.confidence) * (1 + 1e-9):
        raise InvalidBudget(
            f"error levels {terms.alpha:g} and {terms.tail_alpha:g} add up to more than the confidence of "
            f"{budget.confidence:g} leaves",
            expected="levels that add up to one less the confidence",
            mend="choose the terms again with choose_terms",
            site="certification",
        )
    if len(measurement.windows) == 0:
        raise InvalidMeasurement("no window was scored", expected="one window or more", site="certification")
    if terms.population is not None and len(np.unique(measurement.windows)) < len(measurement.windows):
        raise InvalidMeasurement(
            "a window was scored twice",
            expected="windows drawn without replacement",
            mend="draw them with a permutation",
            site="certification",
        )
