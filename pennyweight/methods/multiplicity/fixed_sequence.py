"""Fixed sequence: test a ladder of candidates in a fixed order, each at full level; the first failure ends it.

Source: Angelopoulos, Bates, Candès, Jordan, Lei. Learn then Test. 2021. arXiv:2110.01052, section 2.3 (fixed-sequence
testing, also from several starting places). If any candidate that is too bad is certified, the first such in the order
is among those tested, and it was tested once, at level alpha: so the chance of any false certificate is at most alpha,
however long the ladder. From J starting places that is so of each place at level alpha/J, and J chances add to alpha.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from pennyweight.errors import InvalidMethod
from pennyweight.methods.multiplicity.familywise import check_alpha, checked_p_values

Rung = TypeVar("Rung")


@dataclass(frozen=True, kw_only=True)
class FixedSequence:
    """Walk a ladder from the safest candidate to the smallest, as far as it certifies.

    Args:
        starts: places of the ladder a walk begins at, evenly spaced and the first of them the first rung; >= 1. Each
            walk tests at alpha over their number, so more places help only where the first rungs may well fail.

    Raises:
        InvalidMethod: fewer than one place.
    """

    name: ClassVar[str] = "fixed-sequence"
    paper: ClassVar[str] = "arXiv:2110.01052"
    needs: ClassVar[frozenset[str]] = frozenset()
    starts: int = 1

    def __post_init__(self) -> None:
        if self.starts < 1:
            raise InvalidMethod(
                f"starts is {self.starts}", expected="one starting place or more", mend="starts=1", site=self.name
            )

    def rejected(self, p_values: NDArray[np.float64], alpha: float) -> NDArray[np.bool_]:
        """Reject along the order given, from every starting place up to its first failure.

        Args:
            p_values: one a hypothesis `[K]`, in an order fixed before the data they come from were seen.
            alpha: family-wise error level, in (0, 1).

        Returns:
            Whether each is rejected `[K]`.

        Raises:
            InvalidMeasurement: no p-values, or one that is NaN or outside [0, 1].
            InvalidBudget: alpha outside (0, 1).
        """
        p = checked_p_values(p_values, site=self.name)
        check_alpha(alpha, site=self.name)
        places = min(self.starts, len(p))  # more places than rungs are as many as rungs
        passes = p <= alpha / places
        reached = np.zeros(len(p), dtype=bool)
        for place in range(places):
            start = place * len(p) // places
            failures = np.flatnonzero(~passes[start:])
            reached[start : start + int(failures[0]) if len(failures) else len(p)] = True
        return reached

    def last_pass(self, ladder: Iterable[Rung], certified: Callable[[Rung], bool]) -> Rung | None:
        """Find the last candidate certified before the first that is not; None if the first is not.

        Args:
            ladder: candidates in an order fixed before the certification split was opened. Read lazily.
            certified: tests one candidate at full level. Called once a candidate, in order, and never after a failure,
                so evidence is measured only for the rungs that are reached; an undecided test counts as a failure.

        Raises:
            InvalidMethod: several starting places, which need the length of the ladder and a smaller level.
        """
        if self.starts != 1:
            raise InvalidMethod(
                f"a ladder that is read rung by rung cannot be walked from {self.starts} places",
                expected="one starting place, the first rung",
                mend="starts=1, or measure every rung and use rejected",
                site=self.name,
            )
        passed: Rung | None = None
        for rung in ladder:
            if not certified(rung):
                break
            passed = rung
        return passed
