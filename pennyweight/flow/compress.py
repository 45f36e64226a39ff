"""The main job: a model, a text and a budget in; a certified artifact out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from pennyweight.budget import Budget
from pennyweight.errors import InvalidBudget, InvalidPlan
from pennyweight.flow import artifact
from pennyweight.flow.candidate import facts_of
from pennyweight.flow.certifying.claims import check_engine, resolve, usual_engine
from pennyweight.flow.certifying.judge import verdict_of
from pennyweight.flow.certifying.openings import close_opening
from pennyweight.flow.certifying.populations import Population, Text, check_units, tasks_of
from pennyweight.flow.delivery import Outcome, check_free, check_size, deliver, finished, outcome_of
from pennyweight.flow.job import Job, planner_of
from pennyweight.flow.journal import open_run
from pennyweight.flow.load import check_weights, load
from pennyweight.flow.make_plan import check_files, check_model, check_plan, usual_dtype
from pennyweight.flow.memory import with_memory
from pennyweight.flow.options import outline, predictor
from pennyweight.flow.progress import QUIET, Progress
from pennyweight.flow.recover import check_recovery
from pennyweight.flow.rewrite import check_rewrites, rewrite
from pennyweight.flow.search.study import open_study
from pennyweight.flow.settings import Settings
from pennyweight.flow.text import texts
from pennyweight.flow.versions import versions
from pennyweight.flow.working.pool import Pool, workers_of
from pennyweight.network.network import Network
from pennyweight.numerics.hashing import of_value
from pennyweight.plan import Plan


def compress(
    model: str | Path,
    out: str | Path,
    *,
    budget: Budget | Sequence[Budget],
    calibration: str | Path | None = None,
    held_out: str | Path | None = None,
    plan: Plan | None = None,
    settings: Settings | None = None,
    study: str | Path | None = None,
    allow_network: bool = False,
    progress: Progress = QUIET,
    workers: Pool | None = None,
) -> Outcome:
    """Compress a model within a budget and certify what it cost.

    Everything is written to `out` + `.run` first; killed at any moment, the same call goes on there and ends with the
    same bytes. `out` appears when it is complete.

    Args:
        model: directory, GGUF file, or hub id with `allow_network`.
        out: directory to make; must not exist or be empty.
        budget: limits on losses (perplexity, KL, agreement, accuracy of a task …), at most one of them a size on disk
            or bits per weight, and one of memory in the engine; all must hold.
        calibration: text for methods and search; None for the text every Python carries.
        held_out: text for the certificate alone; None to keep a part of the other one for it.
        plan: carry this out instead of searching.
        settings: everything else.
        study: SQLite file in which a search remembers what it measured, for later runs; None for one beside `out`.
        allow_network: whether a hub id may be downloaded.
        progress: told about every stage.
        workers: processes that share the work, with the same bytes; a run may go on with others, or with none.

    Raises:
        PennyweightError: see `errors`; bad input is refused before any work is done.
    """
    budgets, settings = with_memory([budget] if isinstance(budget, Budget) else budget, settings or Settings())
    limit = _limit(budgets)
    asked = resolve([one for one in budgets if one.is_claim] or budgets)
    check_engine(asked, usual_engine(settings.scope, settings.bound))
    tasks = tasks_of(asked)
    out = Path(out) if Path(out).name not in ("", "..") else Path(out).resolve()
    run = out.parent / f"{out.name}.run"
    check_free(out, run)
    started = time.monotonic()
    if settings.search:
        settings.check_rounds_nothing("a search", "--search")
    engine = settings.target
    reference = load(model, allow_network=allow_network)
    settings = replace(settings, dtype=settings.dtype or usual_dtype(reference))
    if plan is not None:
        _check_alone(settings)
        settings = _settings_of(plan, settings)
    check_rewrites(settings.rewrites, calibrated=True)
    check_recovery(settings.recovery, reference, {kind.name: kind.examples()[0] for kind in engine.reads.kinds})
    if plan is not None:
        check_model(plan, reference.source.fingerprint)
    else:
        assert settings.dtype is not None
        check_files(reference, engine, settings.dtype)
        predictor(settings.method, engine.reads.kinds)  # refused here, not after the statistics
    if not settings.rewrites:
        _check_possible(plan, limit, reference, reference, settings)
    words = texts(
        reference, calibration, held_out, length=settings.length, count=settings.calibration_windows,
        selection=settings.selection_windows, seed=settings.seed, apart=settings.scope == "source",
    )  # fmt: skip
    populations: list[Population] = [Text(words.certification, words.opened), *(claim for _, claim in tasks.values())]
    labels = check_units(populations, settings.groups)
    header = {
        "model": reference.source.fingerprint,
        "texts": words.fingerprints | {on: claim.fingerprint for on, (_, claim) in tasks.items()},
        "budgets": [asdict(one) for one in budgets],
        "settings": asdict(settings), "plan": None if plan is None else of_value(plan.to_toml()),
        "groups": of_value(labels), "code": artifact.code_hash(), "versions": versions(),
    }  # fmt: skip
    if out.exists() and any(out.iterdir()):
        return finished(out, run, header)
    torch.set_num_threads(settings.threads)
    remembered = out.parent / f"{out.name}.study.sqlite" if study is None else Path(study)
    if settings.search:
        with open_study(remembered, ""):  # refused here, not after every option was carried out
            pass
    if not (run / "weights-checked.json").exists():
        check_weights(reference, settings.dtype or "float16", progress)
    with open_run(run, header) as journal:
        journal.save("weights-checked.json", {})
        network, steps = rewrite(
            reference, settings.rewrites, calibration=words.calibration, seed=settings.seed, journal=journal,
            progress=progress,
        )  # fmt: skip
        if settings.rewrites:  # what it is made of is known only now
            _check_possible(plan, limit, network, reference, settings)
        job = Job(
            reference, network, words, asked, limit, populations, {on: pilot for on, (pilot, _) in tasks.items()},
            settings, journal, progress, of_value(header), str(header["code"]),
            remembered, workers_of(workers, reference, network, journal, settings),
        )  # fmt: skip
        ladder = job.ladder(plan)
        rungs, judged, best = job.certify(ladder)
        check_size(limit, best)
        deliver(
            out, best, judged[best.key], rungs, facts_of(best, journal), header, reference,
            rewritten=steps, search=job.searched,
            explanation=job.explanation(best), asked=asked, rules=job.rules, calibration=job.calibration(best),
            seconds=time.monotonic() - started, progress=progress,
        )  # fmt: skip
        for opening in job.openings:
            close_opening(opening, verdict_of(judged[best.key].certificate))
    shutil.rmtree(run)
    return outcome_of(out)


def _check_alone(settings: Settings) -> None:
    """Refuse what a plan that is handed in leaves nothing to do for."""
    for name, asked in (
        ("--search", bool(settings.search)),
        ("--activations", bool(settings.activations)),
        ("--kv-cache", bool(settings.cache)),
        ("--speed", settings.latency is not None),
        ("--memory", bool(settings.memory)),
    ):
        if asked:
            raise InvalidBudget(
                f"{name} beside a plan that is to be carried out", expected="a plan, or a search for one",
                mend=f"leave {name} out, or --plan", site=name,
            )  # fmt: skip


def _settings_of(plan: Plan, settings: Settings) -> Settings:
    """What a plan decides, in place of what was set; rewrites are not replaced silently."""
    if settings.rewrites and settings.rewrites != plan.rewrites:
        raise InvalidPlan(
            f"it was made for a model rewritten by {', '.join(plan.rewrites) or 'nothing'}",
            expected=f"a plan for {', '.join(settings.rewrites)}",
            mend="leave out --rewrite: the plan says what comes first", site="--rewrite",
        )  # fmt: skip
    return replace(
        settings, engine=plan.engine, dtype=plan.dtype, seed=plan.seed, rewrites=plan.rewrites, recovery=plan.recovery
    )


def _check_possible(
    plan: Plan | None, limit: Budget | None, network: Network, reference: Network, settings: Settings
) -> None:
    """Refuse a plan that does not fit the network, and a size that no plan has: sizes are known beforehand."""
    assert settings.dtype is not None
    check_files(network, settings.target, settings.dtype)
    if plan is not None:
        check_plan(plan, network, model=reference.source.fingerprint)
        check_recovery(plan.recovery, network, plan.formats())
    else:
        table = outline(network, settings.target, dtype=settings.dtype)
        planner = planner_of(network, settings, table, model=reference)
        planner.check_any()
        if limit is not None or settings.latency is not None or settings.memory:
            planner.within(*([planner.limit(limit)] if limit is not None else []))


def _limit(budgets: Sequence[Budget]) -> Budget | None:
    sizes = [budget for budget in budgets if not budget.is_claim]
    if len(sizes) > 1:
        raise InvalidBudget(
            "two limits on the size", expected="one of --fit and --bits", mend="leave one out", site="--fit"
        )
    return sizes[0] if sizes else None
