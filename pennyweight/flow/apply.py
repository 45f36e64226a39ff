"""Carry a plan out, block by block, into the journal: one file of codes a group, and a ledger row a site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from pennyweight import catalogue
from pennyweight.errors import InvalidFormat, NotPositiveDefinite
from pennyweight.export.engines import find
from pennyweight.flow.collect import Collected, statistics_of
from pennyweight.flow.journal import Journal
from pennyweight.flow.progress import QUIET, Advance, Progress
from pennyweight.flow.working.task import HERE, Workers, Workshop
from pennyweight.formats import Compressed, Dense, Part
from pennyweight.methods.quantization import RoundToNearest
from pennyweight.network.network import Network, Site
from pennyweight.network.sources.source import check_finite
from pennyweight.numerics.hashing import of_value
from pennyweight.numerics.linear import linear
from pennyweight.numerics.memory import release
from pennyweight.numerics.random import stream
from pennyweight.plan import Plan, Step
from pennyweight.statistics import Statistics

STATISTICS = "statistics"  # of one block, in a workshop
ROWS = 1024  # outputs whose errors are computed at once


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the ledger: what was meant for a site and what became of it.

    Args:
        site: name.
        intended: step of the plan.
        actual: step that was carried out; another one only with a reason.
        reason: why it differs, or why the site was kept dense.
        bits: stored bits per weight.
        error: squared output error over squared output, trace(E gram Eᵀ) / trace(W gram Wᵀ).
        damping: the method ended with, where it has one.
        factorisations: it took; 1 means the damping was not raised.
    """

    site: str
    intended: str
    actual: str
    reason: str = ""
    bits: float = 0.0
    error: float = 0.0
    damping: float = 0.0
    factorisations: int = 0


@dataclass(frozen=True)
class Applied:
    """Results of a plan, read from the journal a group at a time.

    Args:
        journal: where they lie.
        network: the reference.
        plan: what was carried out.
        keys: piece of every compressed site, its first and last row in it, and how many rows are there.
    """

    journal: Journal
    network: Network
    plan: Plan
    keys: Mapping[str, tuple[str, int, int, int]]

    def compressed(self, site: Site) -> Compressed:
        """What became of one site."""
        key, start, stop, rows = self.keys[site.name]
        format = self.plan.steps[site.name].stages[0].format
        whole = Compressed((Part(format, self.journal.load_tensors(key)),), (rows, site.shape[1]))
        return whole.rows(start, stop)

    def ledger(self) -> list[Row]:
        """A row for every site, kept ones included."""
        rows = []
        for site in self.network.sites:
            if site.name in self.keys:
                facts = self.journal.facts(self.keys[site.name][0])
                rows.append(Row(**facts[site.name]))
            else:
                reason = self.plan.kept.get(site.name, "the plan names no step for it")
                kept = find(self.plan.engine).files.kept_as(self.network, site, self.plan.dtype)
                rows.append(Row(site=site.name, intended="dense", actual=kept, reason=reason))
        return rows


def apply(
    plan: Plan, network: Network, collected: Collected, journal: Journal, *, progress: Progress = QUIET,
    workers: Workers = HERE,
) -> Applied:  # fmt: skip
    """Compress every site of a plan.

    Every group's result is one piece named by its step, so plans that agree on a group share it.

    Args:
        plan: checked against the network.
        network: the reference.
        collected: gram matrices of the edges the sites read.
        journal: finished groups are not computed again.
        progress: told about every group.
        workers: who carries it out.
    """
    keys: dict[str, tuple[str, int, int, int]] = {}
    tasks = []
    for block in (*range(len(network.blocks)), None):
        for group in network.groups():
            for members, step in _same_step(group, plan):
                if members[0].block != block:
                    continue
                task = CompressGroup.of(members, step, plan.seed)
                tasks.append(task)
                places, rows_there = rows_of(members, network)
                for site, (start, stop) in zip(members, places, strict=True):
                    keys[site.name] = (task.piece, start, stop, rows_there)
    with progress.stage("compressing", len(tasks)) as advance:
        compress_groups(tasks, Workshop(network, journal, statistics=collected.journal), workers, advance)
    return Applied(journal, network, plan, keys)


def compress_groups(tasks: Sequence[CompressGroup], shop: Workshop, workers: Workers, advance: Advance) -> None:
    """Carry steps out on groups, best a block after the other; nothing of their statistics stays in memory."""
    workers.run(tasks, shop, advance)
    shop.forget(STATISTICS)
    release()


@dataclass(frozen=True)
class CompressGroup:
    """Carry one step out on sites that are swept together.

    Args:
        block: of the sites; None outside of all, where there are no statistics.
        sites: of one group, with this step in common.
        step: of one stage.
        seed: of the run.
    """

    block: int | None
    sites: tuple[str, ...]
    step: Step
    seed: int
    after: ClassVar[tuple[str, ...]] = ()
    amount: ClassVar[float] = 1.0

    @classmethod
    def of(cls, members: Sequence[Site], step: Step, seed: int) -> CompressGroup:
        """The task for some sites."""
        return cls(members[0].block, tuple(site.name for site in members), step, seed)

    @property
    def piece(self) -> str:
        """Codes of all its sites, and a row of the ledger for each."""
        place = "outer" if self.block is None else f"{self.block:04d}"
        named = of_value([list(self.sites), self.step.label(), self.seed])[:16]
        return f"sites/{place}-{named}.safetensors"

    def carry_out(self, shop: Workshop, advance: Advance) -> None:
        """Sites that share a tensor are compressed once."""
        members = [shop.network.by_name[name] for name in self.sites]
        own, first = _distinct(members, shop.network)
        statistics = {} if self.block is None else _statistics(shop, self.block)
        tensors, rows = _compress(own, self.step, shop.network, statistics, self.seed)
        rows += [replace(rows[first[i]], site=site.name) for i, site in enumerate(members) if site not in own]
        shop.journal.save_tensors(self.piece, tensors, {row.site: asdict(row) for row in rows})
        release()
        advance(self.amount)


