"""The table an allocation chooses from: for every group, what it could become, at what size and predicted damage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from pennyweight import catalogue
from pennyweight.errors import InvalidMethod
from pennyweight.export import dense_bytes, stored_bytes
from pennyweight.export.engines import Engine
from pennyweight.flow.collect import Collected
from pennyweight.flow.journal import Journal
from pennyweight.flow.progress import QUIET, Progress
from pennyweight.formats import Dense, Grid
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

BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 96, 128, 192)
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


def menu(columns: Sequence[int], dtype: str, bits: Sequence[int] = BITS) -> tuple[Grid, ...]:
    """Grids that divide all of the given input sizes, as coarse as their width allows.

    Scales cost half a bit a weight in groups of 32 and an eighth in groups of 128. From 6 bits on another bit is
    cheaper than small groups; at 8 bits one scale a row is enough. Groups of 96 and 192 are for widths that 128 does
    not divide.
    """
    grids = []
    for width in bits:
        sizes: list[int | None] = [g for g in GROUPS if not any(count % g for count in columns)]
        if all(count % 128 == 0 for count in columns):
            sizes = [g for g in sizes if g not in (96, 192)]
        if width >= 6 or not sizes:
            sizes = [*sizes[-1:], None]
        for size in sizes:
            if width == 8 and size is not None and None in sizes:
                continue
            for symmetric in (True, False) if width < 6 else (True,):
                grids.append(Grid(bits=width, group_size=size, symmetric=symmetric, scale_dtype=dtype))
    return tuple(grids)


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
    """
    decided, kept = _decide(network, engine, dtype)
    # Statistics may be kept for other plans: what engine, dtype and method decide must not be taken for their answer.
    asked = of_value([engine.name, engine.version, dtype, method, pricing])[:8]
    rows: list[tuple[tuple[Site, ...], list[tuple[str, float]]]] = []
    with progress.stage("predicting options", len(network.blocks)) as advance:
        for index in range(len(network.blocks)):
            key = f"options/{asked}-{index:04d}.json"
            if not journal.has(key):
                here = decided.get(index, [])
                journal.save(key, _predict_block(network, here, collected.block(index), engine, dtype, method, pricing))
                release()
            rows += zip(decided.get(index, []), journal.load(key), strict=True)
            advance()
    return _table(network, rows, kept, dtype)


def outline(network: Network, engine: Engine, *, dtype: str) -> Table:
    """The table with every damage zero: all it takes to know which sizes are possible, before any work."""
    decided, kept = _decide(network, engine, dtype)
    rows = [
        (group, [(f"any {grid.label()}", 0.0) for grid in _taken(group, engine, network, dtype)])
        for groups in decided.values()
        for group in groups
    ]
    return _table(network, rows, kept, dtype)


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
        shapes, found = [network.by_name[name].shape for name in row[0].sites], []
        for option in row:
            format = option.step.stages[0].format
            if isinstance(format, Dense):
                time = latency.of(shapes, "dense")
                dense += time
            elif latency.knows(shapes, format.label()):
                time = latency.of(shapes, format.label())
            else:
                continue
            found.append(replace(option, milliseconds=time))
        groups.append(tuple(found))
    return replace(table, groups=tuple(groups)), Limit("milliseconds", dense / speed)


def predictor(method: str) -> Any:
    """The quantizer whose predictions plans for this one rest on: itself, or GPTQ for one that predicts nothing.

    Methods without predictions of their own sweep as GPTQ does and improve on it; candidates are measured anyway.

    Raises:
        UnknownName: no quantizer has this name.
        InvalidMethod: it writes no integer grids, and no file of an engine holds anything else.
    """
    quantizer = catalogue.find(method, "quantization")
    if not issubclass(Grid, quantizer.takes):
        able = [kind.name for kind in catalogue.classes("quantization") if issubclass(Grid, kind.takes)]
        raise InvalidMethod(
            f"{quantizer.name} writes {', '.join(kind.__name__ for kind in quantizer.takes)}, and no integer grids",
            expected=f"one of {', '.join(able)}", mend="--method gptq", site=method,
        )  # fmt: skip
    return quantizer if hasattr(quantizer, "predict") else GPTQ()


