"""Certify any two models that read the same tokens, whoever made the second; the certificate lies beside it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pennyweight.budget import Budget, Measurement
from pennyweight.budget import Opening as Opened
from pennyweight.corpus import (
    check_disjoint,
    cut,
    describe_source,
    fingerprint_of,
    read_documents,
    require_windows,
    split_documents,
)
from pennyweight.flow import artifact
from pennyweight.flow.certifying import evidence, record
from pennyweight.flow.certifying.claims import Asked, check_engine, resolve, text_metrics, usual_engine
from pennyweight.flow.certifying.judge import (
    Evidence,
    Judged,
    claims,
    fingerprints_of,
    judge_evidence,
    judge_population,
    verdict_of,
)
from pennyweight.flow.certifying.noise import noise_floor
from pennyweight.flow.certifying.openings import close_opening, open_all
from pennyweight.flow.certifying.populations import Population, Text, check_units, ledgers_of, tasks_of
from pennyweight.flow.certifying.rules import Pilot, Rules, check_feasible, check_noise
from pennyweight.flow.delivery import Outcome, check_free, finished, outcome_of
from pennyweight.flow.journal import Journal, open_run
from pennyweight.flow.load import check_pair, load
from pennyweight.flow.profiling.calibration import calibrate
from pennyweight.flow.progress import QUIET, Progress
from pennyweight.flow.text import check_vocabulary, some
from pennyweight.flow.versions import versions
from pennyweight.network.network import Network
from pennyweight.network.sources.tokenizer import load_tokenizer, separator_id
from pennyweight.numerics.hashing import of_value

SHARES = {"selection": 0.15, "certification": 0.85}
LEAST = {"selection": 8, "certification": 20}


@dataclass(frozen=True, kw_only=True)
class Judging:
    """How two models are compared; all of it is part of the run's header.

    Args:
        length: tokens in a window.
        selection_windows: for planning, at most; never part of the claim.
        most: units scored at most; None for as many as the terms allow.
        scope: `corpus`, `source` or `asymptotic`.
        bound: the certification engine, by name; None for the usual one of the scope.
        groups: field of documents or questions by which the bounds are repeated, or None.
        reserve: whether to keep some of the error level for later openings of the same text.
        salt: declared part of the order's seed.
        seed: of the choice of planning windows.
        threads: of the arithmetic.
    """

    length: int = 256
    selection_windows: int = 32
    most: int | None = None
    scope: str = "corpus"
    bound: str | None = None
    groups: str | None = None
    reserve: bool = False
    salt: str = ""
    seed: int = 0
    threads: int = 0


def certify_pair(
    model: str | Path,
    compressed: str | Path,
    out: str | Path,
    *,
    budgets: Sequence[Budget],
    on: str | Path | None = None,
    pilot: str | Path | None = None,
    judging: Judging | None = None,
    allow_network: bool = False,
    progress: Progress = QUIET,
) -> Outcome:
    """Certify what a model lost to another one, and write the certificate with its evidence to a directory.

    Killed at any moment, the same call goes on in `out` + `.run` and ends with the same bytes.

    Args:
        model: the reference: directory, GGUF file, or hub id with `allow_network`.
        compressed: the model after: the same kinds, compressed-tensors checkpoints of any maker, or an ONNX file.
        out: directory to make; must not exist or be empty.
        budgets: limits on losses.
        on: text; a part of its documents plans the claim and the rest carries it. None for the text every Python
            carries, if a limit needs a text at all.
        pilot: other text to plan with; `on` is then kept whole for the claim.
        judging: everything else.
        allow_network: whether a hub id may be downloaded.
        progress: told about every stage.

    Raises:
        PennyweightError: see `errors`; bad input is refused before any work is done.
    """
    judging = judging or Judging()
    judging = replace(judging, threads=judging.threads or torch.get_num_threads())
    needs_text = on is not None or not all(budget.on for budget in budgets)
    asked = resolve(budgets, text=needs_text)
    engine = usual_engine(judging.scope, judging.bound)
    check_engine(asked, engine)
    tasks = tasks_of(asked)
    out = Path(out) if Path(out).name not in ("", "..") else Path(out).resolve()
    run = out.parent / f"{out.name}.run"
    check_free(out, run)
    started = time.monotonic()
    before = load(model, allow_network=allow_network)
    after = load(compressed, allow_network=allow_network)
    check_pair(before, after)
    populations: list[Population] = []
    pilots: dict[str, Population | None] = {}
    if needs_text:
        selection, certification = _texts(before, on, pilot, judging)
        populations.append(certification)
        pilots[""] = selection
    for name, (planning, claim) in tasks.items():
        populations.append(claim)
        pilots[name] = planning
    labels = check_units(populations, judging.groups)
    header = {
        "model": before.source.fingerprint, "compressed": after.source.fingerprint,
        "texts": {p.on: p.fingerprint for p in populations},
        "pilots": {on: planning.fingerprint if planning else None for on, planning in pilots.items()},
        "budgets": [asdict(one) for one in budgets],
        "settings": asdict(judging), "groups": of_value(labels), "code": artifact.code_hash(), "versions": versions(),
    }  # fmt: skip
    if out.exists() and any(out.iterdir()):
        return finished(out, run, header)
    torch.set_num_threads(judging.threads)
    with open_run(run, header) as journal:
        floor = {}
        if needs_text:
            floor = noise_floor(before, selection.windows, journal, progress, metrics=text_metrics(asked))
        check_noise(asked, floor)
        scores = {
            on: _pilot(planning, asked, before, after, journal, progress) for on, planning in pilots.items() if planning
        }
        total = 1 - asked[0].budget.confidence
        rules = Rules(
            engine=engine, scope=judging.scope, salt=judging.salt, groups=judging.groups, most=judging.most,
            opening=Opened(number=1, alpha=total, spent=total), noise_floor=floor,
        )  # fmt: skip
        check_feasible(asked, populations, scores, rules, total)
        ledgers = ledgers_of(populations, before)
        opened, level, numbers = open_all(
            ledgers, of_value(header), total=total, candidate=after.source.fingerprint,
            claims=[one.budget.label for one in asked if one.budget.is_claim], reserve=judging.reserve,
        )  # fmt: skip
        rules = replace(rules, opening=level, numbers=numbers, ledgers=ledgers)
        judged = _judge(asked, populations, scores, before, after, journal, rules, str(header["code"]), progress)
        told = None
        if needs_text:
            told = calibrate(
                before,
                after,
                selection.windows,
                asked[0].budget.confidence,
                judging.seed,
                journal,
                "calibration.json",
                progress,
            )
        artifact.write_record(journal.directory / "certificate", "calibration.json", told)
        _write(journal.directory / "certificate", judged, rules, asked, header, before, after, compressed)
        artifact.write_record(
            journal.directory / "certificate", "timing.json",
            {"seconds": time.monotonic() - started, "stages": progress.seconds, "peaks": progress.peaks},
        )  # fmt: skip
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists():
            out.rmdir()
        (journal.directory / "certificate").rename(out)
        for opening in opened:
            close_opening(opening, verdict_of(judged.certificate))
    shutil.rmtree(run)
    return outcome_of(out)


def _texts(network: Network, on: str | Path | None, pilot: str | Path | None, judging: Judging) -> tuple[Text, Text]:
    documents, sources = read_documents(on), dict.fromkeys(SHARES, describe_source(on))
    if pilot is None:
        parts = split_documents(documents, shares=SHARES)
    else:
        planning = read_documents(pilot)
        check_disjoint(planning, documents)
        parts = {"selection": planning, "certification": documents}
        sources["selection"] = describe_source(pilot)
    tokenizer = load_tokenizer(network.source)
    separator = separator_id(network.source, tokenizer)
    cuts = {}
    for split, least in LEAST.items():
        whole = cut(
            parts[split], tokenizer, length=judging.length, split=split, source=sources[split], separator=separator,
            apart=judging.scope == "source",
        )  # fmt: skip
        require_windows(whole, least, "planning" if split == "selection" else "certifying")
        check_vocabulary(whole, network)
        cuts[split] = whole
    planned = some(cuts["selection"], judging.selection_windows, judging.seed)
    return Text(planned), Text(cuts["certification"], fingerprint_of(documents))


def _pilot(
    population: Population,
    asked: Sequence[Asked],
    before: Network,
    after: Network,
    journal: Journal,
    progress: Progress,
) -> dict[str, Measurement]:
    piece = f"selection/{population.fingerprint[:16]}.json"
    if not journal.has(piece):
        scorer = population.scorer(before, after, journal, text_metrics(asked))
        with progress.stage(f"planning on {population.counted}", len(population)) as advance:
            scores = scorer.score(np.arange(len(population), dtype=np.int64), advance)
        journal.save(piece, evidence.to_values(scores))
    return evidence.from_values(journal.load(piece))


def _judge(
    asked: Sequence[Asked], populations: Sequence[Population], pilots: dict[str, dict[str, Measurement]],
    before: Network, after: Network, journal: Journal, rules: Rules, code: str,
    progress: Progress,
) -> Judged:  # fmt: skip
    weights = after.source.fingerprint
    parts = list[Evidence]()
    for population in populations:
        pilot: Pilot | None = pilots.get(population.on)
        mine = [one for one in asked if one.on == population.on]
        parts.append(
            judge_population(
                f"certification/{population.fingerprint[:16]}", mine, population, pilot, before, after, journal, rules,
                weights=weights, claims=len(asked), progress=progress,
            )
        )  # fmt: skip
    fingerprints = {
        "model": before.source.fingerprint, "weights": weights, "code": code, **fingerprints_of(parts)
    }  # fmt: skip
    return Judged(judge_evidence(asked, parts, rules, fingerprints, weights), tuple(parts))


def _write(
    staged: Path, judged: Judged, rules: Rules, asked: Sequence[Asked], header: dict[str, Any],
    before: Network, after: Network, compressed: str | Path,
) -> None:  # fmt: skip
    record.write(staged, judged, rules, asked, after.source.fingerprint)
    artifact.write_record(staged, "run.json", {**header, "source": before.source.description})
    summary = {
        **claims(judged.certificate, judged.text), "budgets": header["budgets"],
        "model": before.source.path.name, "compressed": Path(compressed).name,
        "source": before.source.description, "compressed_source": after.source.description,
        "bytes_before": before.source.stored_bytes, "bytes_after": after.source.stored_bytes,
    }  # fmt: skip
    artifact.write_record(staged, "summary.json", summary)
    artifact.seal(staged)
