"""Everything the page is made of, read once. What an artifact lacks is None or empty; nothing is filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from pennyweight.budget import Budget, Certificate, Claim
from pennyweight.errors import VerificationFailed
from pennyweight.export import Accounting
from pennyweight.flow import artifact
from pennyweight.flow.certifying.judge import Evidence
from pennyweight.flow.certifying.record import read_certificate, read_evidence
from pennyweight.flow.profiling.values import Calibration
from pennyweight.flow.verify import is_bare
from pennyweight.methods.certification import Engine

Values = Mapping[str, Any]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Scores:
    """What one claim rests on.

    Args:
        claim: as the certificate states it.
        degradation: of each unit, in the order drawn `[n]`.
        documents: of each unit `[n]`.
        engine: the bound.
        discrete: whether a unit is one question, worth a few values only.
    """

    claim: Claim
    degradation: NDArray[np.float64]
    documents: NDArray[np.int64]
    engine: Engine
    discrete: bool


@dataclass(frozen=True, kw_only=True)
class Record:
    """One artifact, as far as it is written down.

    Args:
        name: of the directory.
        summary: numbers of the whole run.
        certificate: all claims.
        parts: scores by population, in the order drawn; empty when there is no evidence.
        engine: the bound, or None when there is no evidence.
        ladder: candidates, in the order they were judged.
        ledger: one row a site.
        accounting: where every tensor went, or None.
        run: settings, versions and hashes.
        timing: seconds and memory; not sealed and possibly absent.
        calibration: of next-token probabilities on the selection split, or None.
        explanation: why the plan is as it is; empty where nobody knows.
        bare: whether the model lies elsewhere, and only its certificate is here.
    """

    name: str
    summary: Values
    certificate: Certificate
    parts: tuple[Evidence, ...]
    engine: Engine | None
    ladder: Sequence[Values]
    ledger: Sequence[Values]
    accounting: Accounting | None
    run: Values
    timing: Values
    calibration: Calibration | None
    explanation: Values
    bare: bool

    @property
    def limits(self) -> tuple[Claim, ...]:
        """Claims of a limit on a loss; a claim without one is reported, and nothing is certified of it."""
        return tuple(claim for claim in self.certificate.claims if claim.budget.is_claim)

    @property
    def claims(self) -> tuple[Claim, ...]:
        """Limits first, in the order of the budgets, then what is only reported."""
        return (*self.limits, *(claim for claim in self.certificate.claims if not claim.budget.is_claim))

    @property
    def claimed(self) -> bool:
        """Whether a limit on a loss was set, so that there is something to certify."""
        return bool(self.limits)

    @property
    def size_limit(self) -> Budget | None:
        """Limit on bytes or bits, or None; a plan without a budget has one that nothing reaches."""
        budgets = [claim.budget for claim in self.certificate.claims if not claim.budget.is_claim]
        return next((budget for budget in budgets if budget.at_most < 1e18), None)

    @property
    def text(self) -> Evidence | None:
        """Scores on the text, if there is one."""
        return next((part for part in self.parts if part.on == ""), None)

    @property
    def source(self) -> str:
        """What kind of file was handed in, in words; empty if nobody wrote it down."""
        return str(self.summary.get("source") or self.run.get("source") or "")

    @property
    def rounded_before(self) -> bool:
        """Whether the weights handed in were quantized already, so that the loss is measured against those."""
        return "already rounded" in self.source

    def scores(self, claim: Claim) -> Scores | None:
        """What a claim rests on, or None when it is not in the evidence."""
        part = next((part for part in self.parts if part.on == claim.budget.on), None)
        found = part.scored.get(claim.metric) if part is not None else None
        if part is None or found is None or self.engine is None or not len(found.drawn):
            return None
        return Scores(claim, found.degradation, found.documents, self.engine, part.discrete)


def read(directory: Path) -> Record:
    """Read an artifact. The certificate and the summary must be there; everything else may be missing.

    Raises:
        VerificationFailed: there is no certificate, or a file was edited.
    """
    certificate = read_certificate(directory)
    if not certificate.claims:
        raise VerificationFailed(
            "is a certificate without a claim", expected="one claim or more", mend="restore it from a copy",
            site=str(directory / artifact.FOLDER / "certificate.json"),
        )  # fmt: skip
    parts: tuple[Evidence, ...] = ()
    engine: Engine | None = None
    if (directory / artifact.FOLDER / "evidence.json").is_file():
        _, parts, rules, _ = read_evidence(directory)
        engine = rules.engine
    return Record(
        name=directory.resolve().name,
        summary=_mapping(artifact.read_record(directory, "summary.json"), directory, "summary.json"),
        certificate=certificate,
        parts=parts,
        engine=engine,
        ladder=_optional(directory, "ladder.json") or [],
        ledger=_optional(directory, "ledger.json") or [],
        accounting=_converted(_optional(directory, "accounting.json"), Accounting),
        run=_optional(directory, "run.json") or {},
        timing=_optional(directory, "timing.json") or {},
        calibration=_converted(_optional(directory, "calibration.json"), Calibration),
        explanation=_optional(directory, "explanation.json") or {},
        bare=is_bare(directory),
    )


def _optional(directory: Path, name: str) -> Any:
    return artifact.read_record(directory, name) if (directory / artifact.FOLDER / name).is_file() else None


def _mapping(value: Any, directory: Path, name: str) -> Values:
    if not isinstance(value, dict):
        raise VerificationFailed(
            "does not hold named values",
            expected="the file as pennyweight wrote it",
            mend="restore it from a copy",
            site=str(directory / artifact.FOLDER / name),
        )
    return value


def _converted(value: Any, kind: type[Value]) -> Value | None:
    # a later version may write more fields, which are passed over, or fewer: then the page says so and goes on
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return None
