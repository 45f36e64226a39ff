"""Open the certification split for one candidate: score batches in random order until every answer is sure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pennyweight.budget import Certificate, Claim, Terms
from pennyweight.flow.certifying import evidence
from pennyweight.flow.certifying.claims import Asked, text_metrics
from pennyweight.flow.certifying.populations import Population
from pennyweight.flow.certifying.rules import Pilot, Rules, check_groups, common_terms, drawn_order, lot_of
from pennyweight.flow.journal import Journal
from pennyweight.flow.progress import QUIET, Progress
from pennyweight.methods.certification import certify as judge
from pennyweight.methods.certification import combine, decide, degradations, group_terms
from pennyweight.methods.certification.engine import Engine
from pennyweight.network.network import Network

LEAST_GROUP = 30  # units of a group below which no more are scored for its sake


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
    lot = lot_of(asked, pilot, rules, population.on)
    _, order = drawn_order(
        len(population), population.fingerprint, population.independent, weights, rules, population.on, lot
    )
    terms = common_terms(asked, pilot, rules, size=len(order), discrete=population.discrete, claims=claims)
    scorer = population.scorer(reference, candidate, journal, text_metrics(asked))
    n_max = max(term.n_max for term in terms)
    labels = population.labels(rules.groups) if rules.groups else ()
    if labels:  # a small group may need the whole of itself, so everything may be scored
        n_max = min(len(order), rules.most or len(order))
        check_groups(population, order[:n_max], labels, rules)
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
        documents=tuple(population.independent.tolist()) if source else (),
        labels=labels,
        pilot=pilot, scored=evidence.from_values(evidence.join(parts)),
    )  # fmt: skip


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
        lot = lot_of(mine, part.pilot, rules, part.on)
        seed, order = drawn_order(part.size, part.fingerprint, documents, weights, rules, part.on, lot)
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
