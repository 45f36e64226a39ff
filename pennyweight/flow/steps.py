"""The flow one verb at a time, for people who write Python: plain functions from values to a value.

    network = load("model/")
    calibration = sample("train.txt", network, count=128, length=512)
    statistics = collect(network, calibration)
    plan = make_plan(network, statistics, Budget.lose("2%"))
    artifact = apply(plan, network, statistics, out="small/")
    pilot = measure(network, artifact, sample("valid.txt", network))
    measured = measure(network, artifact, held_out("test.txt", network))
    certificate = certify(measured, Budget.lose("2%"), pilot=pilot)

`compress` does all of it, with a ladder of plans, a journal and a sealed artifact.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from pennyweight.budget import Budget, Certificate, Measurement, Opening
from pennyweight.corpus import Windows, cut, describe_source, read_documents, require_windows
from pennyweight.errors import InvalidOutput, InvalidPlan
from pennyweight.export.engines import find
from pennyweight.export.files import rounding_files
from pennyweight.flow import collect as collecting
from pennyweight.flow.apply import apply as carry_out
from pennyweight.flow.artifact import code_hash
from pennyweight.flow.certifying.claims import resolve, usual_engine
from pennyweight.flow.certifying.rules import Rules, common_terms
from pennyweight.flow.collect import Collected
from pennyweight.flow.journal import Journal, open_run
from pennyweight.flow.load import load
from pennyweight.flow.make_plan import Planner, check_files, check_plan, usual_dtype
from pennyweight.flow.memory import held
from pennyweight.flow.options import tabulate, timed
from pennyweight.flow.progress import QUIET, Progress
from pennyweight.flow.recover import recover, shown
from pennyweight.flow.rounding import activations_of
from pennyweight.flow.text import some
from pennyweight.latency import Latency
from pennyweight.methods.certification import certify as judge
from pennyweight.methods.certification import combine
from pennyweight.network.network import Network
from pennyweight.network.sources.tokenizer import load_tokenizer, separator_id
from pennyweight.plan import Plan
from pennyweight.problem import Limit

PREDICTED_SHARE = 0.7  # of a perplexity budget that a plan may spend by prediction alone; predictions run low


def sample(
    text: str | Path | None, network: Network, *, count: int = 128, length: int = 256, seed: int = 0,
    split: str = "calibration",
) -> Windows:  # fmt: skip
    """Random windows of a text, as token ids `[count, length]`.

    Args:
        text: path of a text, or None for the help topics every Python carries.
        network: whose tokenizer is used.
        count: windows at most.
        length: tokens in each.
        seed: of the choice.
        split: what they are for; goes into their fingerprint.

    Raises:
        InvalidText: the text cannot be read, or has not one window.
    """
    tokenizer = load_tokenizer(network.source)
    whole = cut(
        read_documents(text), tokenizer, length=length, split=split, source=describe_source(text),
        separator=separator_id(network.source, tokenizer),
    )  # fmt: skip
    require_windows(whole, 1, split)
    return some(whole, count, seed)


def held_out(text: str | Path | None, network: Network, *, length: int = 256) -> Windows:
    """Every window of a text that nothing but a measurement may see."""
    return sample(text, network, count=1 << 62, length=length, split="certification")


def collect(
    network: Network,
    calibration: Windows,
    *,
    needs: frozenset[str] = frozenset({"gram", "fisher"}),
    work: str | Path | None = None,
    seed: int = 0,
    before_recovery: bool = False,
    progress: Progress = QUIET,
) -> Collected:
    """Statistics of every edge, on disk in `work`; an interrupted call with the same `work` goes on.

    Where the plan will train on the same windows, `before_recovery` leaves out those that training holds out.

    Raises:
        InvalidOutput: `work` holds statistics of something else.
    """
    calibration = shown(calibration) if before_recovery else calibration
    directory = Path(work) if work is not None else Path(tempfile.mkdtemp(prefix="pennyweight-"))
    header = {
        "model": network.source.fingerprint, "calibration": calibration.fingerprint, "needs": sorted(needs),
        "seed": seed, "code": code_hash(), "threads": torch.get_num_threads(),
    }  # fmt: skip
    with open_run(directory, header) as journal:
        return collecting.collect(network, calibration, journal, needs=needs, seed=seed, progress=progress)


def make_plan(
    network: Network,
    statistics: Collected,
    budget: Budget,
    *,
    engine: str = "transformers",
    formats: Sequence[str] = (),
    dtype: str | None = None,
    method: str = "gptq",
    allocation: str = "integer_program",
    pricing: str = "kronecker",
    seed: int = 0,
    share: float = PREDICTED_SHARE,
    latency: Latency | None = None,
    speed: float = 1.0,
    memory: float = 0.0,
    context: int = 0,
    progress: Progress = QUIET,
) -> Plan:
    """What each tensor becomes, from predictions alone; nothing is done yet.

    Args:
        network: the reference.
        statistics: with gram and fisher.
        budget: a rise of perplexity, a size, or bits per weight.
        engine: whose files are to be written.
        formats: that the plan may choose from, by label; none for all that the engine has on its menu.
        dtype: of scales and of everything dense; None takes the model's own 16-bit type.
        method: the quantizer.
        allocation: the allocator.
        pricing: what predicts damages.
        seed: recorded in the plan.
        share: of a perplexity budget to spend.
        latency: times of the engine, by shape and format.
        speed: how many times faster than dense the compressed layers must be by them.
        memory: bytes that the engine may take for the model while it runs; 0 for no such limit.
        context: tokens of prompt and answer that memory must do for; 0 for the usual number.
        progress: told about every block.

    Raises:
        InfeasibleBudget: nothing meets it; says what could be.
    """
    contract, dtype = find(engine).choosing(formats), dtype or usual_dtype(network)
    check_files(network, contract, dtype)
    table = tabulate(
        network, statistics, contract, statistics.journal, dtype=dtype, method=method, pricing=pricing,
        progress=progress,
    )  # fmt: skip
    always: tuple[Limit, ...] = ()
    if latency is not None:
        table, limit = timed(table, network, latency, speed)
        always = (limit,)
    if memory or budget.metric == "memory":
        memory = memory or budget.at_most
        table, limit = held(table, network, contract, dtype, at_most=memory, context=context)
        always = (*always, limit)
    planner = Planner(
        network=network, table=table, engine=contract, dtype=dtype, seed=seed, allocation=allocation, always=always,
        beside=contract.files.beside(network, dtype),
    )  # fmt: skip
    return planner.for_budget(budget, share=share)


def apply(
    plan: Plan, network: Network, statistics: Collected, *, out: str | Path, calibration: Windows | None = None,
    progress: Progress = QUIET,
) -> Network:  # fmt: skip
    """Carry a plan out and write the files an engine loads; nothing is certified.

    Args:
        plan: the recipe.
        network: the reference.
        statistics: of its edges.
        out: directory to make.
        calibration: text that recovery learns from and roundings are fitted to, where the plan asks for them.
        progress: told about every stage.

    Returns:
        The compressed network, read from the files.

    Raises:
        InvalidPlan: it does not fit the network or the engine.
        InvalidOutput: `out` is not empty.
    """
    files = check_plan(plan, network).files
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise InvalidOutput("the directory is not empty", expected="a new one", mend="choose another", site=str(out))
    journal: Journal = statistics.journal
    if plan.recovery and calibration is None:
        raise InvalidPlan(
            f"the plan trains afterwards ({', '.join(plan.recovery)}) and there is no text for it",
            expected="calibration windows", mend="apply(plan, ..., calibration=pw.sample('train.txt', network))",
        )  # fmt: skip
    applied = carry_out(plan, network, statistics, journal, progress=progress)
    if calibration is not None:
        applied = recover(applied, statistics, calibration, progress=progress)
    if activations := activations_of(plan, network, calibration, journal, progress):
        files = rounding_files(files).rounding(activations)
    out.mkdir(parents=True, exist_ok=True)
    files.write(network, plan.formats(), applied.compressed, out, dtype=plan.dtype).reconcile()
    return load(out)


def certify(
    measured: Mapping[str, Measurement], budget: Budget | Sequence[Budget], *, pilot: Mapping[str, Measurement]
) -> Certificate:
    """Judge losses on a text of which every window was scored; terms come from a pilot on other text.

    Raises:
        InvalidMeasurement: the pilot or the measurement is empty.
        InvalidBudget: a metric of a task, or limits that contradict each other.
    """
    asked = resolve([budget] if isinstance(budget, Budget) else budget)
    loss = measured["perplexity"]
    alpha = 1 - asked[0].budget.confidence
    opening = Opening(number=1, alpha=alpha, spent=alpha)
    rules = Rules(engine=usual_engine("corpus", None), opening=opening)
    terms = common_terms(asked, pilot, rules, size=len(loss.drawn), discrete=False, claims=len(asked))
    scope = f"a text of {len(loss.drawn)} windows (sha256 {loss.fingerprint[:16]}…)"
    claims = [
        judge(measured[one.metric.name], one.budget, term, metric=one.metric, scope=scope)
        for one, term in zip(asked, terms, strict=True)
    ]
    return combine(claims, opening=opening, noise_floor={}, fingerprints={"certification": loss.fingerprint})
