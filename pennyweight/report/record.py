"""Everything the page is made of, read once. What an artifact lacks is None or empty; nothing is filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from pennyweight.budget import Measurement, Terms
from pennyweight.errors import VerificationFailed
from pennyweight.export import Accounting
from pennyweight.flow import artifact, evidence

Values = Mapping[str, Any]
Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One artifact, as far as it is written down.

    Args:
        name: of the directory.
        summary: numbers of the whole run.
        certificate: the claim, as stored.
        terms: of the claim, or None when they cannot be read.
        measured: scores on the certification split by metric, in the order drawn.
        ladder: candidates, in the order they were judged.
        ledger: one row a site.
        accounting: where every tensor went, or None.
        run: settings, versions and hashes.
        timing: seconds and memory; not sealed and possibly absent.
    """

    name: str
    summary: Values
    certificate: Values
    terms: Terms | None
    measured: Mapping[str, Measurement]
    ladder: Sequence[Values]
    ledger: Sequence[Values]
    accounting: Accounting | None
    run: Values
    timing: Values

    @property
    def verdict(self) -> str:
        """As the certificate says it."""
        return str(self.certificate.get("verdict") or self.summary.get("verdict") or "unknown")

    @property
    def budget(self) -> Values:
        """What was allowed."""
        found = self.summary.get("budget") or self.certificate.get("budget") or {}
        return found if isinstance(found, dict) else {}

    @property
    def claimed(self) -> bool:
        """Whether a limit on the loss was set, so that there is something to certify."""
        return self.budget.get("metric") == "perplexity"

    @property
    def source(self) -> str:
        """What kind of file was handed in, in words; empty if nobody wrote it down."""
        return str(self.summary.get("source") or self.run.get("source") or "")

    @property
    def rounded_before(self) -> bool:
        """Whether the weights handed in were quantized already, so that the loss is measured against those."""
        return "already rounded" in self.source


def read(directory: Path) -> Record:
    """Read an artifact. The certificate and the summary must be there; everything else may be missing.

    Raises:
        VerificationFailed: there is no certificate, or a file was edited.
    """
    certificate = artifact.read_record(directory, "certificate.json")
    accounting = _optional(directory, "accounting.json")
    records = _optional(directory, "evidence.json")
    return Record(
        name=directory.resolve().name,
        summary=_mapping(artifact.read_record(directory, "summary.json"), directory, "summary.json"),
        certificate=_mapping(certificate, directory, "certificate.json"),
        terms=_converted(certificate.get("terms"), Terms),
        measured=evidence.from_values(records["certification"]) if records and "certification" in records else {},
        ladder=_optional(directory, "ladder.json") or [],
        ledger=_optional(directory, "ledger.json") or [],
        accounting=_converted(accounting, Accounting),
        run=_optional(directory, "run.json") or {},
        timing=_optional(directory, "timing.json") or {},
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
