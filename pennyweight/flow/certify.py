"""Open the certification split for one candidate: score batches in random order until every answer is sure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pennyweight.budget import Certificate, Claim, Measurement, Opening, Terms
from pennyweight.errors import InvalidBudget, InvalidMeasurement
from pennyweight.flow import evidence
from pennyweight.flow.claims import Asked, text_metrics
from pennyweight.flow.journal import Journal
from pennyweight.flow.populations import Population
from pennyweight.flow.progress import QUIET, Progress
from pennyweight.methods.certification import certify as judge
from pennyweight.methods.certification import choose_terms, combine, decide, degradations, group_terms, smallest_margin
from pennyweight.methods.certification.clustered import LEAST_DOCUMENTS
from pennyweight.methods.certification.engine import Engine
from pennyweight.network.network import Network

UNCLAIMED_UNITS = 128  # units scored when no margin is claimed: enough for a bound worth printing
LEAST_GROUP = 30  # units of a group below which no more are scored for its sake
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
    """

    engine: Engine
    scope: str = "corpus"
    opening: Opening
    salt: str = ""
    groups: str | None = None
    most: int | None = None
    noise_floor: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """Scores of one population, and what is needed to judge them again.

    Args:
        on: path of the task as the budget names it; empty for the text.
        counted: what a unit is.
        words: what the population is.
        size: units in it.
        discrete: whether a unit is one question.
        fingerprint: of the population.
        documents: of every unit of the population, where the scope needs them.
        labels: of every unit of the population, if groups were asked for.
        pilot: scores of the selection split, or None.
        scored: scores in the order drawn.
    """

    on: str
    counted: str
    words: str
    size: int
    discrete: bool
    fingerprint: str
    documents: tuple[int, ...]
    labels: tuple[str, ...]
    pilot: Pilot | None
    scored: Pilot


@dataclass(frozen=True)
class Judged:
    """One candidate's certificate and the evidence behind it."""

    certificate: Certificate
    evidence: tuple[Evidence, ...]

    @property
    def text(self) -> Pilot | None:
        """Scores on the text, if there is one."""
        return next((part.scored for part in self.evidence if part.on == ""), None)


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
        margin = max(smallest_margin(x, max(count, 20), rules.opening.alpha), 1e-6)
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
            discrete=discrete, claims=claims, scope=rules.scope, available=None if population else size,
        )  # fmt: skip
    if not rules.engine.validity.anytime:
        terms = replace(terms, n_max=size)
    most = size if rules.most is None else rules.most
    if not budget.is_claim:
        most = min(most, UNCLAIMED_UNITS if rules.most is None else rules.most)
    return replace(terms, n_max=min(terms.n_max, most))


def drawn_order(size: int, fingerprint: str, documents: NDArray[np.int64], weights: str, rules: Rules) -> tuple[
    int, NDArray[np.int64]
]:  # fmt: skip
    """The random order of a population's units and its seed; in the scope source, one unit of each document.

    A later opening draws an order of its own. In the old one the scores are known, and whoever then picks the limit
    that came closest has had many chances for the level of one.
    """
    number = rules.opening.number
    salt = rules.salt if number == 1 else f"{rules.salt} opening {number}"
    seed, order = evidence.random_order(size, fingerprint, weights, salt)
    return seed, evidence.first_of_each(order, documents) if rules.scope == "source" else order


def judge_population(
    key: str,
    asked: Sequence[Asked],
    population: Population,
    pilot: Pilot | None,
    reference: Network,
    candidate: Network,
    journal: Journal,
    rules: Rules,
    *,
    weights: str,
    claims: int,
    progress: Progress = QUIET,
) -> Evidence:
    """Score a frozen candidate on one population until all claims are certified, one is hopeless, or units run out.

    Args:
        key: folder of the evidence in the journal; finished batches are not scored again.
        asked: the claims on this population.
        population: of the certification split.
        pilot: scores on the selection split.
        reference: the model handed in.
        candidate: the model after, read from its files.
        journal: of the run.
        rules: how claims are judged.
        weights: hash of the candidate's weights; part of the order's seed.
        claims: bounds printed together.
        progress: told about every unit.
    """
    _, order = drawn_order(len(population), population.fingerprint, population.documents, weights, rules)
    terms = common_terms(asked, pilot, rules, size=len(order), discrete=population.discrete, claims=claims)
    scorer = population.scorer(reference, candidate, journal, text_metrics(asked))
    n_max = max(term.n_max for term in terms)
    labels = population.labels(rules.groups) if rules.groups else ()
    if labels:  # a small group may need the whole of itself, so everything may be scored
        n_max = min(len(order), rules.most or len(order))
        _check_groups(population, order[:n_max], labels, rules)
    parts: list[dict[str, Any]] = []
    with progress.stage(f"certifying on {population.counted}", n_max) as advance:
        for start in range(0, n_max, scorer.batch):
            piece, chosen = f"{key}/{start:06d}.json", order[start : min(start + scorer.batch, n_max)]
            # a ledger that was lost meanwhile makes this another opening, with another order
            if not journal.has(piece) or journal.load(piece)["drawn"] != chosen.tolist():
                journal.save(piece, evidence.to_values(scorer.score(chosen)))
            parts.append(journal.load(piece))
            advance(scorer.batch)
            scored = evidence.from_values(evidence.join(parts))
            if _settled(asked, terms, scored, rules.engine, labels):
                break
    source = rules.scope == "source"
    return Evidence(
        on=population.on, counted=population.counted, words=population.words, size=len(population),
        discrete=population.discrete, fingerprint=population.fingerprint,
        documents=tuple(population.documents.tolist()) if source else (),
        labels=labels,
        pilot=pilot, scored=evidence.from_values(evidence.join(parts)),
    )  # fmt: skip


