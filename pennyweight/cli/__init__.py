"""The command line: results on stdout, the rest on stderr; exit 0 within budget, 1 not within budget, 2 misuse."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pennyweight.cli.arguments import parser
from pennyweight.errors import PennyweightError

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; nothing heavy is imported before the arguments are understood."""
    parsed = parser().parse_args(arguments)
    try:
        from pennyweight.cli.verbs import VERBS

        return VERBS[parsed.verb](parsed)
    except PennyweightError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        out = getattr(parsed, "out", None)
        where = f"; what is finished is in {out}.run, the same command goes on there" if out else ""
        print(f"\nInterrupted{where}.", file=sys.stderr)
        return INTERRUPTED


__all__ = ["main"]
