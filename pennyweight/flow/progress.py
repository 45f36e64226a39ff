"""Progress on stderr: one bar a stage, with an ETA from the pace of this run; silent when nobody watches."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol


class Advance(Protocol):
    """Tells a bar that some of its work is done."""

    def __call__(self, amount: float = 1, /) -> None:
        """Add `amount` to what is done."""
        ...


@dataclass(eq=False)
class Progress:
    """Bars, and the seconds each stage took.

    Args:
        show: whether to draw; when stderr is no terminal, one line a stage is printed instead.
        seconds: of each stage so far.
        peaks: largest resident memory of the process by the end of each stage, bytes.
    """

    show: bool = True
    seconds: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, total: float) -> Iterator[Advance]:
        """One stage of the work with `total` units; yields the function that advances it."""
        start = time.monotonic()
        try:
            if not self.show:
                yield quiet
            elif sys.stderr.isatty():
                yield from self._bar(name, total)
            else:
                yield quiet
                print(f"{name}: {time.monotonic() - start:.1f} s", file=sys.stderr)  # noqa: T201
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
            self.peaks[name] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def _bar(self, name: str, total: float) -> Iterator[Advance]:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description:<34}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=Console(stderr=True)) as bars:
            task = bars.add_task(name, total=total)

            def advance(amount: float = 1, /) -> None:
                bars.advance(task, amount)

            yield advance
            bars.update(task, completed=total)


def quiet(amount: float = 1, /) -> None:
    """Draw nothing."""
    del amount


QUIET = Progress(show=False)
