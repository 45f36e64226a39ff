"""The whole curve: what every size costs, measured at many points, each of which is a plan."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import torch
from scipy.stats import t as student

from pennyweight import catalogue
from pennyweight.flow.artifact import code_hash
from pennyweight.flow.collect import Collected, collect
from pennyweight.flow.delivery import weights_of
from pennyweight.flow.job import planner_of
from pennyweight.flow.journal import Journal, open_run
from pennyweight.flow.load import load
from pennyweight.flow.make_plan import Planner, check_files, usual_dtype
from pennyweight.flow.options import tabulate
from pennyweight.flow.progress import QUIET, Progress
from pennyweight.flow.rewrite import rewrite
from pennyweight.flow.save import check_empty
from pennyweight.flow.search.bank import Bank
from pennyweight.flow.search.evaluate import Evaluator, world_of
from pennyweight.flow.search.study import open_study
from pennyweight.flow.settings import Settings
from pennyweight.flow.text import Texts, texts
from pennyweight.flow.versions import versions
from pennyweight.flow.working.pool import Pool, workers_of
from pennyweight.flow.working.task import Workers
from pennyweight.network.network import Network
from pennyweight.numerics.hashing import canonical, of_value
from pennyweight.plan import Option, Plan
from pennyweight.problem import Choice, Limit, Problem, choice_of

SAFEST = 1e-3  # nats of predicted damage below which nobody looks for a smaller loss
CONFIDENCE = 0.95  # of an interval


@dataclass(frozen=True, kw_only=True)
class Point:
    """One plan of the curve.

    Args:
        plan: number of it, from the smallest on.
        bytes: of its files, predicted.
        bits: stored per weight, all tensors counted.
        predicted: KL by prediction alone, nats per token.
        kl: measured on the selection split.
        low: end of an interval of 95 % for the mean over the text's windows, by this point alone.
        high: its other end.
    """

    plan: int
    bytes: int
    bits: float
    predicted: float
    kl: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """The curve.

    Args:
        out: directory of pictures and plans.
        model: name.
        engine: whose files the sizes are of.
        text: that was measured on.
        tokens: of it, whole windows.
        bytes_16_bit: of all weights in 16 bits.
        points: by size.
    """

    out: Path
    model: str
    engine: str
    text: str
    tokens: int
    bytes_16_bit: int
    points: tuple[Point, ...]


def frontier(
    model: str | Path,
    out: str | Path,
    *,
    points: int = 40,
    tokens: int = 4096,
    calibration: str | Path | None = None,
    settings: Settings | None = None,
    study: str | Path | None = None,
    allow_network: bool = False,
    progress: Progress = QUIET,
    workers: Pool | None = None,
) -> Frontier:
    """Measure plans of many sizes, from the smallest one to where nothing is lost any more.

    Killed at any moment, the same call goes on in `out` + `.run`.

    Args:
        model: directory, GGUF file, or hub id with `allow_network`.
        out: directory to make: `frontier.json` and a plan a point, `plans/07.toml`.
        points: wanted; there are fewer where sizes are too coarse for so many.
        tokens: of the selection split that each is measured on.
        calibration: text; None for the one every Python carries.
        settings: engine, quantizer, allocator and so on.
        study: file that remembers what was measured; None for one beside `out`.
        allow_network: whether a hub id may be downloaded.
        progress: told about every stage.
        workers: processes that share the work, with the same bytes.

    Raises:
        PennyweightError: see `errors`.
    """
    settings, out = settings or Settings(), Path(out)
    settings.check_rounds_nothing("a frontier", "frontier")
    run = out.parent / f"{out.name}.run"
    if not run.exists():
        check_empty(out)
    torch.set_num_threads(settings.threads)
    reference = load(model, allow_network=allow_network)
    settings = replace(settings, dtype=settings.dtype or usual_dtype(reference))
    assert settings.dtype is not None
    check_files(reference, settings.target, settings.dtype)
    words = texts(
        reference, calibration, None, length=settings.length, count=settings.calibration_windows,
        selection=max(settings.selection_windows, -(-tokens // settings.length)), seed=settings.seed,
    )  # fmt: skip
    header = {
        "frontier": points, "tokens": tokens, "model": reference.source.fingerprint, "texts": words.fingerprints,
        "settings": asdict(settings), "code": code_hash(), "versions": versions(),
    }  # fmt: skip
    if (done := _finished(out, of_value(header))) is not None:  # killed when all was done but clearing up
        shutil.rmtree(run)
        return done
    check_empty(out)
    with open_run(run, header) as journal:
        network, _ = rewrite(
            reference, settings.rewrites, calibration=words.calibration, seed=settings.seed, journal=journal,
            progress=progress,
        )  # fmt: skip
        shared = workers_of(workers, reference, network, journal, settings)
        collected = collect(
            network, words.calibration, journal, fisher_windows=settings.fisher_windows, seed=settings.seed,
            progress=progress, workers=shared,
        )  # fmt: skip
        planner = _planner(reference, network, collected, settings, journal, progress, shared)
        path = out.parent / f"{out.name}.study.sqlite" if study is None else Path(study)
        choices = spread(planner, points)
        measured = _measured(planner, choices, collected, words, tokens, journal, path, progress, shared)
        found = Frontier(
            out=out, model=reference.source.path.name, engine=settings.engine, text=words.selection.source,
            tokens=min(len(words.selection), max(1, tokens // settings.length)) * words.selection.ids.shape[1],
            bytes_16_bit=2 * weights_of(reference), points=tuple(point for point, _ in measured),
        )  # fmt: skip
        _write(found, [plan for _, plan in measured], journal, of_value(header))
    shutil.rmtree(run)
    return found


def spread(planner: Planner, points: int) -> list[tuple[Option, ...]]:
    """Choices of evenly spaced sizes, from the smallest to where the predicted damage is next to nothing.

    Raises:
        InfeasibleBudget: the engine takes nothing of the model compressed.
    """
    table = planner.table.groups
    if not table:
        planner.within(Limit("damage", SAFEST))  # says why
    solver = catalogue.find(planner.allocation, "allocation")
    least = sum(min(option.bytes for option in row) for row in table)
    if planner.always:
        least = sum(option.bytes for option in solver.allocate(table, Problem("bytes", planner.always)))
    most = sum(o.bytes for o in solver.allocate(table, Problem.of(Limit("damage", SAFEST), *planner.always)))
    found: dict[tuple[str, ...], tuple[Option, ...]] = {}
    for size in np.linspace(least, max(least, most), points):
        choice = solver.allocate(table, Problem.of(Limit("bytes", float(size) + 0.5), *planner.always))
        found.setdefault(tuple(option.step.label() for option in choice), choice)
    return list(found.values())


def _planner(
    reference: Network, network: Network, collected: Collected, settings: Settings, journal: Journal,
    progress: Progress, workers: Workers,
) -> Planner:  # fmt: skip
    assert settings.dtype is not None
    table = tabulate(
        network, collected, settings.target, journal, dtype=settings.dtype, method=settings.method,
        pricing=settings.pricing, progress=progress, workers=workers,
    )  # fmt: skip
    return planner_of(network, settings, table, model=reference)


def _measured(
    planner: Planner, choices: Sequence[Sequence[Option]], collected: Collected, words: Texts, tokens: int,
    journal: Journal, study: Path, progress: Progress, workers: Workers,
) -> list[tuple[Point, Plan]]:  # fmt: skip
    """Only options that some choice takes are carried out."""
    used = tuple(
        tuple(option for option in row if any(choice[g] is option for choice in choices))
        for g, row in enumerate(planner.table.groups)
    )
    bank = Bank(planner.network, used, journal, planner.seed)
    bank.fill(collected, progress=progress, workers=workers)
    weights, found = weights_of(planner.network), list[tuple[Point, Plan]]()
    with (
        open_study(study, world_of(bank, words.selection, collected.fingerprint)) as remembered,
        progress.stage("measuring plans", len(choices)) as advance,
    ):
        trials = Evaluator(bank, words.selection, remembered, seed=planner.seed, workers=workers)
        places: list[Choice] = [choice_of(used, choice) for choice in choices]
        answers = (
            answer
            for start in range(0, len(places), workers.count)
            for answer in trials.answers(places[start : start + workers.count], tokens=tokens)
        )
        for number, (choice, answer) in enumerate(zip(choices, answers, strict=True)):
            plan = planner.plan(choice)
            windows = trials.counted(tokens) // words.selection.ids.shape[1]
            quantile = float(student.ppf((1 + CONFIDENCE) / 2, windows - 1)) if windows > 1 else float("inf")
            reach = quantile * answer.error if windows > 1 else answer.kl
            point = Point(
                plan=number, bytes=planner.size(choice), bits=8 * plan.bytes / weights, predicted=plan.damage,
                kl=answer.kl, low=max(0.0, answer.kl - reach), high=answer.kl + reach,
            )  # fmt: skip
            found.append((point, plan))
            advance()
    return found


def _write(found: Frontier, plans: Sequence[Plan], journal: Journal, run: str) -> None:
    """Everything at once: the directory appears when it is complete."""
    staged = journal.directory / "staged"
    shutil.rmtree(staged, ignore_errors=True)
    (staged / "plans").mkdir(parents=True)
    for point, plan in zip(found.points, plans, strict=True):
        (staged / "plans" / f"{point.plan:02d}.toml").write_text(plan.to_toml(), encoding="utf-8")
    value = {**asdict(found), "out": found.out.name, "run": run}
    (staged / "frontier.json").write_bytes(canonical(value))
    if found.out.exists():
        found.out.rmdir()
    found.out.parent.mkdir(parents=True, exist_ok=True)
    staged.rename(found.out)


def _finished(out: Path, run: str) -> Frontier | None:
    """The curve that this very run has written already."""
    path = out / "frontier.json"
    if not path.is_file():
        return None
    value = msgspec.json.decode(path.read_bytes())
    if value.pop("run", None) != run:
        return None
    return Frontier(**{**value, "out": out, "points": tuple(Point(**point) for point in value["points"])})
