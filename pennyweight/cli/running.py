"""The verb `run`: a continuation as it is written, and beside it that of the reference."""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import asdict

import torch

from pennyweight.cli.output import print_json, progress_of
from pennyweight.flow.sampling.run import Ran, Written
from pennyweight.flow.sampling.run import run as run_model


def run(arguments: Namespace) -> int:
    """Write a continuation."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    shown: set[int] = set()

    def say(which: int, piece: str) -> None:
        if which not in shown:
            if arguments.beside:
                print(("\n\n" if shown else "") + f"{(arguments.model, arguments.beside)[which]}:")
            shown.add(which)
            sys.stdout.write("" if arguments.chat else arguments.prompt)
        sys.stdout.write(piece)
        sys.stdout.flush()

    found = run_model(
        arguments.model, arguments.prompt, tokens=arguments.tokens, temperature=arguments.temperature,
        seed=arguments.seed, beside=arguments.beside, chat=arguments.chat, dtype=arguments.dtype,
        allow_network=arguments.allow_network, say=None if arguments.json else say, progress=progress_of(arguments),
    )  # fmt: skip
    if arguments.json:
        print_json(asdict(found))
        return 0
    print()
    if found.beside is not None:
        print(f"\n{_parting(found)}")
    if not arguments.quiet:
        for written in filter(None, (found.written, found.beside)):
            print(_figures(written, found.dtype), file=sys.stderr)
    return 0


def _parting(found: Ran) -> str:
    if found.parts_at is None or found.there is None:
        return f"They are the same for all {len(found.written.tokens)} tokens."
    first, second = found.there
    rounding = (
        "" if found.dtype == "float32" else f"; in {found.dtype} two tokens may be as good as equal (--dtype float32)"
    )
    return f"They part at token {found.parts_at + 1}: {first!r} and {second!r}{rounding}."


def _figures(written: Written, dtype: str) -> str:
    each = "" if written.token_seconds is None else f", then {1000 * written.token_seconds:.1f} ms a token"
    held = ", ".join(f"{count} {how}" for how, count in written.held.items())
    return (
        f"{written.model}: {written.prompt_seconds:.2f} s to the first token{each}; computed in {dtype}; "
        f"weights {written.weights / 1e6:,.1f} MB ({held}), peak of the process {written.peak / 1e6:,.1f} MB"
    )
