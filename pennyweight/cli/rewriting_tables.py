"""What people read of rewrites and proofs on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pennyweight.flow.prove import Proof
from pennyweight.flow.rewrite import Step
from pennyweight.flow.save import Saved

SHOWN = 5  # names of tensors that differ


def rewritten(model: str, saved: Saved, steps: Sequence[Step]) -> None:
    """What each rewrite did, and where the result is."""
    table = Table(title=f"{Path(model).name}, rewritten", title_justify="left", show_edge=False)
    for heading in ("rewrite", "edges", "outputs change, unrounded", "since the beginning, stored"):
        table.add_column(heading, justify="left" if heading == "rewrite" else "right", overflow="fold")
    for step in steps:
        table.add_row(step.method, str(len(step.edges)), f"{step.change:.1e}", f"{step.stored:.1e}")
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"\nIn {saved.dtype}, {saved.bytes / 1e6:,.1f} MB; outputs change by {saved.change:.1e}, relative: rounding."
        f"\n\nmodel  {saved.out}\ncheck  pennyweight prove {model} {saved.out}",
        soft_wrap=True,
    )


def proved(proof: Proof) -> None:
    """The verdict, and which tensors are other numbers."""
    console = Console(highlight=False)
    console.print(proof.statement, soft_wrap=True)
    if proof.differ:
        more = f" and {len(proof.differ) - SHOWN} more" if len(proof.differ) > SHOWN else ""
        names = ", ".join(proof.differ[:SHOWN])
        console.print(f"{len(proof.differ)} of {proof.tensors} tensors are other bits: {names}{more}", soft_wrap=True)
