"""Before running: exact size, an interval for the damage, minutes and memory, in about a minute.

Sums of predicted damages are off by a factor that hangs on the model, the text, how hard it is compressed, and at few
bits on how codes are chosen. So the plan is carried out on few windows, by its own method or, where that would take
long, by plain rounding, and measured: measured over predicted is the factor. What it does not tell is in the interval.
"""

from __future__ import annotations

import resource
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pennyweight import catalogue
from pennyweight.budget import Budget
from pennyweight.export.engines import Engine
from pennyweight.flow.collect import Collected, collect
from pennyweight.flow.delivery import weights_of
from pennyweight.flow.job import planner_of
from pennyweight.flow.journal import Journal, open_run
from pennyweight.flow.ladder import RUNGS
from pennyweight.flow.load import load
from pennyweight.flow.make_plan import Planner, check_files, usual_dtype
from pennyweight.flow.memory import with_memory
from pennyweight.flow.options import outline, predict_group, predictor, tabulate
from pennyweight.flow.progress import QUIET, Progress
from pennyweight.flow.rewrite import rewrite
from pennyweight.flow.search.bank import Bank
from pennyweight.flow.search.evaluate import Evaluator, world_of
from pennyweight.flow.search.study import open_study
from pennyweight.flow.settings import Settings
from pennyweight.flow.steps import PREDICTED_SHARE
from pennyweight.flow.text import Texts, texts
from pennyweight.formats import Dense
from pennyweight.plan import Option, Plan, Stage, Step

