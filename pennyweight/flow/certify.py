"""Open the certification split for one candidate: score batches in random order until the answer is sure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pennyweight.budget import Budget, Certificate, Measurement, Terms
from pennyweight.corpus import Windows
from pennyweight.flow import evidence
from pennyweight.flow.journal import Journal
from pennyweight.flow.measure import ReferenceStates, Scorer
from pennyweight.flow.progress import QUIET, Progress
from pennyweight.methods.certification import certify as judge
from pennyweight.methods.certification import choose_terms, decide, smallest_margin
from pennyweight.network.network import Network

UNCLAIMED_WINDOWS = 128  # windows scored when no margin is claimed: enough for a bound worth printing


@dataclass(frozen=True)
class Judged:
    """One candidate's certificate and the evidence behind it."""

    certificate: Certificate
    selection: Mapping[str, Measurement]
    certification: Mapping[str, Measurement]


def terms_for(budget: Budget, pilot: Measurement, population: int, most: int | None = None) -> Terms:
    """Fix the terms of a claim from the selection split; without a margin to claim, terms that give a tight bound.

    Args:
        budget: the claim.
        pilot: losses on the selection split.
        population: windows in the certification split.
        most: windows to score at most; fewer than the terms allow can lose a certificate, never make a false one.
    """
    x = pilot.degradation
    if budget.metric == "perplexity":
        terms = choose_terms(x, budget.margin, confidence=budget.confidence, population=population)
        return terms if most is None else replace(terms, n_max=min(terms.n_max, most))
    alpha = 1 - budget.confidence
    count = min(most or UNCLAIMED_WINDOWS, population)
    margin = smallest_margin(x, max(count, 20), alpha)
    terms = choose_terms(x, max(margin, 1e-6), confidence=budget.confidence, population=population)
    return replace(terms, n_max=count)


def certify_candidate(
    key: str,
    budget: Budget,
    reference: Network,
    candidate: Network,
    windows: Windows,
    selection: Mapping[str, Measurement],
    journal: Journal,
    states: ReferenceStates,
    *,
    salt: str,
    fingerprints: Mapping[str, str],
    most: int | None = None,
    progress: Progress = QUIET,
) -> Judged:
    """Score a frozen candidate on the certification split until it is certified, hopeless, or the windows run out.

    Args:
        key: folder of this candidate's evidence in the journal; finished batches are not scored again.
        budget: the claim.
        reference: the model the user handed in.
        candidate: read from the written files.
        windows: the certification split.
        selection: scores on the selection split; the terms rest on them alone.
        journal: of the run.
        states: of the reference, shared between candidates.
        salt: declared by the user; part of the order's seed.
        fingerprints: hashes of everything, for the certificate.
        most: windows to score at most.
        progress: told about every window.
    """
    terms = terms_for(budget, selection["perplexity"], len(windows), most)
    seed, order = evidence.random_order(len(windows), windows.fingerprint, fingerprints["weights"], salt)
    scorer = Scorer(reference, candidate, windows, states)
    parts: list[dict[str, Any]] = []
    with progress.stage("certifying", terms.n_max) as advance:
        for start in range(0, terms.n_max, scorer.batch):
            piece = f"{key}/{start:06d}.json"
            if not journal.has(piece):
                journal.save(
                    piece, evidence.to_values(scorer.score(order[start : min(start + scorer.batch, terms.n_max)]))
                )
            parts.append(journal.load(piece))
            advance(scorer.batch)
            scored = evidence.from_values(evidence.join(parts))["perplexity"]
            decision = decide(scored.degradation, terms, scored.documents)
            claimed = budget.metric == "perplexity"
            if (decision.verdict if claimed else "continue") != "continue" or len(scored.windows) >= terms.n_max:
                break
    measured = evidence.from_values(evidence.join(parts))
    scope = scope_of(windows, seed)
    certificate = judge(measured["perplexity"], budget, terms, scope=scope, fingerprints=fingerprints)
    return Judged(certificate, selection, measured)


def claims(certificate: Certificate, measured: Mapping[str, Measurement]) -> dict[str, Any]:
    """What is told to people and machines; all of it follows from the certificate and its evidence."""
    loss = measured["perplexity"]
    return {
        "holds": certificate.holds if certificate.budget.metric == "perplexity" else True,
        "verdict": certificate.verdict, "statement": certificate.statement,
        "perplexity_before": float(np.exp(loss.reference.mean())),
        "perplexity_after": float(np.exp(loss.compressed.mean())),
        "rise": certificate.estimate, "bound": certificate.bound, "confidence": certificate.budget.confidence,
        "kl": float(measured["kl"].degradation.mean()),
        "agreement": 1 - float(measured["disagreement"].degradation.mean()),
        "scored": certificate.scored, "population": certificate.terms.population,
    }  # fmt: skip


def scope_of(windows: Windows, seed: int) -> str:
    """What the claim is about, in words: one named and hashed text, not the world it came from."""
    return (
        f"the certification split of {windows.source} ({len(windows)} windows of {windows.length} tokens, "
        f"sha256 {windows.fingerprint[:16]}…, order seed {seed})"
    )


def scope_seed(scope: str) -> int | None:
    """The order seed that a scope names."""
    match = re.search(r"order seed (\d+)\)", scope)
    return int(match.group(1)) if match else None
