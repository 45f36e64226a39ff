"""Worst group: a gate that every group passes, bounds for a table of groups, and one bound for the worst of them.

Source: Berger. Multiparameter Hypothesis Testing and Acceptance Sampling. Technometrics 24, 1982, for the gate; Tian
et al. FairSeg. ICLR 2024. arXiv:2311.02189, for the equity-scaled score. The bound of the worst group needs
no correction: if w is the group with the largest mean, then max_g U_g >= U_w >= mu_w = max_g mu_g whenever U_w holds,
and U_w alone holds with probability 1 - alpha. A table that is to hold line by line needs alpha/G for each of G groups.

Groups are declared before any result is seen. They may overlap: independence is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pennyweight.errors import InvalidMeasurement, InvalidMethod
from pennyweight.methods.multiplicity.familywise import check_alpha
from pennyweight.methods.multiplicity.intersection_union import IntersectionUnion

SITE = "worst-group"
Bound = Callable[[str, float], float]  # upper bound of the mean degradation of a named group, at an error level


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupBounds:
    """Upper bounds of the mean degradation of G groups.

    Args:
        names: of the groups, in the order declared.
        alpha: chance that `worst_bound` lies below the largest mean; the same for any line of `simultaneous`.
        single: bound of each group at level alpha `[G]`; each holds alone, not all together.
        simultaneous: bound of each group at level alpha/G `[G]`; all hold together.
        worst: the group whose bound is the largest. It sets the bound; that its mean is the largest is not claimed.
        worst_bound: of the largest mean among the groups, at level alpha.
    """

    names: tuple[str, ...]
    alpha: float
    single: NDArray[np.float64]
    simultaneous: NDArray[np.float64]
    worst: str
    worst_bound: float


@dataclass(frozen=True, kw_only=True)
class WorstGroup:
    """Say of every declared group, and of the worst, how much it lost at most.

    Args:
        equity: how much differences between groups lower the equity-scaled score; no unit, >= 0.

    Raises:
        InvalidMethod: equity is negative or not finite.
    """

    name: ClassVar[str] = SITE
    paper: ClassVar[str] = "arXiv:2311.02189"
    needs: ClassVar[frozenset[str]] = frozenset()
    equity: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.equity < np.inf:
            raise InvalidMethod(
                f"equity is {self.equity:g}", expected="a number of at least 0", mend="equity=1", site=self.name
            )

    def bounds(self, names: Sequence[str], bounds: Bound | tuple[ArrayLike, ArrayLike], alpha: float) -> GroupBounds:
        """Bounds of every group and of the worst.

        Args:
            names: of the groups `[G]`, all different.
            bounds: `bound(name, level)`, called at alpha and at alpha/G; or both already made: at level alpha `[G]`
                and at level alpha/G `[G]`, in the order of the names. Infinity says that nothing can be claimed.
            alpha: error level, in (0, 1).

        Raises:
            InvalidMeasurement: no groups, a name twice, a bound that is missing or NaN, or a bound at alpha/G below
                that at alpha.
            InvalidBudget: alpha outside (0, 1).
        """
        check_alpha(alpha, site=self.name)
        groups = tuple(names)
        if not groups or len(set(groups)) != len(groups):
            raise InvalidMeasurement(
                f"{len(groups)} groups with {len(set(groups))} different names",
                expected="one group or more, each with its own name",
                mend="name each group once, and leave out groups without units",
                site=self.name,
            )
        if callable(bounds):
            call, share = bounds, alpha / len(groups)
            bounds = ([call(group, alpha) for group in groups], [call(group, share) for group in groups])
        single, simultaneous = (np.array(levels, dtype=np.float64) for levels in bounds)
        shape = (len(groups),)
        if single.shape != shape or simultaneous.shape != shape or not (simultaneous >= single).all():
            raise InvalidMeasurement(
                f"bounds of shapes {list(single.shape)} and {list(simultaneous.shape)} do not fit {shape[0]} groups",
                expected="two bounds a group, neither NaN, that at alpha/G no smaller than that at alpha",
                mend="give the bounds at alpha first",
                site=self.name,
            )
        largest = int(np.argmax(single))
        return GroupBounds(
            names=groups, alpha=alpha, single=single, simultaneous=simultaneous, worst=groups[largest],
            worst_bound=float(single[largest]),
        )  # fmt: skip

    def gate(self, p_values: NDArray[np.float64], alpha: float) -> bool:
        """Whether every group is within its margin: each p-value at most alpha, without correction.

        Args:
            p_values: one a group `[G]`; the null is that the group's mean is at or above its margin.
            alpha: chance of passing although some group is not within its margin, in (0, 1).

        Raises:
            InvalidMeasurement: no p-values, or one that is NaN or outside [0, 1].
            InvalidBudget: alpha outside (0, 1).
        """
        return IntersectionUnion().all_hold(p_values, alpha)

    def rejected(self, p_values: NDArray[np.float64], alpha: float) -> NDArray[np.bool_]:
        """All true if the gate is passed, else all false `[G]`; arguments and errors are those of `gate`."""
        return IntersectionUnion().rejected(p_values, alpha)

    def equity_scaled(self, overall: float, means: NDArray[np.float64]) -> float:
        """The score I / (1 + equity * sum_g |I - I_g|), for display: no confidence goes with it.

        The sum grows with the number of groups, so two models are compared on the same groups only. For scores such as
        accuracies; for a degradation, which may be zero or negative, it says nothing: give the worst bound.

        Args:
            overall: score of all units, larger is better.
            means: score of each group `[G]`.

        Raises:
            InvalidMeasurement: no groups, or a score that is not finite.
        """
        scores = _scores(means)
        if not np.isfinite(overall):
            raise InvalidMeasurement(f"the overall score is {overall:g}", expected="a finite score", site=self.name)
        return float(overall / (1 + self.equity * np.abs(overall - scores).sum()))


def spread(means: NDArray[np.float64]) -> float:
    """Largest less smallest mean of the groups `[G]`, for display; groups with few units make it larger by chance.

    Raises:
        InvalidMeasurement: no groups, or a mean that is not finite.
    """
    return float(np.ptp(_scores(means)))


def _scores(means: NDArray[np.float64]) -> NDArray[np.float64]:
    scores = np.asarray(means, dtype=np.float64)
    if scores.ndim != 1 or len(scores) == 0 or not np.isfinite(scores).all():
        raise InvalidMeasurement(
            f"group means of shape {list(scores.shape)}, or one that is not finite",
            expected="one finite number a group, at least one",
            mend="leave out groups without units",
            site=SITE,
        )
    return scores
