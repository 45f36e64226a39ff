"""The records beside a certificate, written and read: evidence.json holds everything the certificate follows from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from pennyweight import catalogue
from pennyweight.budget import Budget, Certificate, Opening
from pennyweight.errors import PennyweightError, VerificationFailed
from pennyweight.flow import artifact
from pennyweight.flow.certifying import evidence
from pennyweight.flow.certifying.claims import Asked, resolve
from pennyweight.flow.certifying.judge import Evidence, Judged
from pennyweight.flow.certifying.rules import Rules
from pennyweight.numerics.hashing import canonical

MOST_UNITS = 1 << 26  # of a population; to check the order they were drawn in, all of them are drawn again


def write(directory: Path, judged: Judged, rules: Rules, asked: Sequence[Asked], weights: str) -> None:
    """Write certificate.json and evidence.json into our folder of a directory."""
    artifact.write_record(directory, "certificate.json", judged.certificate)
    value = {
        "weights": weights,
        "budgets": [asdict(one.budget) for one in asked],
        "rules": {
            "engine": rules.engine.name, "scope": rules.scope, "opening": asdict(rules.opening), "salt": rules.salt,
            "groups": rules.groups, "most": rules.most, "numbers": dict(rules.numbers),
            "noise_floor": dict(rules.noise_floor), "ledgers": dict(rules.ledgers),
        },
        "populations": [_of_evidence(part) for part in judged.evidence],
    }  # fmt: skip
    artifact.write_record(directory, "evidence.json", value)


def read_certificate(directory: Path) -> Certificate:
    """The certificate of an artifact.

    Raises:
        VerificationFailed: it is missing, or not a certificate.
    """
    value = artifact.read_record(directory, "certificate.json")
    try:
        found = msgspec.convert(value, Certificate)
    except msgspec.ValidationError as error:
        raise VerificationFailed(
            f"is not a certificate: {error}", expected="the fields pennyweight writes", mend="restore it from a copy",
            site=str(directory / artifact.FOLDER / "certificate.json"),
        ) from error  # fmt: skip
    if canonical(found) != canonical(value):  # reading passes over fields that nobody checks
        raise VerificationFailed(
            "it has fields that are not ours", expected="the fields pennyweight writes", mend="restore it from a copy",
            site=str(directory / artifact.FOLDER / "certificate.json"),
        )  # fmt: skip
    return found


def certificate_schema() -> dict[str, Any]:
    """JSON schema of certificate.json, for people who read it without us."""
    schema: dict[str, Any] = msgspec.json.schema(Certificate)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Pennyweight certificate", **schema
    }  # fmt: skip


def read_evidence(directory: Path) -> tuple[tuple[Asked, ...], tuple[Evidence, ...], Rules, str]:
    """What a certificate follows from: claims, evidence, rules, and the hash of the weights.

    Raises:
        VerificationFailed: a field is missing or of the wrong kind, or scores are not finite or of unequal lengths.
    """
    value: Any = artifact.read_record(directory, "evidence.json")
    try:
        stored = value["rules"]
        rules = Rules(
            engine=catalogue.find(stored["engine"], "certification"), scope=stored["scope"],
            opening=msgspec.convert(stored["opening"], Opening), salt=stored["salt"], groups=stored["groups"],
            numbers=stored["numbers"],
            most=stored["most"], noise_floor=stored["noise_floor"], ledgers=stored.get("ledgers", {}),
        )  # fmt: skip
        parts = tuple(_to_evidence(part) for part in value["populations"])
        asked = resolve([msgspec.convert(budget, Budget) for budget in value["budgets"]], text=False, outputs=True)
        return asked, parts, rules, str(value["weights"])
    except VerificationFailed:
        raise
    except (PennyweightError, msgspec.ValidationError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise VerificationFailed(
            f"the evidence cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            expected="evidence as it was written with the certificate", mend="restore it from a copy",
            site=str(directory / artifact.FOLDER / "evidence.json"),
        ) from error  # fmt: skip


def differences(true: Any, told: Any, name: str) -> list[str]:
    """Names of values that are not equal; roots and logarithms may differ in their last bits."""
    if isinstance(true, dict) and isinstance(told, dict):
        return [d for key in true for d in differences(true[key], told.get(key), f"{name}.{key}".lstrip("."))]
    if isinstance(true, list) and isinstance(told, list) and len(true) == len(told):
        return [d for i, pair in enumerate(zip(true, told, strict=True)) for d in differences(*pair, f"{name}[{i}]")]
    if isinstance(true, float) and isinstance(told, float):
        return [] if math.isclose(true, told, rel_tol=1e-9, abs_tol=1e-12) else [name]
    return [] if true == told else [name]


def _of_evidence(part: Evidence) -> dict[str, Any]:
    return {
        "on": part.on, "counted": part.counted, "words": part.words, "size": part.size, "discrete": part.discrete,
        "fingerprint": part.fingerprint, "documents": list(part.documents), "labels": list(part.labels),
        "selection": evidence.to_values(part.pilot) if part.pilot is not None else None,
        "certification": evidence.to_values(part.scored),
    }  # fmt: skip


def _to_evidence(value: Mapping[str, Any]) -> Evidence:
    pilot = value["selection"]
    if not value["certification"]["metrics"]:
        raise KeyError("metrics")
    if not 0 <= int(value["size"]) <= MOST_UNITS:
        raise ValueError(
            f"a population of {value['size']} units, where {MOST_UNITS} are the most that can be drawn from"
        )
    return Evidence(
        on=value["on"], counted=value["counted"], words=value["words"], size=int(value["size"]),
        discrete=bool(value["discrete"]), fingerprint=value["fingerprint"],
        documents=tuple(int(i) for i in value["documents"]), labels=tuple(str(label) for label in value["labels"]),
        pilot=None if pilot is None else evidence.from_values(pilot),
        scored=evidence.from_values(value["certification"]),
    )  # fmt: skip
