"""When to stop scoring: certified, exact, futile, exhausted, or go on.

Only `certified` and `exact` make a claim, and both hold under every stopping rule: the rule of thumb for futility can
cost a certificate, never a false one. A bound for a number of units fixed beforehand is another matter: it is printed
too, for this claim and for those beside it, so nothing may end before that number, futility included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pennyweight.budget import Terms
from pennyweight.methods.certification.clustered import by_document, clustered_bound
from pennyweight.methods.certification.engine import AnytimeEngine, Engine
from pennyweight.methods.certification.planned_mixture import PlannedMixture

LEAST_UNITS = 40  # windows below which no standard error is trusted
FUTILE_ERRORS = 2.0  # standard errors above the margin after which going on is not worth it


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Where the evidence stands.

    Args:
        verdict: `certified`, `exact` (every window of the population was scored), `futile`, `exhausted` or `continue`.
        scored: windows scored.
        mean: mean of their capped degradations.
        log_wealth: largest log wealth at the margin so far; certified when it reaches log(1 / alpha).
        decisive: windows after which the wealth was largest; 0 if it never was above 1.
    """

    verdict: str
    scored: int
    mean: float
    log_wealth: float
    decisive: int


def decide(
    x: NDArray[np.float64], terms: Terms, documents: NDArray[np.int64] | None = None, engine: Engine | None = None
) -> Decision:
    """Judge all degradations so far.

    Args:
        x: degradation of each unit scored so far, in the order they were drawn `[n]`.
        terms: fixed before the first of them was seen.
        documents: document of each unit `[n]`; units of one document are then taken as dependent for futility.
        engine: the bound to decide by; one that is valid for a fixed number of units decides at `n_max` alone.

    Raises:
        InvalidMeasurement: a value is not finite, or there are more than the population holds.
        InvalidBudget: the terms leave nothing to bet on.
    """
    engine = engine or PlannedMixture()
    anytime = isinstance(engine, AnytimeEngine)
    capped = np.minimum(np.asarray(x, dtype=np.float64), terms.cap)
    log_wealth, best = 0.0, -1
    if isinstance(engine, AnytimeEngine):
        path = engine.path(x, terms)
        # Ville bounds the largest wealth ever held, so a batch that ends after the decisive unit loses nothing
        best = int(path.argmax()) if len(path) and path.max() > 0 else -1
        log_wealth = float(path[best]) if best >= 0 else 0.0
        certified = log_wealth >= -math.log(terms.alpha)
    else:
        certified = len(capped) >= terms.n_max and engine.bound(x, terms, documents=documents) < terms.margin
    mean = math.fsum(capped) / len(capped) if len(capped) else math.nan
    if terms.population is not None and len(capped) == terms.population:
        verdict = "exact"  # first: the value itself is known now, whatever the wealth was on the way
    elif certified:
        verdict = "certified"
    elif (anytime or len(capped) >= terms.n_max) and _is_futile(capped, terms.margin, documents):
        verdict = "futile"
    elif len(capped) >= terms.n_max:
        verdict = "exhausted"
    else:
        verdict = "continue"
    return Decision(verdict=verdict, scored=len(capped), mean=mean, log_wealth=log_wealth, decisive=best + 1)


def _is_futile(capped: NDArray[np.float64], margin: float, documents: NDArray[np.int64] | None) -> bool:
    if len(capped) < LEAST_UNITS:
        return False
    groups = np.arange(len(capped)) if documents is None else np.asarray(documents)
    sums, counts = by_document(capped, groups)
    if len(sums) < 2:  # one document: its windows are all there is to judge the spread by
        sums, counts = capped, np.ones(len(capped))
    mean, error, _ = clustered_bound(sums, counts, 0.5)
    return mean - FUTILE_ERRORS * error > margin
