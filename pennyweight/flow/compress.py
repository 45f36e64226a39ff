"""The main job: a model, a text and a budget in; a certified artifact out."""

from __future__ import annotations

import platform
import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import scipy
import torch
import transformers

from pennyweight.budget import Budget
from pennyweight.export.engines import find
from pennyweight.flow import artifact
from pennyweight.flow.candidate import Candidate, build, facts_of
from pennyweight.flow.certify import Judged, certify_candidate
from pennyweight.flow.collect import collect
from pennyweight.flow.delivery import Outcome, check_free, check_size, deliver, finished, outcome_of, weights_of
from pennyweight.flow.journal import Journal, open_run
from pennyweight.flow.load import check_weights, load
from pennyweight.flow.make_plan import Planner, check_dtype, check_plan, usual_dtype
from pennyweight.flow.measure import ReferenceStates
from pennyweight.flow.options import Table, outline, tabulate
from pennyweight.flow.progress import QUIET, Progress
from pennyweight.flow.text import Texts, texts
from pennyweight.methods.certification import FixedSequence
from pennyweight.network.network import Network
from pennyweight.numerics.hashing import of_value
from pennyweight.plan import Plan

VERSION = "0.1.0"
PROBE = 0.7  # share of the margin the first candidate is planned to spend; it tells what prediction is worth here
RUNGS = (0.6, 0.8)  # shares of the margin, after the probe has corrected the prediction
HOPELESS = 1.0  # share of the margin above which a rung's selection score makes certifying it a waste


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run is made; all of it is part of the run's header.

    Args:
        engine: whose files are written.
        length: tokens in a window.
        calibration_windows: shown to methods.
        selection_windows: on which candidates are compared.
        certification_windows: scored at most for one candidate; None for as many as its terms allow.
        fisher_windows: of the backward pass.
        seed: of every random choice.
        salt: part of the certification order's seed.
        allocation: the allocator.
        method: the quantizer.
        dtype: of everything dense; None takes the model's own 16-bit type, or float16.
        threads: of the arithmetic; results are the same only for the same number.
    """

    engine: str = "transformers"
    length: int = 256
    calibration_windows: int = 64
    selection_windows: int = 32
    certification_windows: int | None = None
    fisher_windows: int = 8
    seed: int = 0
    salt: str = ""
    allocation: str = "integer_program"
    method: str = "gptq"
    dtype: str | None = None
    threads: int = field(default_factory=torch.get_num_threads)


def compress(
    model: str | Path,
    out: str | Path,
    *,
    budget: Budget,
    calibration: str | Path | None = None,
    held_out: str | Path | None = None,
    plan: Plan | None = None,
    settings: Settings | None = None,
    allow_network: bool = False,
    progress: Progress = QUIET,
) -> Outcome:
    """Compress a model within a budget and certify what it cost.

    Everything is written to `out` + `.run` first; killed at any moment, the same call goes on there and ends with the
    same bytes. `out` appears when it is complete.

    Args:
        model: directory, GGUF file, or hub id with `allow_network`.
        out: directory to make; must not exist or be empty.
        budget: a rise of perplexity, a size on disk, or bits per weight.
        calibration: text for methods and search; None for the text every Python carries.
        held_out: text for the certificate alone; None to keep a part of the other one for it.
        plan: carry this out instead of searching.
        settings: everything else.
        allow_network: whether a hub id may be downloaded.
        progress: told about every stage.

    Raises:
        PennyweightError: see `errors`; bad input is refused before any work is done.
    """
    settings = settings or Settings()
    out = Path(out) if Path(out).name not in ("", "..") else Path(out).resolve()
    run = out.parent / f"{out.name}.run"
    check_free(out, run)
    started = time.monotonic()
    engine = find(settings.engine)
    reference = load(model, allow_network=allow_network)
    settings = replace(settings, dtype=settings.dtype or usual_dtype(reference))
    if plan is not None:
        check_plan(plan, reference)
        settings = replace(settings, engine=plan.engine, dtype=plan.dtype, seed=plan.seed)
    else:
        assert settings.dtype is not None
        check_dtype(settings.dtype, engine)
        if budget.metric != "perplexity":  # sizes are known beforehand; what is impossible is refused now
            _planner(reference, settings, outline(reference, engine, dtype=settings.dtype)).for_budget(budget)
    words = texts(
        reference, calibration, held_out, length=settings.length, count=settings.calibration_windows,
        selection=settings.selection_windows, seed=settings.seed,
    )  # fmt: skip
    header = {
        "model": reference.source.fingerprint, "texts": words.fingerprints, "budget": asdict(budget),
        "settings": asdict(settings), "plan": None if plan is None else of_value(plan.to_toml()),
        "code": artifact.code_hash(), "versions": versions(),
    }  # fmt: skip
    if out.exists() and any(out.iterdir()):
        return finished(out, run, header)
    torch.set_num_threads(settings.threads)
    if not (run / "weights-checked.json").exists():
        check_weights(reference, settings.dtype or "float16", progress)
    with open_run(run, header) as journal:
        journal.save("weights-checked.json", {})
        job = _Job(reference, words, budget, settings, journal, progress)
        ladder = job.ladder(plan)
        rungs, judged, best = job.certify(ladder)
        check_size(budget, best)
        deliver(
            out, best, judged[best.key], rungs, facts_of(best, journal), header, reference,
            salt=job.salt, seconds=time.monotonic() - started, progress=progress,
        )  # fmt: skip
    shutil.rmtree(run)
    return outcome_of(out)


@dataclass(eq=False)
class _Job:
    """The stages of one run."""

    reference: Network
    words: Texts
    budget: Budget
    settings: Settings
    journal: Journal
    progress: Progress

    def __post_init__(self) -> None:
        self.collected = collect(
            self.reference, self.words.calibration, self.journal,
            fisher_windows=self.settings.fisher_windows, seed=self.settings.seed, progress=self.progress,
        )  # fmt: skip
        key = f"reference/{self.reference.source.fingerprint[:16]}"
        self.selection_states = ReferenceStates(self.journal, f"{key}-{self.words.selection.fingerprint[:16]}")
        self.certification_states = ReferenceStates(self.journal, f"{key}-{self.words.certification.fingerprint[:16]}")

    @property
    def salt(self) -> str:
        """Declared part of the certification order's seed."""
        return f"{self.settings.seed} {self.settings.salt}"

    def planner(self) -> Planner:
        """Predict every option, once."""
        engine = find(self.settings.engine)
        assert self.settings.dtype is not None
        table = tabulate(
            self.reference, self.collected, engine, self.journal,
            dtype=self.settings.dtype, method=self.settings.method, progress=self.progress,
        )  # fmt: skip
        return _planner(self.reference, self.settings, table)

    def build(self, plan: Plan) -> Candidate:
        """Carry one plan out and score it on the selection split."""
        return build(
            plan,
            self.reference,
            self.collected,
            self.words.selection,
            self.journal,
            self.selection_states,
            self.progress,
        )

    def ladder(self, plan: Plan | None) -> list[Candidate]:
        """Candidates from safe to aggressive, all frozen before the certification split is opened."""
        if plan is not None:
            return [self.build(plan)]
        planner = self.planner()
        if self.budget.metric != "perplexity":
            return [self.build(planner.for_budget(self.budget))]
        probe = self.build(planner.for_budget(self.budget, share=PROBE))
        # Second-order prediction is off by a factor that all plans near the probe share; the probe measures it.
        ratio = probe.loss / probe.plan.damage if probe.plan.damage > 0 and probe.loss > 0 else 1.0
        found = {probe.key: probe}
        for share in RUNGS:
            candidate = self.build(planner.for_budget(self.budget, share=share, ratio=ratio))
            found.setdefault(candidate.key, candidate)
        ladder = sorted(found.values(), key=lambda candidate: (candidate.loss, -candidate.size))
        hopeful = [candidate for candidate in ladder if candidate.loss < HOPELESS * self.budget.margin]
        return _smaller_as_riskier(hopeful) or ladder[:1]

    def certify(self, ladder: list[Candidate]) -> tuple[list[dict[str, Any]], dict[str, Judged], Candidate]:
        """Walk up the ladder until a rung is not certified; the last one that was is the answer."""
        judged: dict[str, Judged] = {}

        def certified(candidate: Candidate) -> bool:
            judged[candidate.key] = certify_candidate(
                f"certification/{candidate.key}", self.budget, self.reference, candidate.network,
                self.words.certification, candidate.selection, self.journal, self.certification_states,
                salt=self.salt,
                fingerprints={
                    "model": self.reference.source.fingerprint, "artifact": candidate.hash,
                    "weights": candidate.weights,
                    "plan": of_value(candidate.plan.to_toml()), "code": artifact.code_hash(),
                    **self.words.fingerprints,
                },
                most=self.settings.certification_windows, progress=self.progress,
            )  # fmt: skip
            return judged[candidate.key].certificate.holds

        best = FixedSequence().last_pass(ladder, certified) or ladder[0]
        rungs = [self._rung(candidate, judged.get(candidate.key), candidate is best) for candidate in ladder]
        return rungs, judged, best

    def _rung(self, candidate: Candidate, judged: Judged | None, chosen: bool) -> dict[str, Any]:
        means = {name: float(m.degradation.mean()) for name, m in candidate.selection.items()}
        certificate = judged.certificate if judged else None
        return {
            "plan": of_value(candidate.plan.to_toml()), "bytes": candidate.size, "chosen": chosen,
            "predicted_kl": candidate.plan.damage, "selection": means,
            "bits": 8 * candidate.plan.bytes / weights_of(self.reference),
            "verdict": certificate.verdict if certificate else "not reached",
            "holds": bool(certificate and certificate.holds),
            "bound": certificate.bound if certificate else None,
            "estimate": certificate.estimate if certificate else None,
            "scored": certificate.scored if certificate else 0,
        }  # fmt: skip


def _planner(reference: Network, settings: Settings, table: Table) -> Planner:
    assert settings.dtype is not None
    beside = sum(
        len(content) if isinstance(content, bytes) else content.stat().st_size
        for content in reference.source.auxiliary().values()
    )
    return Planner(
        network=reference, table=table, engine=find(settings.engine), dtype=settings.dtype,
        seed=settings.seed, allocation=settings.allocation, beside=beside,
    )  # fmt: skip


def versions() -> dict[str, str]:
    """Versions that results may depend on."""
    return {
        "pennyweight": VERSION, "python": platform.python_version(), "torch": str(torch.__version__),
        "transformers": transformers.__version__, "safetensors": safetensors.__version__, "scipy": scipy.__version__,
    }  # fmt: skip


def _smaller_as_riskier(ladder: list[Candidate]) -> list[Candidate]:
    """Drop rungs that are riskier and yet no smaller than one before."""
    kept: list[Candidate] = []
    for candidate in ladder:
        if not kept or candidate.size < kept[-1].size:
            kept.append(candidate)
    return kept
