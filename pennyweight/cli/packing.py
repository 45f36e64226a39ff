"""The verbs `pack` and `unpack`: files without loss, and what became of each kind of number in them."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from pennyweight.cli.output import print_json, progress_of
from pennyweight.flow.packing.accounts import Account
from pennyweight.flow.packing.pack import Packed, pack
from pennyweight.flow.packing.unpack import Unpacked, unpack


def run_pack(arguments: Namespace) -> int:
    """Pack a directory or a file."""
    packed = pack(arguments.source, arguments.target, threads=arguments.threads, progress=progress_of(arguments))
    if arguments.json:
        print_json(packed.summary())
    else:
        _packed(packed)
    return 0


def run_unpack(arguments: Namespace) -> int:
    """Restore what was packed."""
    found = unpack(arguments.source, arguments.target, threads=arguments.threads, progress=progress_of(arguments))
    if arguments.json:
        print_json({**asdict(found), "out": str(found.out)})
    else:
        _unpacked(found)
    return 0


def _packed(packed: Packed) -> None:
    table = Table(show_edge=False)
    for heading in ("", "bytes", "entropy, order 0", "stored", "of before"):
        table.add_column(heading, justify="left" if not heading else "right")
    for kind, account in packed.kinds.items():
        if account.stored:
            table.add_row(kind, *_row(account))
    table.add_section()
    table.add_row("all", *_row(Account(packed.before, packed.bound, packed.after)))
    console = Console(highlight=False)
    console.print(table)
    for name, reason in packed.as_bytes.items():
        console.print(f"\n{name} was packed as bytes: {reason}", soft_wrap=True)
    seconds = ", ".join(f"{stage} {took:.1f} s" for stage, took in packed.seconds.items())
    files = "1 file" if packed.files == 1 else f"{packed.files} files"
    console.print(f"\n{files}, {packed.ratio:.1%} of their size; {seconds}\n{packed.out}", soft_wrap=True)


def _row(account: Account) -> tuple[str, ...]:
    share = f"{account.stored / account.size:.1%}" if account.size else ""
    return (*(f"{value:,.0f}" for value in (account.size, account.bound, account.stored)), share)


def _unpacked(found: Unpacked) -> None:
    files = "1 file" if found.files == 1 else f"{found.files} files"
    Console(highlight=False).print(
        f"{files}, {found.size:,} bytes, every hash as it was packed; {found.seconds:.1f} s\n{found.out}",
        soft_wrap=True,
    )
