"""Tables of the verbs `frontier`, `predict` and `explain`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pennyweight.budget import Budget
from pennyweight.flow.predict import Prediction
from pennyweight.flow.search.frontier import Frontier

ROWS = 16  # of a curve on a terminal; the page and the file have all of them
GROUPS = 12  # of an explanation on a terminal


def frontier(found: Frontier, page: Path) -> None:
    """Some points of the curve, and where the rest is."""
    table = Table(title=f"{found.model} for {found.engine}", title_justify="left", show_edge=False)
    for heading in ("plan", "files", "bits a weight", "KL, nats a token", "95 %", "predicted"):
        whole = heading in ("plan", "95 %", "predicted")  # names are copied; headings may wrap instead
        table.add_column(heading, justify="left" if heading == "plan" else "right", no_wrap=whole)
    step = max(1, math.ceil(len(found.points) / ROWS))
    for point in found.points[::step]:
        table.add_row(
            f"plans/{point.plan:02d}.toml", f"{point.bytes / 1e6:,.1f} MB", f"{point.bits:.2f}", f"{point.kl:.4g}",
            f"{point.low:.3g} to {point.high:.3g}", f"{point.predicted:.3g}",
        )  # fmt: skip
    console, middle = Console(highlight=False), found.points[len(found.points) // 2].plan
    console.print(table)
    console.print(
        f"\n{len(found.points)} plans, each measured on {found.tokens} tokens; nothing here is certified.\n"
        f"The picture is {page}; have a plan certified with\n"
        f"  pennyweight compress MODEL --out small/ --plan {found.out}/plans/{middle:02d}.toml --lose 'kl 0.05'",
        soft_wrap=True,
    )


def predicted(found: Prediction, budget: Budget) -> None:
    """What a run would end with."""
    table = Table(title=f"Predicted for {budget.label}", title_justify="left", show_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("files", f"{found.bytes / 1e6:,.1f} MB at most")
    table.add_row("bits per weight (all tensors)", f"{found.bits:.2f}")
    table.add_row("KL, nats per token", f"{found.kl:.4g}  ({found.low:.3g} to {found.high:.3g})")
    table.add_row("rise of perplexity, about", f"{100 * math.expm1(found.kl):.2f} %")
    table.add_row("minutes that compress would take here", f"{found.minutes:.0f}")
    table.add_row("peak memory, about", f"{found.peak_memory / 1e6:,.0f} MB")
    if found.engine_memory is not None:
        table.add_row(f"memory in {found.plan.engine}, for the model", f"{found.engine_memory / 1e6:,.1f} MB")
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"\nA prediction, not a claim: carried out by {found.by} on few windows, measured on few. Compress "
        "measures on others, and certifies."
    )


def explained(found: Mapping[str, Any]) -> None:
    """Where another bit would help most and one less would hurt least, and what limited the plan."""
    console = Console(highlight=False)
    more, less = found["next_megabyte_saves"], found["last_megabyte_cost"]
    console.print(f"What limited the plan: {found['binding']}")
    if more is not None:
        console.print(f"One more megabyte would save {more:.3g} nats per token, as predicted.")
    if less is not None:
        console.print(f"One megabyte less would cost {less:.3g}.")
    for title, key in (("worth more bits first", "dearer"), ("could give bits first", "cheaper")):
        groups = [group for group in found["groups"] if group[key]]
        groups.sort(key=lambda group: group[key][2] / abs(group[key][1]))
        table = Table(title=title, title_justify="left", show_edge=False)
        for heading in ("sites", "has", "next", "bytes", "nats per token"):
            table.add_column(heading, justify="left" if heading in ("sites", "has", "next") else "right")
        for group in groups[:GROUPS]:
            step, size, damage = group[key]
            table.add_row(_short(group["sites"]), group["step"], step, f"{size:+,d}", f"{damage:+.2e}")
        console.print()
        console.print(table)


def _short(sites: list[str]) -> str:
    first, *rest = sites
    place = first.rpartition(".")[0]
    names = [first, *(name.removeprefix(f"{place}.") for name in rest)]
    return ", ".join(names)
