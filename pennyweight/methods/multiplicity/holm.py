"""Holm: Bonferroni that hands the level of every rejected hypothesis on to the others.

Source: Holm. A Simple Sequentially Rejective Multiple Test Procedure. Scandinavian Journal of Statistics 6, 1979.
With K0 true hypotheses among K, a true one is rejected first only at a step whose level is at most alpha/K0. So one of
K0 true p-values would have to fall to alpha/K0, which happens with probability at most alpha whatever the dependence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pennyweight.methods.multiplicity.familywise import check_alpha, checked_p_values, p_from_e


@dataclass(frozen=True, kw_only=True)
class Holm:
    """Reject from the smallest p-value up, each at alpha over the number of hypotheses that are left."""

    name: ClassVar[str] = "holm"
    paper: ClassVar[str] = "Holm 1979, Scandinavian Journal of Statistics 6(2), 65-70"
    needs: ClassVar[frozenset[str]] = frozenset()

    def rejected(self, p_values: NDArray[np.float64], alpha: float) -> NDArray[np.bool_]:
        """Reject p_(1) <= alpha/K, p_(2) <= alpha/(K-1), and so on up to the first failure. Order does not matter.

        Args:
            p_values: one a hypothesis `[K]`.
            alpha: family-wise error level, in (0, 1).

        Returns:
            Whether each is rejected `[K]`, in the order of the p-values given.

        Raises:
            InvalidMeasurement: no p-values, or one that is NaN or outside [0, 1].
            InvalidBudget: alpha outside (0, 1).
        """
        p = checked_p_values(p_values, site=self.name)
        check_alpha(alpha, site=self.name)
        order = p.argsort(kind="stable")
        left = np.arange(len(p), 0, -1)  # hypotheses not yet rejected at each step
        result = np.empty(len(p), dtype=bool)
        result[order] = np.logical_and.accumulate(p[order] <= alpha / left)
        return result

    def rejected_by_e_values(self, e_values: NDArray[np.float64], alpha: float) -> NDArray[np.bool_]:
        """The same from e-values `[K]`, as p = min(1, 1/E): the first step is Bonferroni's, E >= K/alpha.

        Raises:
            InvalidMeasurement: no e-values, or one that is NaN or negative.
            InvalidBudget: alpha outside (0, 1).
        """
        return self.rejected(p_from_e(e_values), alpha)
