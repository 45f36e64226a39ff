"""What layers read, and keys and values: roundings fitted to calibration text once for a run, and what they cost.

The cost of an input's rounding is, as that of a weight's, the second order of KL(reference || compressed): half of what
the network minds a change of each output, times the mean square of the change. Errors are taken as independent of one
another and of what is read, which those of numbers beyond a fixed range are not; candidates are measured anyway.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pennyweight import catalogue
from pennyweight.corpus import Windows
from pennyweight.errors import InvalidMethod
from pennyweight.export.engines import Engine
from pennyweight.export.files import rounding_files
from pennyweight.flow.collect import Collected
from pennyweight.flow.journal import Journal
from pennyweight.flow.observe import observe, observe_caches
from pennyweight.flow.options import Table
from pennyweight.flow.progress import QUIET, Progress
from pennyweight.formats import Dense
from pennyweight.formats.passing import Activations, Dynamic, KeysAndValues, Quantizer, Static
from pennyweight.network.network import Network
from pennyweight.numerics.hashing import of_value
from pennyweight.plan import Input, Plan
from pennyweight.statistics import Statistics

SEEN = 32  # windows of calibration text, at most: ranges and errors settle long before grams do


@dataclass(frozen=True, eq=False)
class Fitted:
    """Every linear layer's rounding in every way that was asked for.

    Args:
        inputs: by label of the way, then by site.
        noise: mean squares of their errors by channel, alike.
        caches: by module of attention.
    """

    inputs: Mapping[str, Mapping[str, Quantizer]]
    noise: Mapping[str, Mapping[str, Tensor]]
    caches: Mapping[str, KeysAndValues]

    def of(self, plan: Plan) -> Activations:
        """What a plan asks for."""
        chosen = {site: self.inputs[asked.label()][site] for site, asked in plan.inputs().items()}
        return Activations(chosen, self.caches if plan.cache else {})


def activations_of(
    plan: Plan, network: Network, windows: Windows | None, journal: Journal, progress: Progress = QUIET
) -> Activations:
    """The roundings of a plan, fitted or found in the journal.

    Args:
        plan: checked against the network.
        network: what is compressed.
        windows: of calibration text.
        journal: of the run.
        progress: told about it.

    Raises:
        InvalidMethod: the plan rounds, and there is no text.
        PennyweightError: a method refuses a format, or was shown nothing it needs.
    """
    inputs = set(plan.inputs().values())
    if not inputs and plan.cache is None:
        return Activations()
    if windows is None:
        raise InvalidMethod(
            "the plan rounds activations, and there is no text to see them on", expected="calibration windows",
            mend="apply(plan, ..., calibration=pw.sample('train.txt', network))", site="calibration",
        )  # fmt: skip
    return fit(network, windows, inputs, plan.cache, plan.dtype, journal, progress).of(plan)


def fit(
    network: Network, windows: Windows, inputs: Collection[Input], cache: Input | None, dtype: str, journal: Journal,
    progress: Progress = QUIET,
) -> Fitted:  # fmt: skip
    """Fit every way of rounding to every linear layer, and the caches; from one pass of some text each.

    Args:
        network: what is compressed.
        windows: of calibration text, of which some are shown.
        inputs: ways to round what layers read.
        cache: how keys and values are rounded; None where they are not.
        dtype: that files store scales in: they are rounded to it here.
        journal: a finished pass is not made again.
        progress: told about it.
    """
    asked = sorted({one.label(): one for one in inputs}.items())
    key = of_value([[label for label, _ in asked], cache.label() if cache else "", dtype, windows.fingerprint])[:16]
    piece, some = f"activations/{key}.safetensors", replace(windows, ids=windows.ids[:SEEN])
    sites = [site.name for site in network.sites if site.role == "linear"]
    if not journal.has(piece):
        stored: dict[str, Tensor] = {}
        if asked:
            with progress.stage("observing activations", 1):
                seen = observe(network, some)
            for label, one in asked:
                for site in sites:
                    stored |= _fitted(f"{label}/{site}", one, seen.get(f"{site}:input"), dtype)
        if cache is not None:
            with progress.stage("observing keys and values", 1):
                pairs = observe_caches(network, some)
            for module, both in pairs.items():
                for name, seen_of in zip(("keys", "values"), both, strict=True):
                    stored |= _fitted(f"{name}/{module}", cache, seen_of, dtype)
        journal.save_tensors(piece, stored)
    found = journal.load_tensors(piece)
    known = {label: [site for site in sites if f"{label}/{site}/noise" in found] for label, _ in asked}
    modules = [name.split("/")[1] for name in found if name.startswith("keys/") and name.endswith("/noise")]
    return Fitted(
        inputs={label: {s: _quantizer(f"{label}/{s}", one, found) for s in known[label]} for label, one in asked},
        noise={label: {site: found[f"{label}/{site}/noise"] for site in known[label]} for label, _ in asked},
        caches={} if cache is None else {module: _pair(module, cache, found) for module in modules},
    )


def damages(network: Network, collected: Collected, fitted: Fitted, label: str) -> dict[str, float]:
    """What rounding its input costs each linear layer, nats per token.

    Args:
        network: what is compressed.
        collected: fisher of every edge.
        fitted: see `fit`.
        label: of the way to round.
    """
    found = {}
    for index in range(len(network.blocks)):
        statistics = collected.block(index)
        for site in (site for site in network.sites if site.block == index and site.name in fitted.noise[label]):
            weight = network.source.read(network.stored_name(site.parameter)).double()
            changes = weight.square() @ fitted.noise[label][site.name].double()
            found[site.name] = float(statistics[site.writes].require_fisher().double() @ changes) / 2
    return found


def reading(
    table: Table, network: Network, engine: Engine, input: Input | None, cache: Input | None, dtype: str,
    priced: Mapping[str, float],
) -> Table:  # fmt: skip
    """The table, every compressed layer of which also rounds what it reads; and room for the scales of caches.

    Args:
        table: of options.
        network: whose shapes they have.
        engine: whose files store scales.
        input: how layers round; None where they do not.
        cache: how keys and values are rounded.
        dtype: of scales.
        priced: what the rounding costs each site, nats per token; empty for a table of sizes alone.
    """
    groups, files = [], rounding_files(engine.files)
    for row in table.groups if input is not None else ():
        assert input is not None
        found = []
        for option in row:
            format = option.step.stages[0].format
            if isinstance(format, Dense):
                found.append(option)
                continue
            own = {network.stored_name(network.by_name[n].parameter): network.by_name[n] for n in option.sites}
            found.append(
                replace(
                    option, step=replace(option.step, input=input),
                    bytes=sum(files.rounded_bytes(s.shape, format, input.format, dtype) for s in own.values()),
                    damage=option.damage + sum(priced.get(name, 0.0) for name in option.sites),
                )
            )  # fmt: skip
        groups.append(tuple(found))
    beside = files.cache_bytes(network, dtype) if cache is not None else 0
    return replace(table, groups=tuple(groups) or table.groups, fixed_bytes=table.fixed_bytes + beside)


def _fitted(name: str, asked: Input, seen: Statistics | None, dtype: str) -> dict[str, Tensor]:
    """Scale and zero point where they are fixed beforehand, and errors on some rows; nothing of what was not seen."""
    if seen is None or seen.sample is None:
        return {}
    rounds: Quantizer = catalogue.find(asked.method, "activations").fit(seen, asked.format)
    stored = {}
    if isinstance(rounds, Static):
        scale = rounds.scale.to(getattr(torch, dtype)).float()
        rounds = replace(rounds, scale=scale)
        stored = {f"{name}/scale": scale}
        if rounds.zero_point is not None:
            stored[f"{name}/zero_point"] = rounds.zero_point
    errors = rounds.rounded(seen.sample) - seen.sample
    return {**stored, f"{name}/noise": errors.double().square().mean(0).float()}


def _quantizer(name: str, asked: Input, stored: Mapping[str, Tensor]) -> Quantizer:
    if asked.format.over.dynamic:
        return Dynamic(asked.format)
    return Static(asked.format, stored[f"{name}/scale"], stored.get(f"{name}/zero_point"))


def _pair(module: str, asked: Input, stored: Mapping[str, Tensor]) -> KeysAndValues:
    keys, values = (_quantizer(f"{name}/{module}", asked, stored) for name in ("keys", "values"))
    assert isinstance(keys, Static)
    assert isinstance(values, Static)
    return KeysAndValues(keys, values)
