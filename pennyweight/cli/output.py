"""What every verb does with its result: JSON on stdout, progress on stderr."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import msgspec

from pennyweight.flow.progress import Progress


def print_json(value: Mapping[str, Any]) -> None:
    """Write a value to stdout, indented."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def progress_of(arguments: Namespace) -> Progress:
    """Bars, unless they are not wanted."""
    return Progress(show=not arguments.quiet)
