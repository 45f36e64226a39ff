"""What is fixed before a certification split is opened: the bound, the levels, the terms, and the order of drawing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pennyweight.budget import Measurement, Opening, Terms
from pennyweight.errors import InvalidBudget, InvalidMeasurement
from pennyweight.flow.certifying import evidence
from pennyweight.flow.certifying.claims import Asked
from pennyweight.flow.certifying.populations import Population
from pennyweight.methods.certification import choose_terms, smallest_margin
from pennyweight.methods.certification.clustered import LEAST_DOCUMENTS
from pennyweight.methods.certification.engine import Engine
from pennyweight.numerics.hashing import of_value

UNCLAIMED_UNITS = 128  # units scored when no margin is claimed: enough for a bound worth printing
ASSUMED_FLIPS = 0.02  # of questions, when no pilot was scored; a wrong guess costs units, never validity
Pilot = Mapping[str, Measurement]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How claims are judged; fixed before the certification split is opened.

    Args:
        engine: the bound.
        scope: `corpus`, `source` or `asymptotic`.
        opening: of the text: its number and the error level it leaves.
        salt: declared part of the order's seed.
        groups: field by which claims are repeated, or None.
        most: units to score at most, or None for as many as the terms allow; fewer can lose a certificate, never make
            a false one.
        noise_floor: by metric.
        numbers: of the opening of each population by itself, where there are several.
        ledgers: what the ledger of openings counts each population by; empty in certificates from before orders
            depended on it.
    """

    engine: Engine
    scope: str = "corpus"
    opening: Opening
    salt: str = ""
    groups: str | None = None
    most: int | None = None
    noise_floor: Mapping[str, float] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)
    ledgers: Mapping[str, str] = field(default_factory=dict)


def terms_for(asked: Asked, pilot: Pilot | None, rules: Rules, *, size: int, discrete: bool, claims: int) -> Terms:
    """Fix the terms of a claim from the selection split; without a margin to claim, terms that give a tight bound.

    Args:
        asked: the claim.
        pilot: scores on the selection split, or None: then a rate of flips is assumed.
        rules: how it is judged.
        size: units in the population, or documents where those are the units.
        discrete: whether a unit is one question.
        claims: bounds printed together.

    Raises:
        InfeasibleBudget: the units there are cannot carry the claim.
        InvalidBudget: the margin is below the noise floor, or means nothing.
    """
    metric, budget = asked.metric, asked.budget
    x = _assumed(metric.lower) if pilot is None else pilot[metric.name].degradation
    confidence = 1 - rules.opening.alpha
    population = size if rules.scope == "corpus" else None
    if budget.is_claim:
        _above_noise(asked, rules.noise_floor.get(metric.name, 0.0))
        margin = budget.margin
    else:
        count = min(rules.most or UNCLAIMED_UNITS, size)
        margin = smallest_margin(x, max(count, 20), rules.opening.alpha)
        if not math.isfinite(margin):  # a late opening leaves so little level that these units can carry no margin
            margin = float(x.mean() + 2 * x.std())
        margin = max(margin, 1e-6)
    if rules.scope == "asymptotic":  # nothing is planned: every unit is scored, and the bound is read once
        mean, sd = float(x.mean()), float(x.std(ddof=1))
        alpha = rules.opening.alpha
        terms = Terms(
            margin=margin, cap=max(2 * float(x.max()), 5 * margin), pilot_mean=mean, pilot_sd=sd, alpha=alpha,
            tail_alpha=0.0, population=None, n_max=size, floor=metric.lower,
            bound_alpha=None if claims == 1 else alpha / claims, scope="asymptotic",
        )  # fmt: skip
    else:
        terms = choose_terms(
            x, margin, confidence=confidence, population=population, lower=metric.lower, upper=metric.upper,
            discrete=discrete, claims=claims, scope=rules.scope,
            available=size if budget.is_claim and population is None else None,  # nothing claimed, nothing to refuse
        )  # fmt: skip
    if not rules.engine.validity.anytime:
        terms = replace(terms, n_max=size)
    most = size if rules.most is None else rules.most
    if not budget.is_claim:
        most = min(most, UNCLAIMED_UNITS if rules.most is None else rules.most)
    return replace(terms, n_max=min(terms.n_max, most))


def lot_of(asked: Sequence[Asked], pilot: Pilot | None, rules: Rules, on: str = "") -> str:
    """Hash of all that a verdict on one population follows from, beside its units and the candidate's weights.

    It is part of the order's seed, so an order whose scores are known comes back only together with the verdict that
    is known as well. The ledger sees to that by the number of the opening, as long as it is there: whoever deletes it,
    goes to another machine or changes the reference a little starts at the full level again, but in a new order.

    Args:
        asked: every claim; those on other populations do not matter here.
        pilot: scores that the claims on this population are planned with.
        rules: how claims are judged.
        on: path of the task as the budgets name it; empty for the text.

    Returns:
        The hash, or nothing where the rules name no ledger.
    """
    if on not in rules.ledgers:
        return ""
    # not the label: it holds the path of the task, and a renamed file is no other task
    limits = [[one.metric.name, one.budget.at_most, one.budget.unit] for one in asked if one.on == on]
    planned = None if pilot is None else next(iter(pilot.values())).fingerprint
    judged = [rules.opening.alpha, rules.engine.name, rules.scope, rules.groups, rules.most]
    return of_value([rules.ledgers[on], limits, planned, judged])


