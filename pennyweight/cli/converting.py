"""The verbs `export` and `convert`: the same numbers in files of another kind, and which of them had to change."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from pennyweight.cli.output import print_json, progress_of
from pennyweight.flow.converting.compare import Row, totals
from pennyweight.flow.converting.convert import Converted, Settings
from pennyweight.flow.converting.convert import convert as run_convert


def export(arguments: Namespace) -> int:
    """Write an artifact of ours as files of another kind."""
    return _converted(arguments, sealed=True)


def convert(arguments: Namespace) -> int:
    """Write a compressed model of any maker as files of another kind."""
    return _converted(arguments, sealed=False)


def _converted(arguments: Namespace, *, sealed: bool) -> int:
    """Exit 1 when files were certified again and the limits do not hold."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    settings = Settings(
        dtype=arguments.dtype, method=arguments.method, strict=arguments.strict, windows=arguments.windows,
        length=arguments.length,
    )  # fmt: skip
    done = run_convert(
        arguments.model, arguments.out, to=arguments.to, settings=settings, text=arguments.on,
        reference=arguments.reference, sealed=sealed, allow_network=arguments.allow_network,
        progress=progress_of(arguments),
    )  # fmt: skip
    if arguments.json:
        print_json(
            {
                "out": str(done.out), "engine": done.engine, "dtype": done.dtype, "exact": done.exact, "kl": done.kl,
                "unrounded": list(done.unrounded),
                "certificate": done.certificate, "statement": done.statement, "bytes_before": done.bytes_before,
                "bytes_after": done.bytes_after, "totals": totals(done.rows),
                "rows": [asdict(row) for row in done.rows],
            }
        )  # fmt: skip
    else:
        _show(arguments.model, done)
    return 1 if done.outcome is not None and not done.outcome.holds else 0


def _show(model: str, done: Converted) -> None:
    table = Table(title=f"{Path(model).name} for {done.engine}, in {done.dtype}", title_justify="left", show_edge=False)
    for heading in ("from", "to", "numbers", "tensors", "largest change"):
        table.add_column(heading, justify="right" if heading in ("tensors", "largest change") else "left")
    for (before, after, how), rows in _alike(done.rows):
        largest = max(row.error for row in rows)
        table.add_row(before, after, how, str(len(rows)), f"{largest:.1e}" if largest else "none")
    console = Console(highlight=False)
    console.print(table)
    if done.unrounded:
        print(f"While it ran, the source rounded what layers read ({', '.join(done.unrounded)}); these files do not.\n")
    words = "Every number is equal." if done.exact else (
        f"KL of the source's predictions from these: {done.kl:.2g} nats a token. Changes are squared, over the squared "
        "weight."
    )  # fmt: skip
    size = f"{done.bytes_before / 1e6:,.1f} MB -> {done.bytes_after / 1e6:,.1f} MB."
    statement = f"\n{done.statement}" if done.statement else ""
    console.print(f"\n{words} {size}\nCertificate: {done.certificate}.{statement}\n\nfiles  {done.out}", soft_wrap=True)


def _alike(rows: Sequence[Row]) -> list[tuple[tuple[str, str, str], list[Row]]]:
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.before, row.after, row.how), []).append(row)
    return list(found.items())
