"""The table an allocation chooses from: for every group, what it could become, at what size and predicted damage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any, ClassVar

import torch

from pennyweight import catalogue
from pennyweight.errors import InvalidMethod
from pennyweight.export.engines import OUTSIDE, Engine, find
from pennyweight.flow.collect import Collected, statistics_of
from pennyweight.flow.journal import Journal
from pennyweight.flow.progress import QUIET, Advance, Progress
from pennyweight.flow.tables import METHOD, prices
from pennyweight.flow.working.task import HERE, Workers, Workshop
from pennyweight.formats import Dense, Format, Grid
from pennyweight.latency import Latency
from pennyweight.methods.pricing import Change
from pennyweight.methods.quantization import GPTQ
from pennyweight.network.network import Network, Site
from pennyweight.network.sources.source import check_finite
from pennyweight.numerics.hashing import of_value
from pennyweight.numerics.memory import release
from pennyweight.plan import Option, Stage, Step
from pennyweight.problem import Limit
from pennyweight.statistics import Statistics

OUTER = -1  # where blocks are numbered: what lies outside of them
EIGHT_BITS = "q8_0"  # of an embedding table, offered wherever it fits: wide blocks have at most six
SAMPLE = 256  # rows of a site whose errors stand for all of them: predictions are off by more than that


@dataclass(frozen=True)
class Table:
    """What every group could become.

    Args:
        groups: options of each group; every group can at least stay dense.
        kept: sites that cannot be compressed for this engine, with the reason.
        fixed_bytes: size of all tensors that no group decides about.
    """

    groups: tuple[tuple[Option, ...], ...]
    kept: Mapping[str, str]
    fixed_bytes: int


def tabulate(
    network: Network,
    collected: Collected,
    engine: Engine,
    journal: Journal,
    *,
    dtype: str,
    method: str = "gptq",
    pricing: str = "kronecker",
    progress: Progress = QUIET,
    workers: Workers = HERE,
) -> Table:
    """Predict size and damage of every option of every group.

    The damage of a change of a site's weight is, unless another pricing is asked for, the second order of
    KL(reference || compressed) with the Kronecker factors of its Hessian, the output factor diagonal.

    Args:
        network: the reference.
        collected: gram and fisher of every edge.
        engine: whose contract the options respect.
        journal: finished blocks are not computed again.
        dtype: of scales and of everything dense.
        method: the quantizer, by name.
        pricing: what turns expected changes into a damage, by name.
        progress: told about every block.
        workers: who predicts.
    """
    decided, kept = _decide(network, engine, dtype)
    # Statistics may be kept for other plans: what engine, dtype and method decide must not be taken for their answer.
    question = Question(engine.name, engine.version, dtype, method, pricing, engine.only)
    shop = Workshop(network, journal, statistics=collected.journal)
    tasks = [Predict(question, block) for block in range(len(network.blocks))]
    with progress.stage("predicting options", len(tasks)) as advance:
        workers.run(tasks, shop, advance)
    if OUTER in decided:
        tasks.append(Predict(question, OUTER))
        with progress.stage("pricing tables", 1) as advance:
            workers.run(tasks[-1:], shop, advance)
    rows: list[tuple[tuple[Site, ...], list[tuple[str, float]]]] = []
    for task in tasks:
        rows += zip(decided.get(task.block, []), journal.load(task.piece), strict=True)
    return _table(network, rows, kept, engine, dtype)


@dataclass(frozen=True)
class Question:
    """What predictions hang on beside network and statistics.

    Args:
        engine: name of it.
        version: of it.
        dtype: of scales and of everything dense.
        method: the quantizer, by name.
        pricing: what turns expected changes into a damage, by name.
        formats: that were asked for, by label.
    """

    engine: str
    version: str
    dtype: str
    method: str
    pricing: str
    formats: tuple[str, ...]


@dataclass(frozen=True)
class Predict:
    """Predict the damage of every option of a block; what lies outside of all is measured.

    Args:
        question: what is asked of each of its groups.
        block: its number, or OUTER.
    """

    question: Question
    block: int
    after: ClassVar[tuple[str, ...]] = ()
    amount: ClassVar[float] = 1.0

    @property
    def piece(self) -> str:
        """Label and damage of every option of every group."""
        place = "outer" if self.block == OUTER else f"{self.block:04d}"
        return f"options/{of_value(list(astuple(self.question)))[:8]}-{place}.json"

    def carry_out(self, shop: Workshop, advance: Advance) -> None:
        """Groups one after the other."""
        asked, network, collected = self.question, shop.network, statistics_of(shop)
        engine = find(asked.engine).choosing(asked.formats)
        groups = _decide(network, engine, asked.dtype)[0].get(self.block, [])
        if self.block == OUTER:
            found = [_price(network, group, collected, engine, asked.dtype) for group in groups]
        else:
            statistics = collected.block(self.block)
            found = _predict_block(network, groups, statistics, engine, asked.dtype, asked.method, asked.pricing)
        shop.journal.save(self.piece, found)
        release()
        advance(self.amount)


def outline(network: Network, engine: Engine, *, dtype: str) -> Table:
    """The table with every damage zero: all it takes to know which sizes are possible, before any work."""
    decided, kept = _decide(network, engine, dtype)
    rows = [
        (group, [(f"any {format.label()}", 0.0) for format in _taken(group, engine, network, dtype)])
        for groups in decided.values()
        for group in groups
    ]
    return _table(network, rows, kept, engine, dtype)


def timed(table: Table, network: Network, latency: Latency, speed: float) -> tuple[Table, Limit]:
    """The table with the times of every option, and the limit they must keep; formats nobody timed are not offered.

    Args:
        table: of options.
        network: whose shapes they have.
        latency: times of an engine.
        speed: how many times faster than dense all layers of the table must be together.

    Raises:
        InvalidBudget: the times do not even know the dense layers.
    """
    groups, dense = [], 0.0
    for row in table.groups:
        sites, found = [network.by_name[name] for name in row[0].sites], []
        shapes = [
            site.shape for site in sites if site.role != "embedding"
        ]  # a row of a table is looked up, not multiplied
        for option in row:
            format = option.step.stages[0].format
            if not shapes:
                time = 0.0
            elif isinstance(format, Dense):
                time = latency.of(shapes, "dense")
                dense += time
            elif latency.knows(shapes, format.label()):
                time = latency.of(shapes, format.label())
            else:
                continue
            found.append(replace(option, milliseconds=time))
        groups.append(tuple(found))
    return replace(table, groups=tuple(groups)), Limit("milliseconds", dense / speed)


def predictor(method: str, kinds: Sequence[type[Format]] = (Grid,)) -> Any:
    """The quantizer whose predictions plans for this one rest on: itself, or GPTQ for one that predicts nothing.

    Methods without predictions of their own sweep as GPTQ does and improve on it; candidates are measured anyway.

    Args:
        method: the quantizer, by name.
        kinds: of formats on an engine's menu.

    Raises:
        UnknownName: no quantizer has this name.
        InvalidMethod: it does not write all of these formats, or they are floats alone.
    """
    if tuple(kinds) == (Dense,):
        raise InvalidMethod(
            "an engine that reads floats alone leaves nothing to choose", expected="an engine that reads codes",
            mend="compress for such an engine, then pennyweight export DIR OUT --to dense", site="--for",
        )  # fmt: skip
    quantizer = catalogue.find(method, "quantization")
    if not _takes(quantizer, kinds):
        able = [kind.name for kind in catalogue.classes("quantization") if _takes(kind, kinds)]
        needed = "no integer grids" if tuple(kinds) == (Grid,) else f"not {' and '.join(k.__name__ for k in kinds)}"
        raise InvalidMethod(
            f"{quantizer.name} writes {', '.join(kind.__name__ for kind in quantizer.takes)}, and {needed}",
            expected=f"one of {', '.join(able)}", mend="--method gptq", site=method,
        )  # fmt: skip
    return quantizer if hasattr(quantizer, "predict") else GPTQ()


def _takes(quantizer: Any, kinds: Sequence[type[Format]]) -> bool:
    return all(issubclass(kind, quantizer.takes) for kind in kinds)


def _decide(network: Network, engine: Engine, dtype: str) -> tuple[dict[int, list[tuple[Site, ...]]], dict[str, str]]:
    """Groups the engine can take in some format, by block (OUTER for none), and why it cannot take the others."""
    kept: dict[str, str] = {}
    decided: dict[int, list[tuple[Site, ...]]] = {}
    for group in network.groups():
        probe = engine.menu_of(group, dtype)
        reasons = [engine.refuses(site, format, network) for site in group for format in probe[:1]]
        outside = all(site.block is None and site.role in OUTSIDE for site in group)
        here = all(site.block is not None for site in group) or (outside and bool(engine.tables))
        if here and any(not _refused(group, format, engine, network) for format in probe):
            block = group[0].block
            decided.setdefault(OUTER if block is None else block, []).append(group)
        else:
            why = next((reason for reason in reasons if reason), f"no format of {engine.name} fits its shape")
            kept |= {site.name: why for site in group}
    return decided, kept


def _table(
    network: Network,
    rows: Sequence[tuple[tuple[Site, ...], Sequence[tuple[str, float]]]],
    kept: Mapping[str, str],
    engine: Engine,
    dtype: str,
) -> Table:
    dense = Dense(dtype=dtype)
    groups: list[tuple[Option, ...]] = []
    for group, row in rows:
        names = tuple(site.name for site in group)
        size = _stored(network, group, None, engine, dtype)
        options = [Option(sites=names, step=Step((Stage("cast", dense),)), bytes=size, damage=0.0)]
        for label, damage in row:
            step = Step.parse(label)
            format = step.stages[0].format
            stored = _stored(network, group, format, engine, dtype)
            options.append(Option(sites=names, step=step, bytes=stored, damage=damage))
        groups.append(tuple(options))
    decisions = {network.stored_name(site.parameter) for group, _ in rows for site in group}
    return Table(tuple(groups), kept, engine.files.fixed_bytes(network, decisions, dtype))


def _predict_block(
    network: Network,
    groups: Sequence[tuple[Site, ...]],
    statistics: Mapping[str, Statistics],
    engine: Engine,
    dtype: str,
    method: str,
    pricing: str,
) -> list[list[tuple[str, float]]]:
    """Label and damage of every option of every group of one block."""
    rows = []
    for group in groups:
        taken = _taken(group, engine, network, dtype)
        rows.append(predict_group(network, group, taken, statistics, engine.reads.kinds, method, pricing))
    return rows


def _taken(group: tuple[Site, ...], engine: Engine, network: Network, dtype: str) -> list[Format]:
    formats = [f for f in engine.menu_of(group, dtype) if not _refused(group, f, engine, network)]
    if group[0].block is not None:
        return formats
    # What is measured takes a while: only types that make the table smaller, and the widest blocks that fit.
    widest = max((_width(format) for format in formats), default=1)
    whole = _stored(network, group, None, engine, dtype)
    return [
        format for format in formats
        if (_width(format) == widest or format.label() == EIGHT_BITS)
        and _stored(network, group, format, engine, dtype) < whole
    ]  # fmt: skip


def _width(format: Format) -> int:
    return format.inputs_multiple


def _stored(network: Network, group: Sequence[Site], format: Format | None, engine: Engine, dtype: str) -> int:
    """Bytes of the tensors of a group, as they are if `format` is None; one that two sites share counts once."""
    files, own = engine.files, {network.stored_name(site.parameter): site for site in group}.values()
    if format is None:
        return sum(files.kept_bytes(network, site, dtype) for site in own)
    return sum(files.stored_bytes(site.shape, format, dtype) for site in own)


def _price(
    network: Network, group: Sequence[Site], collected: Collected, engine: Engine, dtype: str
) -> list[tuple[str, float]]:  # fmt: skip
    """Label and damage of every option of an embedding table, a head, or both where they are one tensor."""
    formats = _taken(tuple(group), engine, network, dtype)
    site = next((site for site in group if site.role == "embedding"), group[0])
    damages = prices(network, site, formats, collected.ids())
    return [(f"{METHOD} {format.label()}", damage) for format, damage in zip(formats, damages, strict=True)]


def _refused(group: tuple[Site, ...], format: Format, engine: Engine, network: Network) -> bool:
    return any(engine.refuses(site, format, network) is not None for site in group)


def predict_group(
    network: Network, group: tuple[Site, ...], formats: Sequence[Format], statistics: Mapping[str, Statistics],
    kinds: Sequence[type[Format]], method: str, pricing: str,
) -> list[tuple[str, float]]:  # fmt: skip
    """Label and damage of one group under each format, from evenly spaced rows of every site.

    Args:
        network: the reference.
        group: sites that read one edge.
        formats: to price.
        statistics: of the edges they read and write.
        kinds: of formats that there are on the menu.
        method: the quantizer, by name.
        pricing: what turns expected changes into a damage, by name.
    """
    rows, minds, stands = [], [], []
    for site in group:
        weight = network.source.read(network.stored_name(site.parameter)).float()
        check_finite(site.parameter, weight)
        fisher = statistics[site.writes].require_fisher().double()
        chosen = torch.arange(0, site.shape[0], max(1, site.shape[0] // SAMPLE))
        share = fisher.sum() / fisher[chosen].sum().clamp(min=1e-300)  # the rows left out weigh what these do
        rows.append(weight[chosen])
        minds.append(fisher[chosen] * share)
        stands.append(torch.full((len(chosen),), site.shape[0] / len(chosen)))
    # Sites of a group read one edge, so that one factorisation serves them all.
    seen, weight = statistics[group[0].reads], torch.cat(rows)
    change = Change(
        weight=weight, formats=formats, outputs=predictor(method, kinds).predict(weight, seen, formats),
        fisher=torch.cat(minds), gram=seen.require_gram(), stands_for=torch.cat(stands),
    )  # fmt: skip
    damages = catalogue.find(pricing, "pricing").price(change).tolist()
    return [(f"{method} {format.label()}", damage) for format, damage in zip(formats, damages, strict=True)]
