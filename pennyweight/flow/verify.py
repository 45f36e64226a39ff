"""Check an artifact again: every hash, and the certificate recomputed from the evidence it rests on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pennyweight.budget import Certificate
from pennyweight.errors import InvalidPlan, PennyweightError, VerificationFailed
from pennyweight.flow import artifact, evidence
from pennyweight.flow.certify import claims, scope_seed, terms_for
from pennyweight.methods.certification import certify
from pennyweight.numerics.hashing import of_value
from pennyweight.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was checked.

    Args:
        files: whose hashes agree with the seal.
        windows: of evidence the certificate was recomputed from.
        certificate: as recomputed, equal to the stored one.
    """

    files: int
    windows: int
    certificate: Certificate


def read_certificate(directory: Path) -> Certificate:
    """The certificate of an artifact.

    Raises:
        VerificationFailed: it is missing, or not a certificate.
    """
    value = artifact.read_record(directory, "certificate.json")
    try:
        return msgspec.convert(value, Certificate)
    except msgspec.ValidationError as error:
        raise VerificationFailed(
            f"is not a certificate: {error}", expected="the fields pennyweight writes", mend="restore it from a copy",
            site=str(directory / artifact.FOLDER / "certificate.json"),
        ) from error  # fmt: skip


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
    count = artifact.check_seal(directory)
    stored = read_certificate(directory)
    records: dict[str, Any] = artifact.read_record(directory, "evidence.json")
    try:
        selection = evidence.from_values(records["selection"])
        measured = evidence.from_values(records["certification"])
        again = _again(stored, selection, measured, records["salt"])
    except VerificationFailed:
        raise
    except (PennyweightError, KeyError, TypeError, ValueError) as error:
        raise VerificationFailed(
            f"the evidence does not bear the certificate: {str(error).splitlines()[0]}",
            expected="evidence as it was written with the certificate", mend="restore it from a copy",
            site=str(directory),
        ) from error  # fmt: skip
    _equal("artifact", stored.fingerprints.get("artifact"), artifact.model_hash(directory), directory)
    _equal("weights", stored.fingerprints.get("weights"), artifact.weights_hash(directory), directory)
    _equal("plan", stored.fingerprints.get("plan"), of_value(_plan(directory).to_toml()), directory)
    run: Any = artifact.read_record(directory, "run.json")
    for name in ("model", "code"):
        _equal(name, stored.fingerprints.get(name), str(run.get(name) if isinstance(run, dict) else None), directory)
    _equal(
        "certification", stored.fingerprints.get("certification"), records["certification"]["fingerprint"], directory
    )
    _equal("selection", stored.fingerprints.get("selection"), records["selection"]["fingerprint"], directory)
    before, after = msgspec.to_builtins(stored), msgspec.to_builtins(again)
    different = [name for name in before if not _agree(name, before[name], after[name])]
    if different:
        raise VerificationFailed(
            f"the certificate does not follow from its evidence: {', '.join(different)}",
            expected="the same values when it is computed again",
            mend="do not rely on it; compress again",
            site=str(directory / artifact.FOLDER / "certificate.json"),
        )
    told: Any = artifact.read_record(directory, "summary.json")
    true = {**claims(again, measured), "bytes_after": artifact.size_on_disk(directory)}
    if not isinstance(told, dict) or (wrong := [name for name in true if not _close(told.get(name), true[name])]):
        raise VerificationFailed(
            f"the summary says other than the certificate: {', '.join(wrong) if isinstance(told, dict) else 'nothing'}",
            expected="the values that follow from the evidence", mend="do not rely on it; compress again",
            site=str(directory / artifact.FOLDER / "summary.json"),
        )  # fmt: skip
    return Verified(files=count, windows=len(measured["perplexity"].windows), certificate=again)


def _again(stored: Certificate, selection: Any, measured: Any, salt: str) -> Certificate:
    population = stored.terms.population
    if population is None:
        raise VerificationFailed("a certificate of a corpus needs its number of windows", site="certificate.json")
    terms = terms_for(stored.budget, selection["perplexity"], population, stored.terms.n_max)
    loss = measured["perplexity"]
    seed, order = evidence.random_order(population, loss.fingerprint, stored.fingerprints["weights"], salt)
    if loss.windows.tolist() != order[: len(loss.windows)].tolist():
        raise VerificationFailed(
            "the windows were not scored in the order that the hashes prescribe",
            expected="a random order that follows from text and artifact", mend="do not rely on it",
            site="evidence.json",
        )  # fmt: skip
    if scope_seed(stored.scope) != seed:
        raise VerificationFailed("the scope names another order seed", site="certificate.json")
    return certify(loss, stored.budget, terms, scope=stored.scope, fingerprints=dict(stored.fingerprints))


def _agree(name: str, before: Any, after: Any) -> bool:
    """Equal; roots and logarithms may differ in their last bits between processors."""
    if name in ("bound", "log_wealth", "tail_bound"):
        return math.isclose(before, after, rel_tol=1e-9, abs_tol=1e-12)
    return bool(before == after)


def _close(told: Any, true: Any) -> bool:
    """Equal, but for the last bits of an exponential."""
    if isinstance(true, float) and isinstance(told, float):
        return math.isclose(told, true, rel_tol=1e-9, abs_tol=1e-12)
    return bool(told == true)


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
