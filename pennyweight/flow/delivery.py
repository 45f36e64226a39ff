"""The end of a run: everything beside the chosen candidate's files, sealed, and moved to its place at once."""

from __future__ import annotations

import math
import os
import platform
import resource
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from pennyweight.budget import Budget, Certificate
from pennyweight.errors import InfeasibleBudget, InvalidOutput
from pennyweight.flow import artifact
from pennyweight.flow.candidate import Candidate
from pennyweight.flow.certifying import record
from pennyweight.flow.certifying.claims import Asked
from pennyweight.flow.certifying.judge import Judged, claims
from pennyweight.flow.certifying.rules import Rules
from pennyweight.flow.profiling.values import Calibration
from pennyweight.flow.progress import Progress
from pennyweight.flow.rewrite import Step
from pennyweight.network.network import Network
from pennyweight.numerics.hashing import canonical


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run ended with.

    Args:
        out: directory of the artifact.
        certificate: the claim, whether it holds or not.
        holds: whether the budget is met: a certified loss, or a size that fits.
        summary: numbers for people and machines.
    """

    out: Path
    certificate: Certificate
    holds: bool
    summary: Mapping[str, Any]


def deliver(
    out: Path,
    best: Candidate,
    judged: Judged,
    rungs: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    header: Mapping[str, Any],
    reference: Network,
    *,
    rewritten: Sequence[Step] = (),
    search: Mapping[str, Any] | None = None,
    explanation: Mapping[str, Any] | None = None,
    asked: Sequence[Asked],
    rules: Rules,
    calibration: Calibration | None,
    seconds: float,
    progress: Progress,
) -> None:
    """Write every record beside a candidate's files, seal them, and move them to `out`.

    Until it is moved the candidate stays where a resumed run looks for it; records are then written once more.

    Args:
        out: directory of the artifact.
        best: the candidate chosen.
        judged: its certificate and evidence.
        rungs: a row for every candidate.
        facts: its ledger and accounting.
        header: of the run.
        reference: the model handed in.
        rewritten: what was done to it before it was compressed.
        search: what a search with measurements took and found, if there was one.
        explanation: why its plan is as it is, where that is known.
        asked: the claims.
        rules: how they were judged.
        calibration: of the next-token probabilities on the selection split.
        seconds: the run took, this process alone.
        progress: seconds and memory by stage.
    """
    staged, certificate = best.directory, judged.certificate
    record.write(staged, judged, rules, asked, best.weights)
    artifact.write_record(staged, "calibration.json", calibration)
    artifact.write_record(staged, "ledger.json", facts["ledger"])
    artifact.write_record(staged, "accounting.json", facts["accounting"])
    artifact.write_record(staged, "ladder.json", rungs)
    artifact.write_record(staged, "run.json", {**header, "source": reference.source.description})
    artifact.write_text(staged, "plan.toml", best.plan.to_toml())
    if rewritten:
        artifact.write_record(staged, "rewrite.json", {"steps": [asdict(step) for step in rewritten]})
    if search is not None:
        artifact.write_record(staged, "search.json", search)
    if explanation is not None:
        artifact.write_record(staged, "explanation.json", explanation)
    summary = {
        **claims(certificate, judged.text),
        "budgets": [asdict(one.budget) for one in asked], "model": str(reference.source.path.name),
        "source": reference.source.description, "engine": best.plan.engine,
        "bytes_before": reference.source.stored_bytes, "bytes_16_bit": 2 * weights_of(reference),
        "bytes_after": best.size, "bits": 8 * facts["accounting"]["written"] / weights_of(reference),
    }  # fmt: skip
    artifact.write_record(staged, "summary.json", summary)
    artifact.seal(staged)
    timing = {
        "seconds": seconds, "stages": progress.seconds, "peaks": progress.peaks,
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {header['settings']['threads']} threads",
    }  # fmt: skip
    artifact.write_record(staged, "timing.json", timing)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        out.rmdir()
    staged.rename(out)


def weights_of(network: Network) -> int:
    """Elements of all tensors; tied ones count once."""
    return sum(math.prod(info.shape) for info in network.source.tensors.values())


def check_size(limit: Budget | None, best: Candidate) -> None:
    """Refuse to call a size budget met when the files came out larger.

    Raises:
        InfeasibleBudget: they did.
    """
    if limit is not None and limit.metric == "size" and best.size > limit.at_most:
        raise InfeasibleBudget(
            f"the files came out at {best.size} bytes, over the {limit.at_most:.0f} allowed",
            expected="a prediction that counts headers in full", site="--fit",
            mend=f"--fit {best.size}B, and report this",
        )  # fmt: skip


def check_free(out: Path, run: Path) -> None:
    """Refuse an output that is taken; whether it is this very run's own is known once its header is."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not run.exists())):
        raise _taken(out)


def finished(out: Path, run: Path, header: Mapping[str, Any]) -> Outcome:
    """The outcome of a run that was killed when all was done but removing its leftovers."""
    stored = artifact.read_record(out, "run.json") if (out / artifact.SEAL).is_file() else None
    if not isinstance(stored, dict) or any(
        stored.get(k) != v for k, v in msgspec.json.decode(canonical(header)).items()
    ):
        raise _taken(out)
    shutil.rmtree(run, ignore_errors=True)
    return outcome_of(out)


def _taken(out: Path) -> InvalidOutput:
    return InvalidOutput(
        "the output directory is not empty" if out.is_dir() else "the output is a file",
        expected="a directory that does not exist yet, or an empty one",
        mend="choose another --out, or remove it",
        site=str(out),
    )


def outcome_of(out: Path) -> Outcome:
    """What an artifact says of the run that made it."""
    summary = artifact.read_record(out, "summary.json")
    return Outcome(out=out, certificate=record.read_certificate(out), holds=bool(summary["holds"]), summary=summary)