def _decide(network: Network, engine: Engine, dtype: str) -> tuple[dict[int, list[tuple[Site, ...]]], dict[str, str]]:
    """Groups the engine can take in some grid, by block, and why it cannot take the others."""
    kept: dict[str, str] = {}
    decided: dict[int, list[tuple[Site, ...]]] = {}
    for group in network.groups():
        probe = menu([site.shape[1] for site in group], dtype)
        reasons = [engine.refuses(site, grid, network) for site in group for grid in probe[:1]]
        if all(site.block is not None for site in group) and any(
            not _refused(group, g, engine, network) for g in probe
        ):
            decided.setdefault(group[0].block or 0, []).append(group)
        else:
            why = next((reason for reason in reasons if reason), f"no grid of {engine.name} fits its shape")
            kept |= {site.name: why for site in group}
    return decided, kept


def _table(
    network: Network,
    rows: Sequence[tuple[tuple[Site, ...], Sequence[tuple[str, float]]]],
    kept: Mapping[str, str],
    dtype: str,
) -> Table:
    dense = Dense(dtype=dtype)
    groups: list[tuple[Option, ...]] = []
    for group, row in rows:
        names = tuple(site.name for site in group)
        size = sum(dense.stored_bits(site.shape) for site in group) // 8
        options = [Option(sites=names, step=Step((Stage("cast", dense),)), bytes=size, damage=0.0)]
        for label, damage in row:
            step = Step.parse(label)
            grid = step.stages[0].format
            stored = sum(stored_bytes(site.shape, grid, dtype) for site in group)
            options.append(Option(sites=names, step=step, bytes=stored, damage=damage))
        groups.append(tuple(options))
    decisions = {site.parameter for group, _ in rows for site in group}
    fixed = sum(dense_bytes(info, dtype) for name, info in network.source.tensors.items() if name not in decisions)
    return Table(tuple(groups), kept, fixed)


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
        rows.append(predict_group(network, group, _taken(group, engine, network, dtype), statistics, method, pricing))
    return rows


def _taken(group: tuple[Site, ...], engine: Engine, network: Network, dtype: str) -> list[Grid]:
    grids = menu([site.shape[1] for site in group], dtype)
    return [grid for grid in grids if not _refused(group, grid, engine, network)]


def _refused(group: tuple[Site, ...], grid: Grid, engine: Engine, network: Network) -> bool:
    return any(engine.refuses(site, grid, network) is not None for site in group)


def predict_group(
    network: Network, group: tuple[Site, ...], grids: Sequence[Grid], statistics: Mapping[str, Statistics], method: str,
    pricing: str,
) -> list[tuple[str, float]]:  # fmt: skip
    """Label and damage of one group under each grid, from evenly spaced rows of every site.

    Args:
        network: the reference.
        group: sites that read one edge.
        grids: formats to price.
        statistics: of the edges they read and write.
        method: the quantizer, by name.
        pricing: what turns expected changes into a damage, by name.
    """
    rows, minds = [], []
    for site in group:
        weight = network.source.read(network.stored_name(site.parameter)).float()
        check_finite(site.parameter, weight)
        fisher = statistics[site.writes].require_fisher().double()
        chosen = torch.arange(0, site.shape[0], max(1, site.shape[0] // SAMPLE))
        share = fisher.sum() / fisher[chosen].sum().clamp(min=1e-300)  # the rows left out weigh what these do
        rows.append(weight[chosen])
        minds.append(fisher[chosen] * share)
    # Sites of a group read one edge, so that one factorisation serves them all.
    seen, weight = statistics[group[0].reads], torch.cat(rows)
    change = Change(
        weight=weight, formats=grids, outputs=predictor(method).predict(weight, seen, grids), fisher=torch.cat(minds),
        gram=seen.require_gram(),
    )  # fmt: skip
    damages = catalogue.find(pricing, "pricing").price(change).tolist()
    return [(f"{method} {grid.label()}", damage) for grid, damage in zip(grids, damages, strict=True)]
