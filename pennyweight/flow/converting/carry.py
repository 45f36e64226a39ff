"""A certificate of files holds for other files with the same numbers: what is kept of it, and how it is checked again.

small/pennyweight/conversion.json                   what became of every tensor, and a hash of all numbers
small/pennyweight/source/pennyweight/…              certificate.json and evidence.json of the source, as they were
small/pennyweight/seal.json                         SHA-256 of every file
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pennyweight.budget import Budget, Certificate
from pennyweight.errors import VerificationFailed
from pennyweight.flow import artifact
from pennyweight.flow.certifying import record
from pennyweight.flow.certifying.judge import judge_evidence
from pennyweight.flow.converting.compare import numbers_hash
from pennyweight.flow.load import load
from pennyweight.numerics.hashing import of_file

RECORD = "conversion.json"
KEPT = ("certificate.json", "evidence.json")


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """The certificate of a source.

    Args:
        certificate: as it was verified.
        budgets: it is about.
        sha256: of certificate.json.
    """

    certificate: Certificate
    budgets: tuple[Budget, ...]
    sha256: str


def claimed(directory: Path) -> Claimed:
    """What is claimed of an artifact; its seal was checked before.

    Raises:
        VerificationFailed: a record is missing or not ours.
    """
    directory = _home(directory)
    asked, *_ = record.read_evidence(directory)
    return Claimed(
        certificate=record.read_certificate(directory), budgets=tuple(one.budget for one in asked),
        sha256=of_file(directory / artifact.FOLDER / "certificate.json"),
    )  # fmt: skip


def keep(source: Path, staged: Path) -> None:
    """Copy the certificate and its evidence beside the new files."""
    place = staged / artifact.FOLDER / "source" / artifact.FOLDER
    place.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copyfile(_home(source) / artifact.FOLDER / name, place / name)


def _home(directory: Path) -> Path:
    """Where the records of a certificate lie: those that were carried over, or its own."""
    kept = directory / artifact.FOLDER / "source"
    return kept if kept.is_dir() else directory


def is_converted(directory: Path) -> bool:
    """Whether a directory is what a conversion wrote."""
    return (directory / artifact.FOLDER / RECORD).is_file()


def is_carried(directory: Path) -> bool:
    """Whether a certificate was carried over to converted files."""
    return _home(directory) != directory


def check(directory: Path) -> tuple[Certificate, int]:
    """Check converted files again; the seal was checked before.

    Returns:
        The certificate that was carried over, and how many units of evidence it rests on.

    Raises:
        VerificationFailed: the numbers are not those that were certified, the certificate does not follow from its
            evidence, or none was carried over.
    """
    told: Any = artifact.read_record(directory, RECORD)
    carried = told.get("certificate") if isinstance(told, dict) else None
    if not isinstance(carried, dict) or not carried.get("carried"):
        raise VerificationFailed(
            "no certificate was carried over to these files; their seal is whole",
            expected="files whose every number is that of a certified artifact",
            mend="pennyweight certify MODEL DIR --lose …", site=str(directory),
        )  # fmt: skip
    kept = directory / artifact.FOLDER / "source"
    certificate = record.read_certificate(kept)
    asked, parts, rules, weights = record.read_evidence(kept)
    again = judge_evidence(asked, parts, rules, certificate.fingerprints, weights)
    network = load(directory)
    if of_file(kept / artifact.FOLDER / "certificate.json") != carried.get("sha256") or record.differences(
        msgspec.to_builtins(certificate), msgspec.to_builtins(again), ""
    ):
        raise VerificationFailed(
            "the certificate is not the one that was carried over, or does not follow from its evidence",
            expected="the records as they were written", mend="do not rely on it; certify again", site=str(directory),
        )  # fmt: skip
    names = [str(row.get("name")) for row in told.get("rows") or () if isinstance(row, dict)]
    if numbers_hash(network, names) != told.get("numbers"):
        raise VerificationFailed(
            "the files hold other numbers than those that were certified", expected="the numbers of the source",
            mend="do not rely on it; convert again", site=str(directory),
        )  # fmt: skip
    return certificate, sum(len(next(iter(part.scored.values())).drawn) for part in parts)
