"""The stages of a compression run: ladder, certification, what is told of the winner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from pennyweight.budget import Budget
from pennyweight.budget import Opening as Opened
from pennyweight.corpus import Windows
from pennyweight.errors import InfeasibleBudget, InvalidBudget
from pennyweight.flow.candidate import Candidate, build
from pennyweight.flow.certifying import evidence
from pennyweight.flow.certifying.claims import Asked, text_metrics, usual_engine
from pennyweight.flow.certifying.judge import (
    Evidence,
    Judged,
    fingerprints_of,
    judge_evidence,
    judge_population,
    verdict_of,
)
from pennyweight.flow.certifying.noise import noise_floor
from pennyweight.flow.certifying.openings import Opening, open_all
from pennyweight.flow.certifying.populations import Population, Questions, ledgers_of
from pennyweight.flow.certifying.rules import Pilot, Rules, check_feasible, check_noise
from pennyweight.flow.collect import Collected, collect
from pennyweight.flow.delivery import weights_of
from pennyweight.flow.explain import record as explain
from pennyweight.flow.journal import Journal
from pennyweight.flow.ladder import PROBE, allowed_before, rungs, strain
from pennyweight.flow.make_plan import Planner
from pennyweight.flow.measure import ReferenceStates
from pennyweight.flow.memory import held
from pennyweight.flow.options import Table, tabulate, timed
from pennyweight.flow.profiling.calibration import calibrate
from pennyweight.flow.profiling.values import Calibration
from pennyweight.flow.progress import Progress
from pennyweight.flow.recover import shown
from pennyweight.flow.rounding import damages, fit, reading
from pennyweight.flow.search.refine import Search
from pennyweight.flow.settings import Settings
from pennyweight.flow.text import Texts
from pennyweight.flow.working.task import HERE, Workers
from pennyweight.methods.multiplicity import FixedSequence
from pennyweight.network.network import Network
from pennyweight.numerics.hashing import of_value
from pennyweight.plan import Plan
from pennyweight.problem import Limit


@dataclass(eq=False)
class Job:
    """The stages of one run, each a piece of work that the journal keeps.

    Args:
        reference: the model handed in; everything is measured against it.
        network: what is compressed: the reference, or a rewrite of it.
        words: the three texts.
        asked: every claim.
        limit: on the size, or None.
        populations: what the claims are about.
        pilots: planning questions of every task, by its path; None where all are kept for the claim.
        settings: of the run.
        journal: of the run.
        progress: told about every stage.
        key: hash of everything the run depends on.
        code: hash of this package's sources.
        study: file that a search remembers its measurements in.
        workers: who carries tasks out.
    """

    reference: Network
    network: Network
    words: Texts
    asked: tuple[Asked, ...]
    limit: Budget | None
    populations: Sequence[Population]
    pilots: Mapping[str, Questions | None]
    settings: Settings
    journal: Journal
    progress: Progress
    key: str
    code: str
    study: Path | None = None
    workers: Workers = HERE

    def __post_init__(self) -> None:
        key = f"reference/{self.reference.source.fingerprint[:16]}-{self.words.selection.fingerprint[:16]}"
        self.selection_states = ReferenceStates(self.journal, key)
        self.openings: list[Opening] = []
        self.searched: dict[str, Any] | None = None
        self.table: Table | None = None  # that plans were chosen from
        self.claims = [one for one in self.asked if one.budget.is_claim]
        self.noise_floor = noise_floor(
            self.reference, self.words.selection, self.journal, self.progress, metrics=text_metrics(self.asked)
        )
        check_noise(self.claims, self.noise_floor)  # before the work begins that takes minutes
        words = self.words.calibration
        self.collected = collect(
            self.network, shown(words) if self.settings.recovery else words, self.journal,
            fisher_windows=self.settings.fisher_windows, seed=self.settings.seed, progress=self.progress,
            workers=self.workers,
        )  # fmt: skip

    def planner(self) -> Planner:
        """Predict every option, once."""
        engine = self.settings.target
        assert self.settings.dtype is not None
        table = tabulate(
            self.network, self.collected, engine, self.journal,
            dtype=self.settings.dtype, method=self.settings.method, pricing=self.settings.pricing,
            progress=self.progress, workers=self.workers,
        )  # fmt: skip
        return planner_of(
            self.network, self.settings, table, model=self.reference,
            priced=priced(
                self.network, self.collected, self.words.calibration, self.settings, self.journal, self.progress
            ),
        )  # fmt: skip

    def build(self, plan: Plan) -> Candidate:
        """Carry one plan out and score it on the selection split."""
        return build(
            plan,
            self.reference,
            self.collected,
            self.words.selection,
            self.journal,
            self.selection_states,
            text_metrics(self.asked),
            self.progress,
            self.network,
            self.words.calibration,
            self.workers,
        )

    def scores(self, candidate: Candidate) -> dict[str, Pilot]:
        """Scores of a candidate on the selection split of the text and of every task that has one."""
        found: dict[str, Pilot] = {"": candidate.selection}
        for on, questions in self.pilots.items():
            if questions is None:
                continue
            piece = f"selection/{candidate.key}-{questions.fingerprint[:16]}.json"
            if not self.journal.has(piece):
                scorer = questions.scorer(self.reference, candidate.network, self.journal)
                with self.progress.stage(f"measuring candidate on {questions.task.source}", len(questions)) as advance:
                    scored = scorer.score(np.arange(len(questions), dtype=np.int64), advance)
                self.journal.save(piece, evidence.to_values(scored))
            found[on] = evidence.from_values(self.journal.load(piece))
        return found

    def ladder(self, plan: Plan | None) -> list[Candidate]:
        """Candidates from safe to aggressive, all frozen before the certification split is opened."""
        if plan is not None:
            return [self.build(plan)]
        planner = self.planner()
        planner.check_any()
        if self.settings.search:
            limit = planner.limit(self.limit) if self.limit else Limit("damage", PROBE * allowed_before(self.claims))
            refined = self.search().refine(planner.table, [limit, *planner.always])
            self.searched = refined.record
            planner = replace(planner, table=refined.table)
        self.table = planner.table
        if self.limit is not None:
            return [self.build(planner.plan(refined.choice) if self.searched else planner.for_budget(self.limit))]

        def within_damage(damage: float) -> Candidate:
            return self.build(planner.within_damage(damage))

        return rungs(within_damage(PROBE * allowed_before(self.claims)), within_damage, self.scores, self.claims)

    def search(self) -> Search:
        """What looks for better plans by measuring them."""
        return Search(
            network=self.network, collected=self.collected, windows=self.words.selection, journal=self.journal,
            method=self.settings.search, allocation=self.settings.allocation, seed=self.settings.seed,
            study=self.study, progress=self.progress, workers=self.workers,
        )  # fmt: skip

    @property
    def total(self) -> float:
        """Error level of a first opening."""
        return 1 - self.asked[0].budget.confidence

    @cached_property
    def rules(self) -> Rules:
        """How every rung is judged; the texts are opened here."""
        ledgers = ledgers_of(self.populations, self.reference)
        self.openings, opening, numbers = open_all(
            ledgers, self.key, total=self.total, candidate="ladder",
            claims=[one.budget.label for one in self.claims], reserve=self.settings.reserve,
        )  # fmt: skip
        return replace(self._rules(opening), numbers=numbers, ledgers=ledgers)

    def _rules(self, opening: Opened) -> Rules:
        return Rules(
            engine=usual_engine(self.settings.scope, self.settings.bound), scope=self.settings.scope, opening=opening,
            salt=f"{self.settings.seed} {self.settings.salt}", groups=self.settings.groups,
            most=self.settings.certification_windows, noise_floor=self.noise_floor,
        )  # fmt: skip

    def certify(self, ladder: list[Candidate]) -> tuple[list[dict[str, Any]], dict[str, Judged], Candidate]:
        """Walk up the ladder until a rung is not certified; the last one that was is the answer."""
        judged: dict[str, Judged] = {}
        first = self._rules(Opened(number=1, alpha=self.total, spent=self.total))
        check_feasible(self.asked, self.populations, self.scores(ladder[0]), first, self.total)

        def certified(candidate: Candidate) -> bool:
            try:
                judged[candidate.key] = self.judge(candidate)
            except InfeasibleBudget:  # a rung that the documents cannot carry ends the climb; the first one is refused
                if not judged:
                    raise
                return False
            return judged[candidate.key].certificate.holds

        best = FixedSequence().last_pass(ladder, certified) or ladder[0]
        rungs = [self._rung(candidate, judged.get(candidate.key), candidate is best) for candidate in ladder]
        return rungs, judged, best

    def judge(self, candidate: Candidate) -> Judged:
        """Certify one candidate on every population."""
        scores, parts = self.scores(candidate), list[Evidence]()
        for population in self.populations:
            parts.append(
                judge_population(
                    f"certification/{candidate.key}/{population.fingerprint[:16]}",
                    [one for one in self.asked if one.on == population.on], population, scores.get(population.on),
                    self.reference, candidate.network, self.journal, self.rules,
                    weights=candidate.weights, claims=len(self.asked), progress=self.progress,
                )
            )  # fmt: skip
        fingerprints = {
            "model": self.reference.source.fingerprint, "artifact": candidate.hash, "weights": candidate.weights,
            "plan": of_value(candidate.plan.to_toml()), "code": self.code,
            "calibration": self.words.calibration.fingerprint, **fingerprints_of(parts),
        }  # fmt: skip
        return Judged(judge_evidence(self.asked, parts, self.rules, fingerprints, candidate.weights), tuple(parts))

    def calibration(self, candidate: Candidate) -> Calibration | None:
        """Whether the probabilities of the chosen candidate are still right; told beside the claims, not claimed."""
        windows = self.words.selection
        return calibrate(
            self.reference, candidate.network, windows, self.asked[0].budget.confidence, self.settings.seed,
            self.journal, f"calibration/{candidate.key}.json", self.progress,
        )  # fmt: skip

    def explanation(self, candidate: Candidate) -> dict[str, Any] | None:
        """Why the chosen candidate is as it is; nothing of a plan that was handed in."""
        if self.table is None:
            return None
        strains = {one.budget.label: strain([one], self.scores(candidate)) for one in self.claims}
        tightest = max(strains, key=lambda label: strains[label], default="")
        binding = self.limit.label if self.limit is not None else tightest
        fast = f", and {self.settings.speed:g} times the speed of dense" if self.settings.latency is not None else ""
        small = f", and {self.settings.memory / 1e6:.12g} MB in memory" if self.settings.memory else ""
        return explain(self.table.groups, candidate.plan, f"{binding}{fast}{small}")

    def _rung(self, candidate: Candidate, judged: Judged | None, chosen: bool) -> dict[str, Any]:
        means = {name: float(m.degradation.mean()) for name, m in candidate.selection.items()}
        certificate = judged.certificate if judged else None
        first = certificate.claims[0] if certificate else None
        return {
            "plan": of_value(candidate.plan.to_toml()), "bytes": candidate.size, "chosen": chosen,
            "predicted_kl": candidate.plan.damage, "selection": means,
            "bits": 8 * candidate.plan.bytes / weights_of(self.reference),
            "verdict": verdict_of(certificate) if certificate else "not reached",
            "holds": bool(certificate and certificate.holds),
            "bound": first.bound if first else None,
            "estimate": first.estimate if first else None,
            "scored": first.scored if first else 0,
        }  # fmt: skip


def priced(
    network: Network, collected: Collected, windows: Windows, settings: Settings, journal: Journal, progress: Progress
) -> Mapping[str, float]:
    """What rounding its input costs each layer, nats per token; nothing where it is not rounded."""
    reads = settings.rounded_input
    if reads is None:
        return {}
    assert settings.dtype is not None
    fitted = fit(network, windows, [reads], settings.rounded_cache, settings.dtype, journal, progress)
    return damages(network, collected, fitted, reads.label())


def planner_of(
    network: Network,
    settings: Settings,
    table: Table,
    *,
    model: Network,
    priced: Mapping[str, float] = MappingProxyType({}),
) -> Planner:
    """What makes plans for a network, which may be a rewrite of the model handed in, from a table of predictions.

    Args:
        network: what is compressed.
        settings: of the run.
        table: of predictions for weights alone.
        model: handed in.
        priced: what rounding its input costs each layer; none for sizes alone.

    Raises:
        InvalidBudget: a limit on time with rounded activations, whose times no table has.
    """
    assert settings.dtype is not None
    engine, reads, cache = settings.target, settings.rounded_input, settings.rounded_cache
    if reads is not None or cache is not None:
        if settings.latency is not None:
            raise InvalidBudget(
                "times of layers that round what they read are in no table", expected="--speed without --activations",
                mend="leave one of them out, and time the files with pennyweight bench", site="--speed",
            )  # fmt: skip
        table = reading(table, network, engine, reads, cache, settings.dtype, priced)
    always: tuple[Limit, ...] = ()
    if settings.latency is not None:
        table, limit = timed(table, network, settings.latency, settings.speed)
        always = (limit,)
    if settings.memory:
        table, limit = held(
            table, network, engine, settings.dtype, at_most=settings.memory, context=settings.context
        )  # fmt: skip
        always = (*always, limit)
    return Planner(
        network=network, table=table, engine=engine, dtype=settings.dtype, seed=settings.seed,
        allocation=settings.allocation, beside=engine.files.beside(network, settings.dtype),
        model=model.source.fingerprint, rewrites=settings.rewrites, recovery=settings.recovery, always=always,
        cache=cache,
    )  # fmt: skip
