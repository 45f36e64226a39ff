"""Intersection-union: the gate "all K margins hold", at full level for each and without correction.

Source: Berger. Multiparameter Hypothesis Testing and Acceptance Sampling. Technometrics 24, 1982. The null is that
some margin fails. Whichever one fails, passing the gate takes the rejection of that one, which happens with
probability at most alpha. The price is power: every test has to reject. What the gate does not give is K printed
bounds that hold together; those need a split of alpha (see `AlphaSplit`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pennyweight.methods.multiplicity.familywise import check_alpha, checked_p_values


@dataclass(frozen=True, kw_only=True)
class IntersectionUnion:
    """Pass all or none: everything is claimed, each claim tested at alpha, or nothing is."""

    name: ClassVar[str] = "intersection-union"
    paper: ClassVar[str] = "Berger 1982, Technometrics 24(4), 295-300"
    needs: ClassVar[frozenset[str]] = frozenset()

    def all_hold(self, p_values: NDArray[np.float64], alpha: float) -> bool:
        """Whether every p-value is at most alpha. Order does not matter.

        Args:
            p_values: one a claim `[K]`; the null of each is that its margin fails.
            alpha: chance of passing although some margin fails, in (0, 1).

        Raises:
            InvalidMeasurement: no p-values, or one that is NaN or outside [0, 1].
            InvalidBudget: alpha outside (0, 1).
        """
        p = checked_p_values(p_values, site=self.name)
        check_alpha(alpha, site=self.name)
        return bool((p <= alpha).all())

    def rejected(self, p_values: NDArray[np.float64], alpha: float) -> NDArray[np.bool_]:
        """All true if all hold, else all false `[K]`; arguments and errors are those of `all_hold`."""
        return np.full(len(checked_p_values(p_values, site=self.name)), self.all_hold(p_values, alpha))
