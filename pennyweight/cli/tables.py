"""What people read on a terminal: tables by rich, one sentence at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pennyweight import catalogue
from pennyweight.flow.check import Checked
from pennyweight.flow.delivery import Outcome
from pennyweight.methods.certification.statement import amount

VERDICTS = {
    "certified": "certified", "exact": "certified (every window was scored)",
    "futile": "NOT certified: looks above the limit, stopped",  # a rule of thumb stops there, which proves nothing
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
    table.add_row("same next token chosen", "", percent(s["agreement"], sign=False))
    table.add_row("KL, nats per token", "", f"{s['kl']:.5f}")
    table.add_row("seconds", "", f"{timing['seconds']:.0f}")
    table.add_row("peak memory", "", megabytes(timing["peak_memory"]))
    table.add_row("verdict", "", Text(VERDICTS[s["verdict"]], style="bold green" if result.holds else "bold red"))
    console = _console()
    console.print(table)
    console.print()
    console.print(_claims(result))
    console.print()
    if "rounded" in str(s["source"]):
        console.print(f"Before compression: {s['source']}. Figures are relative to that model, not to its original.")
    console.print(s["statement"])
    if not result.holds:
        console.print("The best candidate was kept, uncertified.")
    console.print(
        f"\nartifact  {result.out}\nreport    {page}\ncheck     pennyweight verify {result.out}", soft_wrap=True
    )


def certified(result: Outcome, page: Path) -> None:
    """The claims about two models, and where the certificate is."""
    s, console = result.summary, _console()
    console.print(_claims(result, f"{s['compressed']} against {s['model']}"))
    console.print()
    if "rounded" in str(s["source"]):
        console.print(f"Before: {s['source']}. Figures are relative to that model, not to its original.")
    console.print(s["statement"])
    console.print(
        f"\ncertificate  {result.out}\nreport       {page}\ncheck        pennyweight verify {result.out}",
        soft_wrap=True,
    )


def _claims(result: Outcome, title: str | None = None) -> Table:
    """One row a claim: its limit, what was seen, its bound."""
    s = result.summary
    table = Table(title=title, title_justify="left", show_edge=False)
    headings = ("limit", "seen", f"bound, {100 * s['confidence']:.4g} %", "scored", "verdict")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("limit", "verdict") else "right")
    for claim, judged in zip(s["claims"], result.certificate.claims, strict=True):
        of = f" of {claim['population']:,}" if claim["population"] is not None else ""
        word = VERDICTS[claim["verdict"]]
        if claim["verdict"] == "exact" and not claim["holds"]:
            word = "NOT within the limit"
        bound = lost(claim["metric"], claim["bound"], up=True)
        if judged.terms.tail_alpha:  # a few very bad windows count no more than the cap: the number says so itself
            bound += " (capped)"
        table.add_row(
            claim["limit"] or f"{claim['metric']}, no limit",
            lost(claim["metric"], claim["estimate"], up=False),
            "exact" if claim["verdict"] == "exact" else f"at most {bound}",
            f"{claim['scored']:,}{of}",
            Text(word, style="bold green" if claim["holds"] else "bold red"),
        )
    return table


def lost(metric: str, value: float, *, up: bool) -> str:
    """A degradation in three digits; bounds are rounded up, for they must not look smaller than they are."""
    kind = catalogue.find(metric, "measurement")
    if up:
        return amount(kind, value).removesuffix(kind.unit).rstrip()
    if metric == "perplexity":
        return f"{100 * math.expm1(value):+.3g} %"
    return f"{100 * value:.3g} {'points' if kind.lower == -1 else '%'}" if kind.percent else f"{value:.3g}"


def checked(found: Checked, within: float) -> None:
    """What an engine did with the files."""
    console = _console()
    if not found.loaded:
        console.print(f"{found.engine} does NOT load it.")
        console.print(Text(found.said))
        return
    table = Table(title=f"{found.engine} ({found.version})", title_justify="left", show_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("loads", "yes")
    table.add_row("KL of our loader from it, nats per token", f"{found.kl:.2e}")
    table.add_row("same likeliest token", f"{percent(found.agreement, sign=False)} of {found.positions:,}")
    table.add_row("largest difference of a logit", f"{found.largest:.3g}")
    table.add_row("perplexity there; by our loader", f"{found.perplexity:.4f}; {found.ours:.4f}")
    table.add_row("seconds to load", f"{found.loading:.1f}")
    table.add_row("tokens a second, reading", f"{found.prefill:,.0f}")
    table.add_row("tokens a second, writing", f"{found.decode:,.1f}")
    console.print(table)
    same = found.holds(within)
    console.print(
        f"\nIt computes {'what' if same else 'something else than what'} was certified (KL up to {within:g})."
    )