def _statistics(shop: Workshop, block: int) -> dict[str, Statistics]:
    return shop.kept(STATISTICS, block, lambda: statistics_of(shop).block(block))


def rows_of(members: Sequence[Site], network: Network) -> tuple[list[tuple[int, int]], int]:
    """First and last row of every member in what was made of them, and how many rows are there."""
    own, first = _distinct(members, network)
    starts = [sum(site.shape[0] for site in own[:i]) for i in range(len(own) + 1)]
    return [(starts[at], starts[at + 1]) for at in first], starts[-1]


def _distinct(members: Sequence[Site], network: Network) -> tuple[list[Site], list[int]]:
    """Sites with a tensor of their own, and for each member which of them it shares its tensor with."""
    stored = [network.stored_name(site.parameter) for site in members]
    names = list(dict.fromkeys(stored))
    return [members[stored.index(name)] for name in names], [names.index(name) for name in stored]


def _same_step(group: tuple[Site, ...], plan: Plan) -> list[tuple[list[Site], Step]]:
    """Members of a group with a common step: they read one edge, so they can be swept together.

    Not where rows share scales: no tensor of a site may hang on another site.
    """
    together: dict[str, list[Site]] = {}
    for site in group:
        if site.name in plan.steps:
            step = plan.steps[site.name]
            alone = "" if step.stages[0].format.rows_stand_alone else site.name
            together.setdefault(f"{step.label()} {alone}", []).append(site)
    return [(members, plan.steps[members[0].name]) for members in together.values()]


def _compress(
    members: list[Site], step: Step, network: Network, statistics: Mapping[str, Statistics], seed: int
) -> tuple[dict[str, Tensor], list[Row]]:
    weight = _stacked(members, network)
    seen = statistics.get(members[0].reads)
    result, actual, reason = carry_out(step, weight, seen, seed, members[0].name)
    gram = None if seen is None else seen.require_gram()
    if members[0].block is None:
        reason = reason or "what it costs was measured when the plan was made; the error is of its own numbers"
    rows, start = [], 0
    for site in members:
        stop = start + site.shape[0]
        changed, whole = squares(result, weight, gram, start, stop)
        rows.append(
            Row(
                site=site.name,
                intended=step.label(),
                actual=actual,
                reason=reason,
                bits=step.stages[0].format.stored_bits(site.shape) / site.elements,
                error=changed / max(whole, 1e-30),
                damping=float(result.record.get("damping", 0.0)),
                factorisations=int(result.record.get("factorisations", 0)),
            )  # fmt: skip
        )
        start = stop
    return dict(result.parts[0].tensors), rows


def carry_out(
    step: Step, weight: Tensor, seen: Statistics | None, seed: int, site: str
) -> tuple[Compressed, str, str]:  # fmt: skip
    """Carry out one step on one weight; returns what was actually done too, and why if it is not what was meant.

    Args:
        step: of one stage, on a grid.
        weight: `[out, in]`.
        seen: of the activation it multiplies; None for methods that look at none.
        seed: of the run.
        site: name, for the random stream and for messages.

    Raises:
        InvalidFormat: the step's format is no grid, or does not fit.
    """
    stage = step.stages[0]
    if isinstance(stage.format, Dense):
        raise InvalidFormat(f"{stage.format.label()} needs no method", expected="a format of codes", site=site)
    method = catalogue.find(stage.method, "quantization")
    generator = stream(seed, site, stage.method)
    try:
        return method.compress(weight, seen, stage.format, generator=generator), step.label(), ""
    except NotPositiveDefinite as error:
        # Not a silent second choice: the ledger shows both, and the measurement counts what it cost.
        fallback = RoundToNearest()
        result = fallback.compress(weight, seen, stage.format, generator=generator)
        return result, f"{fallback.name} {stage.format.label()}", error.happened


def _stacked(members: list[Site], network: Network) -> Tensor:
    """Weights of sites that read one edge, one below the other, read one at a time."""
    stacked = torch.empty(sum(site.shape[0] for site in members), members[0].shape[1])
    start = 0
    for site in members:
        weight = network.source.read(network.stored_name(site.parameter))
        check_finite(site.parameter, weight)
        stacked[start : start + site.shape[0]] = weight
        start += site.shape[0]
    return stacked


def squares(result: Compressed, weight: Tensor, gram: Tensor | None, start: int, stop: int) -> tuple[float, float]:
    """Mean squared change and mean square of some outputs, a few rows at a time; without gram, of the weights."""
    changed = whole = 0.0
    alone = all(part.format.rows_stand_alone for part in result.parts)
    all_of_it = None if alone else result.dequantize()  # rows that share parameters cannot be cut out
    for first in range(start, stop, ROWS):
        last = min(first + ROWS, stop)
        before = weight[first:last]
        after = result.rows(first, last).dequantize() if all_of_it is None else all_of_it[first:last]
        change = after - before
        changed += _square(change, gram)
        whole += _square(before, gram)
    return changed, whole


def _square(rows: Tensor, gram: Tensor | None) -> float:
    return float((rows.square() if gram is None else linear(rows, gram).mul_(rows)).double().sum())
