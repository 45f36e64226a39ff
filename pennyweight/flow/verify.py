"""Check an artifact again: every hash, and the certificate recomputed from the evidence it rests on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pennyweight.budget import Certificate
from pennyweight.errors import InvalidPlan, PennyweightError, VerificationFailed
from pennyweight.flow import artifact
from pennyweight.flow.certifying import record
from pennyweight.flow.certifying.claims import Asked, is_discrete
from pennyweight.flow.certifying.judge import Evidence, claims, fingerprints_of, judge_evidence
from pennyweight.flow.certifying.rules import Rules, drawn_order, lot_of
from pennyweight.flow.converting import carry
from pennyweight.flow.rewrite import LARGEST_CHANGE
from pennyweight.methods.multiplicity import AlphaLedger
from pennyweight.network.sources.source import as_described
from pennyweight.numerics.hashing import of_value
from pennyweight.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was checked.

    Args:
        files: whose hashes agree with the seal.
        units: of evidence the certificate was recomputed from.
        certificate: as recomputed, equal to the stored one.
    """

    files: int
    units: int
    certificate: Certificate


def verify(directory: str | Path) -> Verified:
    """Check every file against the seal, and make the certificate again from the evidence.

    What it cannot see: an artifact whose evidence, certificate and seal were all made up to agree. For that, measure
    again on the same text: `pennyweight measure MODEL small/ --on text`.

    Raises:
        VerificationFailed: names what does not agree.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise VerificationFailed(
            "there is no such directory", expected="an artifact", mend="check the path", site=str(directory)
        )
    with as_described(lambda error: _unread(error, directory)):
        return _verified(directory)


def _unread(error: str, directory: Path) -> VerificationFailed:
    return VerificationFailed(
        f"the records are not of the form we write ({error})", expected="records as they were written",
        mend="restore them from a copy", site=str(directory),
    )  # fmt: skip


def _verified(directory: Path) -> Verified:
    count = artifact.check_seal(directory)
    if carry.is_converted(directory):
        carried, units = carry.check(directory)
        return Verified(files=count, units=units, certificate=carried)
    stored = record.read_certificate(directory)
    asked, parts, rules, weights = record.read_evidence(directory)
    try:
        _check_opening(asked, rules)
        for part in parts:
            _check_order(asked, part, weights, rules)
        again = judge_evidence(asked, parts, rules, stored.fingerprints, weights)
    except VerificationFailed:
        raise
    except (PennyweightError, KeyError, TypeError, ValueError, IndexError) as error:
        raise VerificationFailed(
            f"the evidence does not bear the certificate: {str(error).splitlines()[0]}",
            expected="evidence as it was written with the certificate", mend="restore it from a copy",
            site=str(directory),
        ) from error  # fmt: skip
    _check_fingerprints(directory, stored, parts, weights)
    if different := record.differences(msgspec.to_builtins(stored), msgspec.to_builtins(again), ""):
        raise VerificationFailed(
            f"the certificate does not follow from its evidence: {', '.join(different[:5])}",
            expected="the same values when it is computed again",
            mend="do not rely on it; certify again",
            site=str(directory / artifact.FOLDER / "certificate.json"),
        )
    told: Any = artifact.read_record(directory, "summary.json")
    text = next((part.scored for part in parts if part.on == ""), None)
    true: dict[str, Any] = {} if text is None else dict(msgspec.to_builtins(claims(again, text)))
    if not is_bare(directory):
        true["bytes_after"] = artifact.size_on_disk(directory)
    wrong = record.differences(true, told, "") if isinstance(told, dict) else ["nothing"]
    if wrong:
        raise VerificationFailed(
            f"the summary says other than the certificate: {', '.join(wrong[:5])}",
            expected="the values that follow from the evidence", mend="do not rely on it; certify again",
            site=str(directory / artifact.FOLDER / "summary.json"),
        )  # fmt: skip
    return Verified(files=count, units=sum(len(next(iter(p.scored.values())).drawn) for p in parts), certificate=again)


def is_bare(directory: Path) -> bool:
    """Whether a directory holds a certificate alone, for a model that lies elsewhere."""
    return all(name.startswith(f"{artifact.FOLDER}/") for name in artifact.files(directory))


def _check_opening(asked: Sequence[Asked], rules: Rules) -> None:
    """Refuse an opening with a level that its number does not have, or that says it spent less than its own level.

    What other openings spent depends on their confidences, which are not told here: any one of them may have been tiny.
    """
    opening, total = rules.opening, 1 - asked[0].budget.confidence
    number = max(rules.numbers.values(), default=1)
    levels = [AlphaLedger(reserve=reserve).level(total, number) for reserve in (False, True)]
    alone = math.isclose(opening.spent, opening.alpha, rel_tol=1e-9)
    if (
        opening.number != number
        or not any(math.isclose(opening.alpha, level, rel_tol=1e-9) for level in levels)
        or (not alone if number == 1 else alone or opening.spent < opening.alpha)
    ):
        raise VerificationFailed(
            f"opening {opening.number} at level {opening.alpha:g}, {opening.spent:g} spent, is not one that the ledger "
            "gives",
            expected=f"opening {number} at level {levels[0]:g}, or {levels[1]:g} in reserve, and the sum spent so far",
            mend="do not rely on it; certify again", site="evidence.json",
        )  # fmt: skip


def _check_order(asked: Sequence[Asked], part: Evidence, weights: str, rules: Rules) -> None:
    found = next(iter(part.scored.values()))
    documents = np.array(part.documents, dtype=np.int64)
    lot = lot_of(asked, part.pilot, rules, part.on)
    _, order = drawn_order(part.size, part.fingerprint, documents, weights, rules, part.on, lot)
    if found.drawn.tolist() != order[: len(found.drawn)].tolist():
        raise VerificationFailed(
            "the units were not scored in the order that the hashes prescribe",
            expected="a random order that follows from text and artifact", mend="do not rely on it",
            site="evidence.json",
        )  # fmt: skip
    metrics = [one.metric for one in asked if one.on == part.on]
    discrete = is_discrete(metrics[0]) if metrics and metrics[0].reads == "outputs" else bool(part.on)
    if (
        part.discrete != discrete
        or found.fingerprint != part.fingerprint
        or (rules.groups and len(part.labels) != part.size)
    ):
        raise VerificationFailed(
            "the scores are of other units than the evidence says", expected="one population", site="evidence.json"
        )


def _check_fingerprints(directory: Path, stored: Certificate, parts: tuple[Evidence, ...], weights: str) -> None:
    known = stored.fingerprints
    run: Any = artifact.read_record(directory, "run.json")
    expected = {name: str(run.get(name) if isinstance(run, dict) else None) for name in ("model", "code")}
    expected["weights"] = weights
    expected |= fingerprints_of(parts)
    if not is_bare(directory):
        expected["artifact"] = artifact.model_hash(directory)
        plan = _plan(directory)
        expected["plan"] = of_value(plan.to_toml())
        _check_rewrites(directory, run, plan)
        texts = run.get("texts") if isinstance(run, dict) else None
        expected["calibration"] = str(texts.get("calibration") if isinstance(texts, dict) else None)
        _equal("weights", weights, artifact.weights_hash(directory), directory)
    if unknown := sorted(set(known) - set(expected)):
        raise VerificationFailed(
            f"the certificate names hashes that nothing bears out: {', '.join(unknown)}",
            expected=f"hashes of {', '.join(expected)}", mend="do not rely on it", site=str(directory),
        )  # fmt: skip
    for name, found in expected.items():
        _equal(name, known.get(name), found, directory)


def _check_rewrites(directory: Path, run: Any, plan: Plan) -> None:
    """Refuse a plan that names other rewrites than the run, or a probe that found the function changed."""
    settings = run.get("settings") if isinstance(run, dict) else None
    told = settings.get("rewrites", []) if isinstance(settings, dict) else []
    steps: Any = artifact.read_record(directory, "rewrite.json").get("steps") if plan.rewrites else []
    changes = [step.get("change") if isinstance(step, dict) else None for step in steps or []]
    exact = all(isinstance(change, float | int) and change <= LARGEST_CHANGE for change in changes)
    if list(plan.rewrites) != list(told) or len(changes) != len(plan.rewrites) or not exact:
        raise VerificationFailed(
            f"the plan rewrites the model by {', '.join(plan.rewrites) or 'nothing'}; the records do not bear it out",
            expected="the same rewrites in plan.toml, run.json and rewrite.json, none of which changed the function",
            mend="restore it from a copy", site=str(directory),
        )  # fmt: skip


def _plan(directory: Path) -> Plan:
    path = directory / artifact.FOLDER / "plan.toml"
    try:
        return Plan.from_toml(path.read_text(encoding="utf-8"), site=str(path))
    except (OSError, UnicodeDecodeError, InvalidPlan) as error:
        raise VerificationFailed(
            f"the plan cannot be read: {str(error).splitlines()[0]}", expected="the plan that was carried out",
            mend="restore it from a copy", site=str(path),
        ) from error  # fmt: skip


def _equal(what: str, stored: str | None, found: str, directory: Path) -> None:
    if stored != found:
        raise VerificationFailed(
            f"the certificate names another {what} hash ({str(stored)[:12]}…, here {found[:12]}…)",
            expected=f"the {what} that was certified", mend="restore it from a copy", site=str(directory),
        )  # fmt: skip