def common_terms(
    asked: Sequence[Asked], pilot: Pilot | None, rules: Rules, *, size: int, discrete: bool, claims: int
) -> list[Terms]:
    """Terms of several claims on one population: all may go on as long as the most patient one."""
    terms = [terms_for(one, pilot, rules, size=size, discrete=discrete, claims=claims) for one in asked]
    limits = [term for one, term in zip(asked, terms, strict=True) if one.budget.is_claim] or terms
    n_max = max(term.n_max for term in limits)
    return [replace(term, n_max=n_max) for term in terms]


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
        size = len(np.unique(population.documents)) if rules.scope == "source" else len(population)
        mine = [one for one in asked if one.on == population.on]
        if rules.groups:
            _check_groups(population, np.arange(len(population)), population.labels(rules.groups), rules)
        common_terms(mine, pilots.get(population.on), first, size=size, discrete=population.discrete, claims=len(asked))


def judge_evidence(
    asked: Sequence[Asked], parts: Sequence[Evidence], rules: Rules, fingerprints: Mapping[str, str], weights: str
) -> Certificate:
    """Make the certificate from the evidence: the same for whoever holds it.

    Args:
        asked: every claim, in the order of the budgets.
        parts: evidence of each population.
        rules: how claims are judged.
        fingerprints: hashes of everything.
        weights: hash of the candidate's weights.
    """
    claims: list[Claim] = []
    for part in parts:
        mine = [one for one in asked if one.on == part.on]
        documents = np.array(part.documents, dtype=np.int64)
        seed, order = drawn_order(part.size, part.fingerprint, documents, weights, rules)
        terms = common_terms(mine, part.pilot, rules, size=len(order), discrete=part.discrete, claims=len(asked))
        scope = f"{part.words}, order seed {seed})"
        for one, term in zip(mine, terms, strict=True):
            scored = part.scored[one.metric.name]
            claims.append(
                judge(
                    scored, one.budget, term, metric=one.metric, scope=scope, counted=part.counted,
                    engine=rules.engine, labels=[part.labels[i] for i in scored.drawn] if part.labels else (),
                    sizes=Counter(part.labels),
                )
            )  # fmt: skip
    return combine(claims, opening=rules.opening, noise_floor=rules.noise_floor, fingerprints=fingerprints)


def claims(certificate: Certificate, text: Pilot | None) -> dict[str, Any]:
    """What is told to people and machines; all of it follows from the certificate and the evidence on the text."""
    first = certificate.claims[0]
    found: dict[str, Any] = {
        "holds": certificate.holds if any(claim.budget.is_claim for claim in certificate.claims) else True,
        "verdict": verdict_of(certificate), "statement": certificate.statement,
        "confidence": certificate.confidence, "opening": certificate.opening.number,
        "claims": [
            {
                "limit": claim.budget.label if claim.budget.is_claim else None, "metric": claim.metric,
                "on": claim.budget.on, "holds": claim.holds, "verdict": claim.verdict, "estimate": claim.estimate,
                "bound": claim.bound, "margin": claim.terms.margin if claim.budget.is_claim else None,
                "scored": claim.scored, "population": claim.terms.population, "counted": claim.counted,
            }
            for claim in certificate.claims
        ],
        "bound": first.bound, "scored": first.scored, "population": first.terms.population,
    }  # fmt: skip
    if text is not None:
        loss = text["perplexity"]
        found |= {
            "perplexity_before": float(np.exp(loss.reference.mean())),
            "perplexity_after": float(np.exp(loss.compressed.mean())),
            "rise": float(loss.degradation.mean()), "kl": float(text["kl"].degradation.mean()),
            "agreement": 1 - float(text["disagreement"].degradation.mean()),
        }  # fmt: skip
    return found


def verdict_of(certificate: Certificate) -> str:
    """One word for all claims: that of the first limit that failed, or of the first limit."""
    limits = [claim for claim in certificate.claims if claim.budget.is_claim] or list(certificate.claims)
    failed = [claim for claim in limits if not claim.holds]
    return (failed or limits)[0].verdict


def _check_groups(population: Population, units: NDArray[np.int64], labels: Sequence[str], rules: Rules) -> None:
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


def scope_seed(scope: str) -> int | None:
    """The order seed that a scope names."""
    match = re.search(r"order seed (\d+)\)", scope)
    return int(match.group(1)) if match else None


def _settled(
    asked: Sequence[Asked], terms: Sequence[Terms], scored: Pilot, engine: Engine, labels: Sequence[str]
) -> bool:
    """Whether more units cannot change anything: every limit is decided, in every group, or one limit is lost."""
    verdicts = []
    for one, term in zip(asked, terms, strict=True):
        if not one.budget.is_claim:
            continue
        found = scored[one.metric.name]
        x = degradations(found, one.metric)
        verdicts.append(decide(x, term, found.documents, engine).verdict)
        of = np.array([labels[i] for i in found.drawn]) if labels else np.empty(0)
        for name, size in Counter(labels).items():
            if size < LEAST_GROUP:
                continue
            chosen = of == name
            verdict = decide(x[chosen], group_terms(term, size), found.documents[chosen], engine).verdict
            if verdict != "futile":  # a group that loses more is told, and does not close the gate
                verdicts.append(verdict)
    return bool(verdicts) and ("continue" not in verdicts or "futile" in verdicts)


def fingerprints_of(parts: Sequence[Evidence]) -> dict[str, str]:
    """Hashes of the populations that evidence is about, pilots included."""
    found = {}
    for part in parts:
        found[f"certification {part.on}".rstrip()] = part.fingerprint
        if part.pilot is not None:
            found[f"selection {part.on}".rstrip()] = next(iter(part.pilot.values())).fingerprint
    return found


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
