"""The verb `inspect`: blocks, sites, ties, what each engine could take, what is kept and why, which bases are free."""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from math import prod
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from pennyweight.export.engines import ENGINES, Engine
from pennyweight.flow.load import load
from pennyweight.flow.make_plan import usual_dtype
from pennyweight.flow.progress import Progress
from pennyweight.network.finding.trace import symmetries_of
from pennyweight.network.network import Network, Site

NUMBER = re.compile(r"(?<![^.\s])\d+(?![^.:\s])")  # a part of a dotted name


def inspect(arguments: Namespace) -> int:
    """Show what a network is made of."""
    network = load(arguments.model, allow_network=arguments.allow_network)
    refused = _refused(network)
    value: dict[str, Any] = {
        "model": str(network.source.path), "source": network.source.description, "bytes": network.source.stored_bytes,
        "fingerprint": network.source.fingerprint, "blocks": [block.name for block in network.blocks],
        "sites": [_row(network, site, refused) for site in network.sites],
        "tied": [list(names) for names in network.tied],
        "untouched": dict(network.untouched), "groups": [[site.name for site in group] for group in network.groups()],
        "coverage": coverage(network, refused),
    }  # fmt: skip
    if arguments.symmetries:
        with Progress(show=not arguments.quiet).stage("trying changes of basis", 1):
            found = symmetries_of(network)
        value["symmetries"] = [
            {
                "edge": one.name, "symmetry": one.label(), "group": one.group, "size": one.size, "block": one.block,
                "shift": one.shift, "writers": [side.port.parameter for side in one.writers],
                "readers": [side.port.parameter for side in one.readers], "norms": list(one.norms),
            }
            for one in found
        ]  # fmt: skip
    if arguments.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
    else:
        show(value)
    return 0


