"""What people read on a terminal: tables by rich, one sentence at the end."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pennyweight.flow.delivery import Outcome

VERDICTS = {
    "certified": "certified", "exact": "certified (every window was scored)", "futile": "NOT certified: it loses more",
    "exhausted": "NOT certified: the evidence does not settle it", "measured": "measured; no limit on the loss was set",
}  # fmt: skip


def _console() -> Console:
    return Console(highlight=False, soft_wrap=False)


def megabytes(size: float) -> str:
    """Such as `133.3 MB`."""
    return f"{size / 1e6:,.1f} MB"


def percent(share: float, *, sign: bool = True) -> str:
    """Such as `+1.36 %`."""
    return f"{100 * share:{'+' if sign else ''}.2f} %"


def outcome(result: Outcome, timing: Mapping[str, Any], page: Path) -> None:
    """The table a person understands, the claim, and where everything is."""
    s = result.summary
    table = Table(title=f"{s['model']} for {s['engine']}", title_justify="left", show_edge=False)
    for heading in ("", "before", "after"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row("file handed in -> files to ship", megabytes(s["bytes_before"]), megabytes(s["bytes_after"]))
    table.add_row(
        "the same model in 16 bits", megabytes(s["bytes_16_bit"]), f"{s['bytes_after'] / s['bytes_16_bit']:.0%} of it"
    )
    table.add_row(
        "bits per weight (all tensors)", f"{8 * s['bytes_before'] / (s['bytes_16_bit'] / 2):.2f}", f"{s['bits']:.2f}"
    )
    table.add_row(
        "perplexity", f"{s['perplexity_before']:.3f}", f"{s['perplexity_after']:.3f} ({percent(math.expm1(s['rise']))})"
    )
    # Rounded up, as in the statement: a bound must not look smaller than it is.
    most = math.ceil(round(math.expm1(s["bound"]) * 1e4, 6)) / 1e4
    bound = "exact" if s["verdict"] == "exact" else f"at most {percent(most)}"
    table.add_row(f"its bound at {s['confidence']:.0%} confidence", "", bound)
    table.add_row("same next token chosen", "", percent(s["agreement"], sign=False))
    table.add_row("KL, nats per token", "", f"{s['kl']:.5f}")
    table.add_row("windows scored for the claim", "", f"{s['scored']} of {s['population']}")
    table.add_row("seconds", "", f"{timing['seconds']:.0f}")
    table.add_row("peak memory", "", megabytes(timing["peak_memory"]))
    table.add_row("verdict", "", Text(VERDICTS[s["verdict"]], style="bold green" if result.holds else "bold red"))
    console = _console()
    console.print(table)
    console.print()
    if "rounded" in str(s["source"]):
        console.print(f"Before compression: {s['source']}. Figures are relative to that model, not to its original.")
    console.print(s["statement"])
    if not result.holds:
        console.print("The best candidate was kept, uncertified.")
    console.print(
        f"\nartifact  {result.out}\nreport    {page}\ncheck     pennyweight verify {result.out}", soft_wrap=True
    )


def inspection(value: Mapping[str, Any]) -> None:
    """Blocks, sites and what engines could take."""
    console = _console()
    console.print(f"{value['model']}: {value['source']}, {megabytes(value['bytes'])}, {len(value['blocks'])} blocks")
    table = Table(show_edge=False)
    for heading in ("site", "role", "shape", "stored", "reads"):
        table.add_column(heading)
    engines = sorted({name for row in value["sites"] for name in row["takes"]})
    for name in engines:
        table.add_column(f"{name} takes")
    for row in value["sites"]:
        takes = [_short(row["takes"][name]) for name in engines]
        table.add_row(row["site"], row["role"], " x ".join(map(str, row["shape"])), row["stored"], row["reads"], *takes)
    console.print(table)
    for names in value["tied"]:
        console.print(f"tied (one tensor): {', '.join(names)}")
    reasons = Counter(value["untouched"].values())
    for reason, count in reasons.items():
        console.print(f"untouched: {count} tensors, {reason}")


def _short(labels: list[str]) -> str:
    bits = sorted({label.split()[0].removeprefix("int") for label in labels})
    return f"int {','.join(bits)}" if bits else "-"


def comparison(value: Mapping[str, Any], reference: str, compressed: str) -> None:
    """Two models side by side."""
    table = Table(
        title=f"{value['windows']} of {value['of']} windows of {value['text']}", title_justify="left", show_edge=False
    )
    for heading in ("", Path(reference).name, Path(compressed).name):
        table.add_column(heading, justify="right" if heading else "left")
    after = f"{value['perplexity_after']:.3f} ({percent(value['rise'])})"
    table.add_row("perplexity", f"{value['perplexity_before']:.3f}", after)
    if "upper_approximate" in value:
        heading = f"rise at most, {value['confidence']:.0%}, approximate"
        table.add_row(heading, "", f"{percent(value['upper_approximate'])} ({value['documents']} documents)")
    table.add_row("KL, nats per token", "", f"{value['kl']:.5f}")
    table.add_row("same next token chosen", "", percent(value["agreement"], sign=False))
    _console().print(table)


def listing(value: Mapping[str, Any]) -> None:
    """Everything there is."""
    console = _console()
    methods = Table(show_edge=False)
    for heading in ("method", "room", "paper", "needs", "what it does"):
        methods.add_column(heading)
    for row in value["methods"]:
        methods.add_row(row["name"], row["room"], row["paper"], ", ".join(row["needs"]) or "-", row["what"])
    console.print(methods)
    console.print()
    for heading, columns in (("formats", ("name", "what")), ("engines", ("name", "files", "checked", "how"))):
        table = Table(title=heading, title_justify="left", show_edge=False)
        for column in columns:
            table.add_column(column)
        for row in value[heading]:
            table.add_row(*(str(row[column]) for column in columns))
        console.print(table)
        console.print()