WINDOWS, FISHER_WINDOWS = 16, 4  # of the calibration text: enough for a sum over all sites
TOKENS = 2048  # of the selection split, measured after the plan was carried out
PATIENCE = 60.0  # seconds that carrying it out may take; plain rounding stands in for methods that need longer
SPREAD = 1.3  # the interval: the prediction over this to this times it; five plans lost .87 to 1.03 of theirs
CERTIFIED = 96  # windows a certificate looks at, as a rule


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a run would end with.

    Args:
        plan: by prediction.
        bytes: of the files, at most.
        bits: stored per weight, all tensors counted.
        kl: expected, nats per token.
        low: end of an interval.
        high: its other end.
        factor: measured over predicted damage, on few windows.
        by: the quantizer that the plan was carried out with for that: its own, or one that stands in for it.
        minutes: that `compress` would take on this machine, at its present load, without a search or recovery.
        peak_memory: bytes, of this process so far: `compress` goes through the same stages.
        engine_memory: bytes the engine takes for the model, where that is limited.
    """

    plan: Plan
    bytes: int
    bits: float
    kl: float
    low: float
    high: float
    factor: float
    by: str
    minutes: float
    peak_memory: int
    engine_memory: int | None


def predict(
    model: str | Path,
    budget: Budget,
    *,
    calibration: str | Path | None = None,
    settings: Settings | None = None,
    allow_network: bool = False,
    progress: Progress = QUIET,
) -> Prediction:
    """Predict what `compress` would end with; nothing is kept.

    Args:
        model: directory, GGUF file, or hub id with `allow_network`.
        budget: a limit on size, bits, memory, perplexity or KL.
        calibration: text; None for the one every Python carries.
        settings: as for `compress`; fewer windows are looked at.
        allow_network: whether a hub id may be downloaded.
        progress: told about every stage.

    Raises:
        InfeasibleBudget: no plan is within the budget; it names the nearest.
        PennyweightError: see `errors`.
    """
    (budget,), settings = with_memory([budget], settings or Settings())
    settings.check_rounds_nothing("a prediction", "predict")
    torch.set_num_threads(settings.threads)
    reference = network = load(model, allow_network=allow_network)
    settings = replace(settings, dtype=settings.dtype or usual_dtype(network))
    assert settings.dtype is not None
    engine = settings.target
    check_files(network, engine, settings.dtype)
    predictor(settings.method, engine.reads.kinds)
    if not settings.rewrites:  # sizes are known beforehand, and so is which metrics can be predicted
        planner_of(network, settings, outline(network, engine, dtype=settings.dtype), model=network).limit(budget)
    words = texts(
        network, calibration, None, length=settings.length, count=WINDOWS, selection=settings.selection_windows,
        seed=settings.seed,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as work, open_run(Path(work) / "run", {}) as journal:
        start = time.monotonic()
        network, _ = rewrite(
            reference, settings.rewrites, calibration=words.calibration, seed=settings.seed, journal=journal,
            progress=progress,
        )  # fmt: skip
        collected = collect(
            network, words.calibration, journal, fisher_windows=FISHER_WINDOWS, seed=settings.seed, progress=progress
        )
        seen = time.monotonic() - start
        table = tabulate(
            network, collected, engine, journal, dtype=settings.dtype, method=settings.method,
            pricing=settings.pricing, progress=progress,
        )  # fmt: skip
        planner = planner_of(network, settings, table, model=reference)
        plan = planner.for_budget(budget, share=PREDICTED_SHARE)
        tabulated = time.monotonic() - start - seen
        choice = [next(o for o in row if o.step == plan.steps.get(o.sites[0], o.step)) for row in table.groups]
        carried = _carried(planner, choice, collected, journal)
        quick = _named(settings.method, engine) if carried < PATIENCE else "round_to_nearest"
        tried = _stand_in(planner, choice, collected, quick, settings.pricing)
        factor, scoring = _factor(planner, tried, collected, words, journal, progress)
    outside = sum(option.damage for option in choice if network.by_name[option.sites[0]].block is None)
    kl = (plan.damage - outside) * factor + outside  # tables outside the blocks are priced by measurement already
    candidates = 1 if not budget.is_claim else 1 + len(RUNGS)
    scored = 2 * settings.selection_windows + candidates * (settings.selection_windows + CERTIFIED)
    seconds = (
        seen * settings.calibration_windows / WINDOWS + tabulated + candidates * carried
        + scoring * scored * settings.length
    )  # fmt: skip
    return Prediction(
        plan=plan, bytes=planner.size(choice), bits=8 * plan.bytes / weights_of(network), kl=kl, low=kl / SPREAD,
        high=kl * SPREAD, factor=factor, by=quick, minutes=seconds / 60,
        peak_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        engine_memory=_in_engine(planner, plan, settings),
    )  # fmt: skip


def _in_engine(planner: Planner, plan: Plan, settings: Settings) -> int | None:
    limit = next((limit for limit in planner.always if limit.of == "memory"), None)
    if limit is None:
        return None
    chosen = [next(o for o in row if o.step == plan.steps.get(o.sites[0], o.step)) for row in planner.table.groups]
    return round(limit.total(chosen) + settings.memory - limit.at_most)


def _named(method: str, engine: Engine) -> str:
    """The quantizer whose predictions a plan for this one rests on."""
    found = predictor(method, engine.reads.kinds)
    return method if found.name == catalogue.find(method, "quantization").name else found.name


def _stand_in(
    planner: Planner, choice: list[Option], collected: Collected, method: str, pricing: str
) -> list[tuple[Option]]:
    """A choice inside the blocks by one method, each option with the damage that is predicted of it."""
    network, kinds, found = planner.network, planner.engine.reads.kinds, []
    for index in range(len(network.blocks)):
        statistics = None  # read where a damage has to be predicted once more, and nowhere else
        for option in choice:
            stage = option.step.stages[0]
            if network.by_name[option.sites[0]].block != index or isinstance(stage.format, Dense):
                continue
            damage = option.damage
            if predictor(stage.method, kinds).name != predictor(method, kinds).name:
                statistics = statistics or collected.block(index)
                group = tuple(network.by_name[name] for name in option.sites)
                ((_, damage),) = predict_group(network, group, [stage.format], statistics, kinds, method, pricing)
            found.append((replace(option, step=Step((Stage(method, stage.format),)), damage=damage),))
    return found


def _factor(
    planner: Planner, tried: list[tuple[Option]], collected: Collected, words: Texts, journal: Journal,
    progress: Progress,
) -> tuple[float, float]:  # fmt: skip
    """Measured over predicted damage of options that are carried out, and seconds a token of measuring."""
    predicted = sum(row[0].damage for row in tried)
    if not tried or predicted <= 0:
        return 1.0, 0.0
    bank = Bank(planner.network, tuple(tried), journal, planner.seed)
    bank.fill(collected, progress=progress)
    with (
        open_study(journal.directory / "study.sqlite", world_of(bank, words.selection, "tried")) as study,
        progress.stage("measuring", 1),
    ):
        trials = Evaluator(bank, words.selection, study, seed=planner.seed)
        tokens = min(TOKENS, trials.most)
        start = time.monotonic()
        (kl,) = trials.measure([(0,) * len(tried)], tokens=tokens)
        seconds = time.monotonic() - start
    return max(kl, 1e-12) / predicted, seconds / (2 * tokens)


def _carried(planner: Planner, choice: list[Option], collected: Collected, journal: Journal) -> float:
    """Seconds to carry a choice out on all blocks, from one in the middle."""
    blocks = len(planner.network.blocks)
    middle = blocks // 2
    here = tuple((o,) for o in choice if planner.network.by_name[o.sites[0]].block == middle)
    start = time.monotonic()
    Bank(planner.network, here, journal, planner.seed).fill(collected)
    return blocks * (time.monotonic() - start)