def coverage(network: Network, refused: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Parameters in all: how many a site holds, by role, how many each engine could take, and why not the others.

    A tensor that two sites share counts once, for the first of them.
    """
    refused = _refused(network) if refused is None else refused
    roles: dict[str, dict[str, int]] = {}
    engines: dict[str, dict[str, Any]] = {engine.name: {"parameters": 0, "kept": {}} for engine in ENGINES}
    seen: set[str] = set()
    for site in network.sites:
        stored = network.stored_name(site.parameter)
        elements = 0 if stored in seen else site.elements
        seen.add(stored)
        row = roles.setdefault(site.role, {"sites": 0, "parameters": 0})
        row["sites"] += 1
        row["parameters"] += elements
        for engine in ENGINES:
            here = engines[engine.name]
            if _takes(engine, site, network, refused):
                here["parameters"] += elements
            elif elements:
                why = refused.get(engine.name) or _why_not(engine, site, network)
                here["kept"][why] = here["kept"].get(why, 0) + elements
    untouched: dict[str, int] = defaultdict(int)
    for name, reason in network.untouched.items():
        info = network.source.tensors.get(network.stored_name(name))
        untouched[reason] += prod(info.shape) if info else 0
    total = sum(prod(info.shape) for info in network.source.tensors.values())
    return {
        "parameters": total, "in_sites": sum(row["parameters"] for row in roles.values()), "roles": roles,
        "engines": engines, "untouched": dict(untouched),
    }  # fmt: skip


def show(value: Mapping[str, Any]) -> None:
    """Tables that fit a terminal: what repeats block by block is one row."""
    console = Console(highlight=False, soft_wrap=False)
    size = f"{value['bytes'] / 1e6:,.1f} MB"
    console.print(f"{value['model']}: {value['source']}, {size}, {len(value['blocks'])} blocks")
    table = Table(show_edge=False)
    for heading in ("site", "role", "shape", "stored", "taken compressed by"):
        table.add_column(heading, overflow="fold")
    rows = [
        (row["site"], (row["role"], " x ".join(map(str, row["shape"])), row["stored"], _takers(row["takes"])))
        for row in value["sites"]
    ]  # fmt: skip
    for name, rest in grouped(rows):
        table.add_row(name, *rest)
    console.print(table)
    for name, _ in grouped([(", ".join(names), ()) for names in value["tied"]]):
        console.print(f"tied (one tensor): {name}")
    _show_coverage(console, value["coverage"])
    if "symmetries" in value:
        table = Table(title="changes of basis that an edge lets through", title_justify="left", show_edge=False)
        for heading in ("edge", "lets through", "tensors"):
            table.add_column(heading, overflow="fold", justify="right" if heading == "tensors" else "left")
        edges = [
            (_pair(row["edge"]), (row["symmetry"], str(len({*row["writers"], *row["readers"]}))))
            for row in value["symmetries"]
        ]
        for name, rest in grouped(edges):
            table.add_row(name, *rest)
        console.print()
        console.print(table)


def _show_coverage(console: Console, found: Mapping[str, Any]) -> None:
    total = max(found["parameters"], 1)
    console.print(f"{total:,} parameters, {found['in_sites'] / total:.1%} of them in sites:")
    for role, row in found["roles"].items():
        console.print(
            f"  {row['parameters'] / total:6.1%}  {role}: {row['sites']} site{'s' if row['sites'] > 1 else ''}"
        )
    for reason, count in found["untouched"].items():
        console.print(f"  {count / total:6.1%}  untouched: {reason}")
    for name, row in found["engines"].items():
        rest = "; kept dense:" if row["kept"] else ""
        console.print(f"{name} takes {row['parameters'] / total:.1%} compressed{rest}")
        for reason, count in sorted(row["kept"].items(), key=lambda pair: -pair[1]):
            console.print(f"  {count / total:6.1%}  {reason}")


def grouped(rows: Iterable[tuple[str, tuple[str, ...]]]) -> list[tuple[str, tuple[str, ...]]]:
    """Rows whose names differ in numbers alone become one, such as `model.layers.{0..29}.mlp.up_proj`."""
    sets: dict[tuple[str, ...], list[tuple[int, ...]]] = {}
    for name, others in rows:
        numbers = tuple(int(number) for number in NUMBER.findall(name))
        sets.setdefault((NUMBER.sub("{}", name), *others), []).append(numbers)
    found = []
    for (template, *rest), alike in sets.items():
        ranges = [_ranges(sorted({row[place] for row in alike})) for place in range(len(alike[0]))]
        found.append((template.format(*ranges), tuple(rest)))
    return found


def _ranges(numbers: Sequence[int]) -> str:
    """Such as `{0..5,7}`; a single number stays what it is."""
    if len(numbers) == 1:
        return str(numbers[0])
    runs = []
    for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        runs.append(str(members[0]) if len(members) == 1 else f"{members[0]}..{members[-1]}")
    return "{" + ",".join(runs) + "}"


def _pair(name: str) -> str:
    """Two activations of one block, the second without what both names begin with."""
    first, cross, second = name.partition(" x ")
    start, same = first.rpartition(".")[0], second.rpartition(".")[0]
    return f"{first} x {second.rpartition('.')[2]}" if cross and start == same else name


def _refused(network: Network) -> dict[str, str]:
    """Engines that none of this network can be written for, and why."""
    found = {engine.name: engine.refuses_all(network, usual_dtype(network)) for engine in ENGINES}
    return {name: why for name, why in found.items() if why}


def _row(network: Network, site: Site, refused: Mapping[str, str]) -> dict[str, Any]:
    info = network.source.tensors[network.stored_name(site.parameter)]
    return {
        "site": site.name, "role": site.role, "block": site.block, "shape": list(site.shape), "reads": site.reads,
        "layout": site.layout, "stored": info.dtype, "bytes": info.bytes,
        "takes": {engine.name: _takes(engine, site, network, refused) for engine in ENGINES},
    }  # fmt: skip


def _why_not(engine: Engine, site: Site, network: Network) -> str:
    """Why an engine takes no grid of a site; that it reads other widths too is no reason."""
    reasons = [engine.refuses(site, format, network) for format in engine.menu_of([site], "float16")]
    return next((reason for reason in reasons if reason), f"no format of {engine.name} fits its shape")


def _takes(engine: Engine, site: Site, network: Network, refused: Mapping[str, str]) -> list[str]:
    if engine.name in refused:
        return []
    formats = engine.menu_of([site], "float16")
    return sorted({format.label() for format in formats if not engine.refuses(site, format, network)})


def _takers(takes: Mapping[str, Sequence[str]]) -> str:
    """Engines with a format for a site; the formats are in the JSON."""
    able = [name for name, formats in takes.items() if formats]
    return "every engine" if len(able) == len(takes) else ", ".join(able) or "none"