def drawn_order(
    size: int,
    fingerprint: str,
    documents: NDArray[np.int64],
    weights: str,
    rules: Rules,
    on: str = "",
    lot: str = "",
) -> tuple[int, NDArray[np.int64]]:
    """The random order of a population's units and its seed; in the scope source, one unit of each document.

    A later opening draws an order of its own. In the old one the scores are known, and whoever then picks the limit
    that came closest has had many chances for the level of one. For openings that the ledger cannot see there is
    `lot_of`.
    """
    number = rules.numbers.get(on, rules.opening.number)
    salt = rules.salt if number == 1 else f"{rules.salt} opening {number}"
    seed, order = evidence.random_order(size, fingerprint, weights, salt, lot)
    return seed, evidence.first_of_each(order, documents) if rules.scope == "source" else order


def common_terms(
    asked: Sequence[Asked], pilot: Pilot | None, rules: Rules, *, size: int, discrete: bool, claims: int
) -> list[Terms]:
    """Terms of several claims on one population: all may go on as long as the most patient one."""
    terms = [terms_for(one, pilot, rules, size=size, discrete=discrete, claims=claims) for one in asked]
    limits = [term for one, term in zip(asked, terms, strict=True) if one.budget.is_claim] or terms
    n_max = max(term.n_max for term in limits)
    return [replace(term, n_max=n_max) for term in terms]


def units_of(population: Population, scope: str) -> int:
    """Units that a claim can use: in the scope source one of each document, for units of one document are alike."""
    if scope != "source":
        return len(population)
    documents = population.independent
    return len(np.unique(documents[documents >= 0]))


def check_feasible(
    asked: Sequence[Asked], populations: Sequence[Population], pilots: Mapping[str, Pilot], rules: Rules, total: float
) -> None:
    """Refuse what the units there are cannot carry before a text is opened, for an opening costs error level.

    Args:
        asked: every claim.
        populations: of the certification split.
        pilots: scores on the selection split, by population.
        rules: how claims will be judged.
        total: error level of a first opening; a later one has less, and may still be refused.

    Raises:
        InfeasibleBudget: as `terms_for`.
        InvalidBudget: as `terms_for`.
        InvalidMeasurement: a group has too few documents for the bound.
    """
    first = replace(rules, opening=Opening(number=1, alpha=total, spent=total))
    for population in populations:
        size = units_of(population, rules.scope)
        mine = [one for one in asked if one.on == population.on]
        if rules.groups:
            check_groups(population, np.arange(len(population)), population.labels(rules.groups), rules)
        common_terms(mine, pilots.get(population.on), first, size=size, discrete=population.discrete, claims=len(asked))


def check_groups(population: Population, units: NDArray[np.int64], labels: Sequence[str], rules: Rules) -> None:
    """Refuse groups of too few documents for a bound that needs many, before they are scored.

    Raises:
        InvalidMeasurement: names the first.
    """
    if rules.engine.validity.values != "any":
        return
    of, documents = np.asarray(labels)[units], population.documents[units]
    for name in Counter(labels):
        count = len(np.unique(documents[of == name]))
        if count < LEAST_DOCUMENTS:
            raise InvalidMeasurement(
                f"group {name!r} has {count} documents, too few for {rules.engine.name}",
                expected=f"{LEAST_DOCUMENTS} documents or more in every group",
                mend="join small groups, leave --groups out, or use --scope corpus", site=population.on or "text",
            )  # fmt: skip


def check_noise(asked: Sequence[Asked], floor: Mapping[str, float]) -> None:
    """Refuse limits below what the model differs from itself by.

    Raises:
        InvalidBudget: names the first.
    """
    for one in asked:
        if one.budget.is_claim:
            _above_noise(one, floor.get(one.metric.name, 0.0))


def _above_noise(asked: Asked, floor: float) -> None:
    if asked.budget.margin <= floor:
        raise InvalidBudget(
            f"a margin of {asked.budget.margin:.3g} {asked.metric.unit} means nothing: the model differs from itself "
            f"by {floor:.3g} under another batch shape, thread count or dtype",
            expected=f"a limit above {floor:.3g} {asked.metric.unit}", mend="allow more",
            site=f"--lose {asked.budget.label!r}",
        )  # fmt: skip


def _assumed(lower: float | None) -> NDArray[np.float64]:
    """Two values with the mean and deviation of an assumed share of flips: no drop, or all of them for the worse."""
    mean = 0.0 if lower is not None and lower < 0 else ASSUMED_FLIPS
    spread = (ASSUMED_FLIPS - mean**2) ** 0.5 / 2**0.5  # of two values, their distance is sqrt(2) deviations
    return np.array([mean - spread, mean + spread])
