"""Fixed sequence: test a ladder of candidates in a fixed order, each at full level; the first failure ends it.

Source: Angelopoulos, Bates, Candès, Jordan, Lei. Learn then Test. 2021. arXiv:2110.01052, section 2.3 (fixed-sequence
testing). If any candidate that is too bad is certified, the first such in the order is among those tested, and it was
tested once, at level alpha: so the chance of any false certificate is at most alpha, however long the ladder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

Rung = TypeVar("Rung")


@dataclass(frozen=True, kw_only=True)
class FixedSequence:
    """Walk a ladder from the safest candidate to the smallest, as far as it certifies."""

    name: ClassVar[str] = "fixed-sequence"
    paper: ClassVar[str] = "arXiv:2110.01052"
    needs: ClassVar[frozenset[str]] = frozenset()

    def last_pass(self, ladder: Iterable[Rung], certified: Callable[[Rung], bool]) -> Rung | None:
        """Find the last candidate certified before the first that is not; None if the first is not.

        Args:
            ladder: candidates in an order fixed before the certification split was opened. Read lazily.
            certified: tests one candidate at full level. Called once a candidate, in order, and never after a failure,
                so evidence is measured only for the rungs that are reached; an undecided test counts as a failure.
        """
        passed: Rung | None = None
        for rung in ladder:
            if not certified(rung):
                break
            passed = rung
        return passed
