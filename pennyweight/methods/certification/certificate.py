"""From paired scores to claims: pure functions, so whoever holds the scores can make the certificate again."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pennyweight.budget import Budget, Certificate, Claim, Measurement, Opening, Slice, Terms
from pennyweight.errors import InvalidBudget, InvalidMeasurement
from pennyweight.methods.certification.clustered import by_document, clustered_bound
from pennyweight.methods.certification.engine import AnytimeEngine, Engine
from pennyweight.methods.certification.planned_mixture import PlannedMixture
from pennyweight.methods.certification.sequential import decide
from pennyweight.methods.certification.statement import state, state_all
from pennyweight.methods.certification.tail import tail_bound
from pennyweight.promises import Metric

Array = NDArray[np.float64]

ROUNDING = 1e-5  # a divergence of equal distributions is a sum of float32 numbers of both signs
LEAST_DOCUMENTS = 15  # below, the t bound over documents is not worth printing


def certify(
    measurement: Measurement,
    budget: Budget,
    terms: Terms,
    *,
    metric: Metric,
    scope: str,
    counted: str = "windows",
    engine: Engine | None = None,
    labels: Sequence[str] = (),
    sizes: Mapping[str, int] | None = None,
) -> Claim:
    """Judge a budget by the units scored so far, in the order they were drawn.

    A loss is certified, exact, futile or exhausted; evidence that ends before any of these counts as exhausted. A
    budget on size or bits makes no claim on degradation: its verdict is `measured` and it never holds here, but the
    bound is as good.

    Args:
        measurement: scores of the units, in the order they were drawn.
        budget: what was allowed.
        terms: fixed before the first unit was scored.
        metric: what was measured: its limits and its words.
        scope: what the claim is about, such as `wiki.test.txt (sha256 12ab…, order seed 7)`; begins the sentence.
        counted: what a unit is, in the plural.
        engine: the bound; by default the planned mixture.
        labels: group of each unit scored `[n]`, if the claim is to be repeated group by group.
        sizes: units in the population, by group.

    Raises:
        InvalidBudget: the terms claim more than the budget's margin or confidence allow.
        InvalidMeasurement: no units, another metric than the budget's, a unit scored twice, or more units than the
            population holds, or a degradation outside the metric's range.
    """
    engine = engine or PlannedMixture()
    _check(measurement, budget, terms)
    x = degradations(measurement, metric)
    above = x > terms.cap
    decision = decide(x, terms, measurement.documents, engine)
    bound = _bound(engine, x, terms, measurement.documents, decision.decisive, exact=decision.verdict == "exact")
    holds = False
    if not budget.is_claim:
        verdict = "measured"
    elif decision.verdict == "exact":
        # nothing was left to chance, so the cap hides nothing either: the whole loss must be within the margin
        verdict, holds = "exact", math.fsum(x) / len(x) < terms.margin
    elif decision.verdict == "certified":
        verdict, holds = "certified", True
        if terms.printed_alpha == terms.alpha:
            # two readings of one process: the last bits of the root must not contradict the verdict
            bound = min(bound, terms.margin)
    else:
        verdict = "exhausted" if decision.verdict == "continue" else decision.verdict
    share = tail_bound(above, alpha=terms.tail_alpha, population=terms.population) if terms.tail_alpha else 0.0
    claim = Claim(
        budget=budget,
        metric=metric.name,
        score_unit=measurement.unit,
        holds=holds,
        verdict=verdict,
        scope=scope,
        counted=counted,
        rule=engine.name,
        anytime=engine.validity.anytime,
        terms=terms,
        scored=len(x),
        estimate=math.fsum(x) / len(x),
        bound=bound,
        log_wealth=min(decision.log_wealth, sys.float_info.max),  # JSON has no infinity
        above_cap=int(above.sum()),
        tail_bound=share,
        statement="",
        slices=slices(x, terms, engine, measurement.documents, labels, sizes or {}),
    )
    return replace(claim, statement=state(claim, metric, uncapped(claim, measurement, metric)))


def combine(
    claims: Sequence[Claim], *, opening: Opening, noise_floor: Mapping[str, float], fingerprints: Mapping[str, str]
) -> Certificate:
    """Put claims together: the gate opens when every limit is certified (intersection-union, no correction).

    Source: Berger. Multiparameter hypothesis testing and acceptance sampling. Technometrics 1982 (intersection-union).
    """
    limits = [claim for claim in claims if claim.budget.is_claim]
    return Certificate(
        claims=tuple(claims), holds=bool(limits) and all(claim.holds for claim in limits), opening=opening,
        noise_floor=dict(noise_floor), fingerprints=dict(fingerprints), statement=state_all(claims, opening),
    )  # fmt: skip


def uncapped(claim: Claim, measurement: Measurement, metric: Metric) -> tuple[float, bool] | None:
    """Bound of the mean with nothing capped, and whether it is exact.

    With an absolute limit C the two exact pieces add up: mean <= bound + (C - cap) * tail. Without one, no method can
    exclude a rare enormous loss, and the clustered t bound is printed as approximate. None when there is nothing to
    add, or too few documents for it.
    """
    terms = claim.terms
    if claim.verdict == "exact" or claim.scored == terms.population or terms.tail_alpha == 0:
        return None
    if metric.upper is not None:
        return min(claim.bound + (metric.upper - terms.cap) * claim.tail_bound, metric.upper), True
    sums, counts = by_document(measurement.degradation, measurement.documents)
    if len(sums) < LEAST_DOCUMENTS:
        return None
    return clustered_bound(sums, counts, 1 - terms.printed_alpha)[2], False


def _bound(
    engine: Engine, x: Array, terms: Terms, documents: NDArray[np.int64], decisive: int, *, exact: bool
) -> float:
    bound = engine.bound(x, terms, terms.printed_alpha, documents=documents)
    if not exact and decisive and isinstance(engine, AnytimeEngine):
        # the bound holds at every time at once, so the unit where the evidence peaked may be chosen afterwards
        bound = min(bound, engine.bound(x[:decisive], terms, terms.printed_alpha, documents=documents[:decisive]))
    return bound


def slices(
    x: Array,
    terms: Terms,
    engine: Engine,
    documents: NDArray[np.int64],
    labels: Sequence[str],
    sizes: Mapping[str, int],
) -> tuple[Slice, ...]:
    """The claim group by group, the weakest bound first.

    Units are drawn in a random order, so those of one group are a random sample of the group, in a random order too.
    A group that was scored in full is known: its own mean, uncapped, stands in the place of both bounds.

    Args:
        x: degradation of each unit scored `[n]`.
        terms: of the claim.
        engine: the bound.
        documents: of each unit scored `[n]`.
        labels: of each unit scored `[n]`; none for no groups.
        sizes: units in the population by group, those of which no unit was scored included.

    Raises:
        InvalidMeasurement: not one label a unit.
    """
    if not sizes:
        return ()
    if len(labels) != len(x):
        raise InvalidMeasurement(f"{len(labels)} labels for {len(x)} units", expected="one label a unit", site="groups")
    of, found = np.asarray(labels), []
    for name, size in sizes.items():
        chosen = of == name
        mine, where = x[chosen], documents[chosen]
        group = group_terms(terms, size)
        level = terms.printed_alpha
        if len(mine) and len(mine) == group.population:
            mean = bound = alone = math.fsum(mine) / len(mine)
        elif len(mine):
            mean = math.fsum(mine) / len(mine)
            bound, alone = (engine.bound(mine, group, alpha, documents=where) for alpha in (level / len(sizes), level))
        else:
            mean, bound, alone = 0.0, terms.cap, terms.cap
        verdict = decide(mine, group, where, engine).verdict
        holds = verdict == "certified" or (verdict == "exact" and mean < terms.margin)
        found.append(
            Slice(
                group=name, holds=holds, scored=len(mine), population=group.population, estimate=mean, bound=bound,
                alone=alone,
            )
        )  # fmt: skip
    return tuple(sorted(found, key=lambda part: (-part.bound, part.group)))


def group_terms(terms: Terms, size: int) -> Terms:
    """Terms of one group of so many units."""
    return replace(terms, population=None if terms.population is None else size, n_max=size)


def degradations(measurement: Measurement, metric: Metric) -> Array:
    """Degradation of each unit `[n]`, within the limits that the metric declares.

    Raises:
        InvalidMeasurement: another metric was measured, or a value leaves the limits by more than rounding.
    """
    if measurement.metric != metric.name:
        raise InvalidMeasurement(
            f"{measurement.metric} was measured and {metric.name} is to be certified",
            expected=f"scores of {metric.name}", mend=f"measure {metric.name}", site="certification",
        )  # fmt: skip
    x = measurement.degradation
    lower = -math.inf if metric.lower is None else metric.lower
    upper = math.inf if metric.upper is None else metric.upper
    if len(x) and (x.min() < lower - ROUNDING or x.max() > upper + ROUNDING):
        raise InvalidMeasurement(
            f"degradations from {x.min():g} to {x.max():g} leave the range of {metric.name}",
            expected=f"values from {lower:g} to {upper:g}", mend="mend the metric, or declare the range it has",
            site="certification",
        )  # fmt: skip
    return np.clip(x, lower, upper)


def _check(measurement: Measurement, budget: Budget, terms: Terms) -> None:
    if budget.is_claim and budget.metric.partition("(")[0] != measurement.metric:
        raise InvalidMeasurement(
            f"{measurement.metric} was measured and a limit on {budget.metric} is to be certified",
            expected=f"scores of {budget.metric}", mend=f"measure {budget.metric}", site="certification",
        )  # fmt: skip
    if budget.is_claim and terms.margin > budget.margin:
        raise InvalidBudget(
            f"the terms claim a margin of {terms.margin!r}, the budget allows {budget.margin!r}",
            expected="terms chosen for this budget",
            mend="choose the terms again with choose_terms",
            site="certification",
        )
    spent = max(terms.alpha, terms.printed_alpha)  # the test of the margin, or the bound: neither may have more
    if spent + terms.tail_alpha > (1 - budget.confidence) * (1 + 1e-9):
        raise InvalidBudget(
            f"error levels {spent:g} and {terms.tail_alpha:g} add up to more than the confidence of "
            f"{budget.confidence:g} leaves",
            expected="levels that add up to one less the confidence",
            mend="choose the terms again with choose_terms",
            site="certification",
        )
    if len(measurement.drawn) == 0:
        raise InvalidMeasurement("no unit was scored", expected="one unit or more", site="certification")
    if terms.population is not None and len(np.unique(measurement.drawn)) < len(measurement.drawn):
        raise InvalidMeasurement(
            "a unit was scored twice",
            expected="units drawn without replacement",
            mend="draw them with a permutation",
            site="certification",
        )
