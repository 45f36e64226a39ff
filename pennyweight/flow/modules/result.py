"""What compressing a module ends with; saved, sealed, and loaded again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pennyweight.budget import Certificate
from pennyweight.flow import artifact
from pennyweight.flow.apply import Row
from pennyweight.flow.certifying import record
from pennyweight.flow.certifying.claims import Asked
from pennyweight.flow.certifying.judge import Judged, claims
from pennyweight.flow.certifying.rules import Rules
from pennyweight.flow.delivery import check_free
from pennyweight.flow.modules import store
from pennyweight.plan import Plan


@dataclass(frozen=True, kw_only=True, eq=False)
class CompressedModule:
    """A module made smaller, and what is claimed of it.

    Args:
        module: a copy with the restored weights in place, in evaluation mode.
        holds: whether every limit is certified.
        certificate: the claims, whether they hold or not.
        bytes: of all its tensors as they are stored: codes, scales, zero points, and everything dense.
        bytes_16_bit: of the module with all parameters in 16 bits, buffers as they are.
        plan: what became of each site.
        ledger: what was meant for each site and what became of it, with reasons.
        coverage: tokens that each expert saw, by site.
        rungs: a row for every candidate that was planned, from safe to small.
        stored: its tensors as they lie in a file.
        judged: the certificate with the evidence behind it.
        rules: how it was judged.
        asked: the claims.
        run: hashes and settings.
    """

    module: nn.Module
    holds: bool
    certificate: Certificate
    bytes: int
    bytes_16_bit: int
    plan: Plan
    ledger: tuple[Row, ...]
    coverage: Mapping[str, tuple[int, ...]]
    rungs: tuple[Mapping[str, Any], ...]
    stored: store.Stored
    judged: Judged
    rules: Rules
    asked: tuple[Asked, ...]
    run: Mapping[str, Any]


def save_compressed(result: CompressedModule, directory: str | Path) -> None:
    """Write a compressed module with its certificate and the evidence behind it; `pennyweight verify` checks them.

    Raises:
        InvalidOutput: the directory is not empty.
        DiskFull: there is no room.
    """
    out = Path(directory)
    check_free(out, Path(f"{out}.run"))
    store.write(result.stored, out)
    record.write(out, result.judged, result.rules, result.asked, result.certificate.fingerprints["weights"])
    artifact.write_text(out, "plan.toml", result.plan.to_toml())
    artifact.write_record(out, "ledger.json", [asdict(row) for row in result.ledger])
    artifact.write_record(out, "coverage.json", result.coverage)
    artifact.write_record(out, "ladder.json", result.rungs)
    artifact.write_record(out, "run.json", result.run)
    summary = {
        **claims(result.certificate, None), "budgets": [asdict(one.budget) for one in result.asked],
        "model": result.run["kind"], "engine": result.plan.engine, "bytes_stored": result.bytes,
        "bytes_16_bit": result.bytes_16_bit, "bytes_after": artifact.size_on_disk(out),
    }  # fmt: skip
    artifact.write_record(out, "summary.json", summary)
    artifact.seal(out)


def load_compressed(module: nn.Module, directory: str | Path) -> nn.Module:
    """A copy of a module with the weights that were saved, bit for bit as they were certified, in evaluation mode.

    Args:
        module: of the kind that was compressed, whatever its weights; it is not changed.
        directory: that `save_compressed` wrote.

    Raises:
        MissingFile: there is no such artifact.
        VerificationFailed: a file was changed since it was sealed.
        InvalidModel: the weights are not those of such a module.
    """
    place = Path(directory)
    stored = store.read(place)
    artifact.check_seal(place)
    return store.unpack(module, stored, site=str(place))
