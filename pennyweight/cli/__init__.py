"""The command line: results on stdout, the rest on stderr; exit 0 certified, 1 not certified, 2 misuse."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pennyweight.cli.arguments import parse
from pennyweight.errors import PennyweightError

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; nothing heavy is imported before the arguments are understood."""
    parsed = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        from pennyweight.cli.verbs import VERBS

        return VERBS[parsed.verb](parsed)
    except PennyweightError as error:
        error.site = error.site or f"pennyweight {parsed.verb}"
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        # What the flow knows how to mend it says itself; this is the rest: no permission, a directory for a file …
        print(
            f"{type(error).__name__}: {error.filename}: {error.strerror or error}\n"
            "  expected: a file or directory that can be used like this\n"
            "  mend:     check the path and its permissions",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        out = getattr(parsed, "out", None)
        journal = out is not None and Path(f"{out}.run").exists()
        where = f"; what is finished is in {out}.run, the same command goes on there" if journal else ""
        print(f"\nInterrupted{where}.", file=sys.stderr)
        return INTERRUPTED


__all__ = ["main"]
