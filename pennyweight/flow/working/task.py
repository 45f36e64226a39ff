"""A task is a piece of the journal that is still to be made: values and paths, no live objects, so it can travel.

What it makes follows from what it says and from pieces that are there already. Where it is carried out, in which order
and how often makes no difference to a single bit.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from pennyweight.flow.journal import Journal
from pennyweight.flow.progress import Advance
from pennyweight.network.network import Network

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Workshop:
    """What tasks find where they are carried out.

    Args:
        network: what is compressed.
        journal: where pieces are found and put.
        reference: the model handed in, which the network may be a rewrite of; None where it is the network.
        statistics: where those of the network lie; None where they are in the journal too.
    """

    network: Network
    journal: Journal
    reference: Network | None = None
    statistics: Journal | None = None
    _kept: dict[str, tuple[Hashable, Any]] = field(default_factory=dict, init=False)

    def kept(self, kind: str, which: Hashable, make: Callable[[], T]) -> T:
        """What was made last of a kind, if it is this one; otherwise it is made, after the other was let go."""
        if kind not in self._kept or self._kept[kind][0] != which:
            self._kept.pop(kind, None)
            self._kept[kind] = (which, make())
        found: T = self._kept[kind][1]
        return found

    def forget(self, kind: str) -> None:
        """Let go of what was kept of a kind."""
        self._kept.pop(kind, None)


class Task(Protocol):
    """One piece of work."""

    @property
    def piece(self) -> str:
        """Name in the journal of what it makes; the task is done when it is there."""
        ...

    @property
    def after(self) -> tuple[str, ...]:
        """Pieces of other tasks it needs; those that no task of the same call makes are there."""
        ...

    @property
    def amount(self) -> float:
        """By how much a bar has advanced when it is done."""
        ...

    def carry_out(self, shop: Workshop, advance: Advance) -> None:
        """Make the piece; tells `advance` of `amount` altogether."""
        ...


class Workers(Protocol):
    """Whoever carries tasks out."""

    @property
    def count(self) -> int:
        """Tasks they carry out at once."""
        ...

    def run(self, tasks: Iterable[Task], shop: Workshop, advance: Advance) -> None:
        """Carry out all tasks whose piece is not in the journal; none comes before one that it needs.

        Args:
            tasks: each after those that it needs.
            shop: what they find in this process.
            advance: told about every task that is done.
        """
        ...


class Here:
    """Nobody else: one task after the other, in this process."""

    count = 1

    def run(self, tasks: Iterable[Task], shop: Workshop, advance: Advance) -> None:
        """Carry out tasks in the order given."""
        for task in tasks:
            if shop.journal.has(task.piece):
                advance(task.amount)
            else:
                task.carry_out(shop, advance)


HERE = Here()
