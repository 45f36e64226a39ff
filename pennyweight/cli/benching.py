"""The verb `bench`: tokens a second of files in every engine that reads them, in one table."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from pennyweight.cli.output import print_json, progress_of
from pennyweight.flow.bench.bench import Bench, Spread
from pennyweight.flow.bench.bench import bench as run_bench


def bench(arguments: Namespace) -> int:
    """Time files; exit 1 when an engine that was to run them could not."""
    found = run_bench(
        arguments.path, engines=arguments.engine, pythons=arguments.python or (), reference=arguments.reference,
        batches=arguments.batches, prompt=arguments.prompt, written=arguments.tokens, repeats=arguments.repeats,
        threads=arguments.threads, progress=progress_of(arguments),
    )  # fmt: skip
    if arguments.json:
        print_json(asdict(found))
    else:
        _show(found, arguments.batches)
    return 1 if any(row.failed for row in found.rows) else 0


def _show(found: Bench, batches: tuple[int, ...]) -> None:
    console = Console(highlight=False)
    title = f"tokens a second on {found.machine}, {found.threads} threads: median of {found.repeats} (range)"
    table = Table(title=title, title_justify="left", show_edge=False)
    table.add_column("engine", overflow="fold")
    for heading in ("files MB", "memory MB", "texts", f"reading {found.prompt}", f"writing {found.written}"):
        table.add_column(heading, justify="right")
    for row in found.rows:
        sizes = (f"{row.bytes / 1e6:,.1f}", "failed" if row.failed else f"{row.peak / 1e6:,.0f}")
        if row.failed:
            table.add_row(row.name, *sizes)
        for batch in row.prefill:
            head = (row.name, *sizes) if batch == batches[0] else ("", "", "")
            table.add_row(*head, str(batch), _spread(row.prefill[batch]), _spread(row.decode[batch]))
    console.print(table)
    for row in found.rows:
        if row.failed:
            console.print(f"{row.name} failed: {row.failed}", markup=False)
    for name, reason in found.without.items():
        console.print(f"without {name}: {reason}", markup=False)


def _spread(spread: Spread) -> str:
    digits = 0 if spread.median >= 100 else 1
    return f"{spread.median:,.{digits}f} ({spread.least:,.{digits}f}-{spread.most:,.{digits}f})"
