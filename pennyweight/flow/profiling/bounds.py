"""Intervals and bounds of a profile: for the source of the units, and for the very text they were drawn from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pennyweight.budget import Measurement, Terms
from pennyweight.errors import UnknownName
from pennyweight.flow.certifying.populations import Population
from pennyweight.flow.profiling.values import FEW, Change, Group, Groups, Interval, Tail
from pennyweight.methods.certification import (
    PlannedMixture,
    by_document,
    choose_cap,
    clustered_bound,
    smallest_margin,
)
from pennyweight.methods.certification.clustered import LEAST_DOCUMENTS
from pennyweight.methods.multiplicity import WorstGroup, spread
from pennyweight.methods.probability import ExpectedShortfall
from pennyweight.promises import Metric

Array = NDArray[np.float64]

PILOT_SHARE = 5  # one in so many of the units scored plans the bound
PILOT_MOST = 64  # units that plan it at most
TAIL = 0.05  # share of the windows that counts as the worst
TINY = 1e-6  # smallest cap, in the unit of the metric: two equal models leave nothing to plan with


@dataclass(frozen=True, kw_only=True, eq=False)
class CorpusBound:
    """Exact upper bounds of the mean of a finite set, from some of its units in random order.

    The first units drawn plan the bets and the cap and are then known exactly; the rest is a random order of what is
    left, so that the bound of its mean and the known part add up to a bound of the whole.

    Args:
        x: degradation of each unit scored, in the order drawn `[n]`.
        size: units there are.
        pilot: how many of the units scored came first and planned.
        cap: largest degradation that is counted in full; infinite where every unit was scored.
        alpha: error level the bets are planned for.
    """

    x: Array
    size: int
    pilot: int
    cap: float
    alpha: float

    @property
    def complete(self) -> bool:
        """Whether every unit was scored."""
        return len(self.x) == self.size

    def mean(self, chosen: NDArray[np.bool_], size: int, alpha: float) -> float:
        """Upper bound, at level alpha, of the capped mean of one group.

        Args:
            chosen: the units scored that are of the group `[n]`.
            size: units of the group there are; a random order of all is a random order of these.
            alpha: error level of this bound alone.

        Returns:
            The mean itself if all units of the group were scored; infinity where there is no plan.
        """
        known, rest = self.x[: self.pilot][chosen[: self.pilot]], self.x[self.pilot :][chosen[self.pilot :]]
        if len(known) + len(rest) == size:
            return math.fsum(self.x[chosen]) / size
        if self.pilot == 0:
            return math.inf
        left = size - len(known)
        terms = _terms(self.x[: self.pilot], len(rest), self.cap, alpha, left)
        bound = PlannedMixture().bound(rest, terms, alpha)
        return (math.fsum(np.minimum(known, self.cap)) + left * bound) / size


def corpus_bound(x: Array, size: int, metric: Metric, alpha: float, *, discrete: bool) -> CorpusBound:
    """Plan the bounds of a finite set from the units that were drawn first.

    Args:
        x: degradation of each unit scored, in the random order they were drawn `[n]`.
        size: units there are.
        metric: its upper limit replaces the cap where it is lower.
        alpha: error level that is to be spent.
        discrete: whether a unit is one question: the cap is then the limit itself.
    """
    pilot = min(PILOT_MOST, len(x) // PILOT_SHARE)
    if len(x) == size or pilot < 2:
        return CorpusBound(x=x, size=size, pilot=0, cap=math.inf, alpha=alpha)
    first = x[:pilot]
    margin = smallest_margin(first, len(x) - pilot, alpha)
    if not math.isfinite(margin):
        margin = float(first.mean() + 2 * first.std())
    cap = max(choose_cap(first, margin), 4 * float(first.std()), TINY)
    if metric.upper is not None and (discrete or cap >= metric.upper):
        cap = metric.upper
    return CorpusBound(x=x, size=size, pilot=pilot, cap=cap, alpha=alpha)


def _terms(pilot: Array, units: int, cap: float, alpha: float, population: int) -> Terms:
    """Terms that plan the bets for the smallest margin that so many units can carry; nothing is claimed of it."""
    mean, sd = float(pilot.mean()), float(pilot.std(ddof=1))
    margin = smallest_at_cap(mean, sd, units, alpha, cap)
    if not margin < cap:
        margin = (min(mean, cap) + cap) / 2
    return Terms(
        margin=margin, cap=cap, pilot_mean=mean, pilot_sd=sd, alpha=alpha, tail_alpha=0.0, population=population,
        n_max=population,
    )  # fmt: skip


def smallest_at_cap(mean: float, sd: float, units: int, alpha: float, cap: float) -> float:
    """Smallest margin that so many units can be expected to certify when the cap is fixed; infinite if none is.

    The margin is the mean plus the gap g with units = log(1/alpha) (2 sd^2 / g^2 + (cap - mean - g) / g), the number of
    units that the bets need on average.

    Args:
        mean: expected degradation of a unit.
        sd: its standard deviation.
        units: there are, >= 0.
        alpha: error level.
        cap: largest degradation that is counted in full.
    """
    price, room = -math.log(alpha), cap - mean
    if room <= 0:
        return math.inf
    # (units + price) g^2 - price room g - 2 price sd^2 = 0
    root = math.sqrt((price * room) ** 2 + 8 * (units + price) * price * sd**2)
    margin = mean + (price * room + root) / (2 * (units + price))
    return margin if margin < cap else math.inf


@dataclass(frozen=True, kw_only=True)
class Spread:
    """What documents, as clusters, say of a mean.

    Args:
        error: standard error; None with fewer than two documents.
        upper: one-sided upper bound, approximate; None likewise.
        interval: two-sided; None where there are too few documents to trust it.
        note: why not.
    """

    error: float | None = None
    upper: float | None = None
    interval: Interval | None = None
    note: str = ""


def clustered(x: Array, documents: NDArray[np.int64], confidence: float) -> Spread:
    """Standard error and interval of a mean `[n]` with one document a unit `[n]`."""
    sums, counts = by_document(x, documents)
    if len(sums) < 2:
        return Spread(note="no interval: one document says nothing of how documents differ")
    upper = clustered_bound(sums, counts, confidence)[2]
    mean, error, high = clustered_bound(sums, counts, (1 + confidence) / 2)
    if len(sums) < LEAST_DOCUMENTS:
        note = f"no interval: {len(sums)} documents are too few, {LEAST_DOCUMENTS} are needed"
        return Spread(error=error, upper=upper, note=note)
    found = Interval(low=2 * mean - high, high=high, confidence=confidence, rule="clustered-t", exact=False)
    return Spread(error=error, upper=upper, interval=found)


def change(
    measured: Measurement, metric: Metric, size: int, confidence: float, *, discrete: bool, noise: float | None = None
) -> Change:
    """One metric on the units scored, in the random order they were drawn."""
    x = measured.degradation
    spread_of = clustered(x, measured.documents, confidence)
    note = spread_of.note
    plan = corpus_bound(x, size, metric, 1 - confidence, discrete=discrete)
    bound = plan.mean(np.ones(len(x), dtype=bool), size, 1 - confidence)
    if math.isinf(bound):
        note = "; ".join(part for part in (note, "no exact bound: too few units to plan one") if part)
    worst = int(np.argmax(x))
    both = metric.lower != 0.0  # a divergence is zero for the reference itself: there is nothing to show
    return Change(
        metric=metric.name, unit=measured.unit, percent=metric.percent,
        before=float(measured.reference.mean()) if both else None,
        after=float(measured.compressed.mean()) if both else None, degradation=math.fsum(x) / len(x),
        standard_error=spread_of.error, upper_approximate=spread_of.upper, interval=spread_of.interval,
        complete=plan.complete, bound=finite(bound), cap=finite(plan.cap),
        above_cap=int((x > plan.cap).sum()), largest=float(x[worst]), largest_unit=int(measured.drawn[worst]),
        noise=noise, note=note,
    )  # fmt: skip


def labels_of(populations: Sequence[Population], field: str | None) -> list[tuple[str, ...] | None]:
    """Labels of the units of every population `[n]`; None where a population has no such field.

    Raises:
        UnknownName: no population has it.
    """
    found: list[tuple[str, ...] | None] = []
    missing: UnknownName | None = None
    for population in populations:
        try:
            found.append(None if field is None else population.labels(field))
        except UnknownName as error:
            missing = error
            found.append(None)
    if missing is not None and not any(found):
        raise missing
    return found


def grouped(
    measured: Measurement, metric: Metric, labels: Sequence[str], field: str, confidence: float, *, discrete: bool
) -> Groups:
    """One metric group by group, with bounds that hold together for the text or task itself.

    Args:
        measured: units scored, in the random order they were drawn.
        metric: what was measured.
        labels: group of every unit there is, scored or not.
        field: what the labels are.
        confidence: of all bounds together, and of the worst group's.
        discrete: whether a unit is one question.
    """
    x, of, sizes = measured.degradation, np.asarray(labels)[measured.drawn], Counter(labels)
    plan = corpus_bound(x, len(labels), metric, 1 - confidence, discrete=discrete)
    names = sorted(sizes)
    bounds = WorstGroup().bounds(names, lambda name, level: plan.mean(of == name, sizes[name], level), 1 - confidence)
    groups = []
    for name, alone, together in zip(names, bounds.single, bounds.simultaneous, strict=True):
        mine, both = of == name, metric.lower == -1.0
        scored = int(mine.sum())
        groups.append(
            Group(
                name=name, scored=scored, units=sizes[name],
                before=1 - float(measured.reference[mine].mean()) if both and scored else None,
                after=1 - float(measured.compressed[mine].mean()) if both and scored else None,
                degradation=float(x[mine].mean()) if scored else None, bound=finite(together), alone=finite(alone),
                few=scored < FEW,
            )
        )  # fmt: skip
    seen = [group for group in groups if group.degradation is not None]
    before, after = ([getattr(g, side) for g in seen if getattr(g, side) is not None] for side in ("before", "after"))
    notes = ["" if plan.complete or plan.pilot else "no bounds: too few units to plan them"]
    notes.append("" if len(seen) == len(groups) else f"{len(groups) - len(seen)} groups have no unit that was scored")
    return Groups(
        field=field, metric=metric.name, unit=measured.unit, percent=metric.percent,
        groups=tuple(sorted(groups, key=lambda g: (-math.inf if g.bound is None else -g.bound, g.name))),
        worst=bounds.worst if math.isfinite(bounds.worst_bound) else None, worst_bound=finite(bounds.worst_bound),
        confidence=confidence, rule="exact" if plan.complete else PlannedMixture.name, scope="corpus",
        cap=finite(plan.cap), spread=spread(np.array([group.degradation for group in seen])),
        equity_before=_equity(1 - float(measured.reference.mean()), before),
        equity_after=_equity(1 - float(measured.compressed.mean()), after),
        note="; ".join(filter(None, notes)),
    )  # fmt: skip


def worst_windows(measured: Measurement, metric: Metric, size: int, confidence: float) -> Tail:
    """Mean degradation of the worst twentieth of the windows, which bounds every group that is not smaller.

    The bound needs limits of the metric and independent windows, so it is given only where each window is a document of
    its own.
    """
    x, note, bound = measured.degradation, "", None
    # the estimate does not depend on the limits; these leave room where all windows lose the same
    low, cap = float(x.min()) - 1.0, float(x.max()) + 1.0
    estimate = ExpectedShortfall(share=TAIL).measure(x, low=low, cap=cap).estimate
    if len(x) == size:
        note = "exact for the text itself: all windows were scored"
    elif metric.lower is None or metric.upper is None:
        note = f"no bound: nothing limits {metric.name} in one window"
    elif len(np.unique(measured.documents)) < len(x):
        note = "no bound: windows of one document depend on each other"
    else:
        method = ExpectedShortfall(share=TAIL, confidence=max(confidence, 0.5))
        inside = np.clip(x, metric.lower, metric.upper)
        bound = method.measure(inside, low=metric.lower, cap=metric.upper).bound
    return Tail(
        metric=metric.name, unit=measured.unit, percent=metric.percent, share=TAIL, estimate=estimate, bound=bound,
        note=note,
    )  # fmt: skip


def finite(value: float) -> float | None:
    """A number for JSON, which has no infinity."""
    return float(value) if math.isfinite(value) else None


def _equity(overall: float, scores: Sequence[float]) -> float | None:
    return WorstGroup().equity_scaled(overall, np.array(scores)) if scores else None
