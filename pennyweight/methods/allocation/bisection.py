"""Put groups in order of sensitivity and bisect how many of them get fewer bits.

Source: Augmenting Hessians with Inter-Layer Dependencies for Mixed-Precision Post-Training Quantization.
arXiv:2306.04879, without code, and as its abstract describes it; the order without interactions is that of Dong et al.
HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks. arXiv:1911.03852. Departs from it: the predicted
damage of a table is bisected, not a measured accuracy; any number of levels (16, 8, 4 … bits), each inside the groups
that the one before it lowered; neighbours of the position are tried, because interactions can make damage fall.

Two groups' damage together is more or less than the sum by their interaction: with the outputs' changes d, KL is
½ (d_i + d_j)ᵀ F (d_i + d_j) and the interaction d_iᵀ F d_j. It is given for both at their lowest option; elsewhere it
is scaled by the square root of each one's damage, because damage is quadratic in the change.

Use it where interactions of pairs were measured; without them an allocator that spends every byte is better. It costs
an order, quadratic in the number of groups, and a few totals a level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pennyweight.errors import InfeasibleBudget, InvalidMethod
from pennyweight.methods.allocation.moves import Indices
from pennyweight.plan import Option
from pennyweight.problem import Problem, undominated


@dataclass(frozen=True, kw_only=True)
class Bisection:
    """Least sensitive groups first, level by level of the menu, each level as far as the limit allows or asks.

    Args:
        interactions: groups x groups, symmetric, in nats per token: what a pair at its lowest options damages beyond
            the sum of both. None is zero.
        neighbours: positions tried on either side of the one that bisection finds.
    """

    name: ClassVar[str] = "bisection"
    paper: ClassVar[str] = "arXiv:2306.04879"
    needs: ClassVar[frozenset[str]] = frozenset()
    gap: ClassVar[float] = math.inf
    interactions: Sequence[Sequence[float]] | None = None
    neighbours: int = 2

    def __post_init__(self) -> None:
        if self.neighbours < 0:
            raise InvalidMethod(f"neighbours is {self.neighbours}", expected="0 or more", site=self.name)
        if self.interactions is None:
            return
        try:
            matrix = np.asarray(self.interactions, float)
        except (TypeError, ValueError):  # rows of unequal length, or no numbers
            matrix = np.zeros(0)
        if matrix.ndim != 2 or not np.isfinite(matrix).all() or not np.array_equal(matrix, matrix.T):
            raise InvalidMethod(
                "the interactions are no symmetric matrix of finite numbers",
                expected="groups x groups, nats per token", mend="average it with its transpose", site=self.name,
            )  # fmt: skip
        object.__setattr__(self, "interactions", tuple(map(tuple, matrix.tolist())))

    def allocate(self, table: Sequence[Sequence[Option]], problem: Problem) -> tuple[Option, ...]:
        """One option a group, within the limit; damage counts interactions.

        Raises:
            InfeasibleBudget: nothing is within the limit.
            InvalidMethod: there are several limits, or interactions for another number of groups.
        """
        limit = problem.only(self.name)
        problem.check_feasible(table)
        if not table:
            return ()
        menus = Menus(table, problem, self.interactions)
        chosen, tight = np.zeros(len(table), np.int64), limit.of == "damage"
        if tight and menus.cost(chosen) > limit.at_most:
            raise InfeasibleBudget(
                f"no plan in this order keeps damage at or below {limit.at_most:.6g}",
                expected=f"at least {menus.cost(chosen):.6g}, which is the best options with their interactions",
                mend="raise the budget to that", site=self.name,
            )  # fmt: skip
        inside = np.ones(len(table), bool)
        while inside.any() and (tight or menus.cost(chosen) > limit.at_most):
            lowered = self._lowered(menus, chosen, menus.order(chosen, inside))
            inside, chosen = lowered > chosen, lowered
        return menus.options(chosen)

    def _lowered(self, menus: Menus, chosen: Indices, order: Indices) -> Indices:
        """One level: the first groups of the order lowered, as many as the limit allows, or as few as it asks."""
        at_most, tight = menus.limit.at_most, menus.limit.of == "damage"

        def at(position: int) -> Indices:
            lowered = chosen.copy()
            lowered[order[:position]] += 1
            return lowered

        def holds(position: int) -> bool:
            return menus.cost(at(position)) <= at_most

        low, high = 0, len(order)
        while low < high:
            middle = (low + high + tight) // 2
            if tight:  # the last position that holds
                low, high = (middle, high) if holds(middle) else (low, middle - 1)
            else:  # the first
                low, high = (low, middle) if holds(middle) else (middle + 1, high)
        near = range(max(low - self.neighbours, 0), min(low + self.neighbours, len(order)) + 1)
        holding = [position for position in near if holds(position)]
        return at(min(holding, key=lambda position: menus.value(at(position)), default=len(order)))


class Menus:
    """Every group's options from the one that harms least downwards, and what a choice adds up to with interactions."""

    def __init__(
        self, table: Sequence[Sequence[Option]], problem: Problem, interactions: Sequence[Sequence[float]] | None
    ) -> None:
        self.problem, (self.limit, *_) = problem, problem.limits
        self.groups = [undominated(options, problem)[:: 1 if self.limit.of == "damage" else -1] for options in table]
        self.pairs = np.zeros((0, 0)) if interactions is None else np.array(interactions, float)
        if interactions is not None and self.pairs.shape != (len(table), len(table)):
            raise InvalidMethod(
                f"interactions of {len(self.pairs)} groups", expected=f"a matrix of {len(table)} groups",
                mend="measure them for the groups of this table", site=Bisection.name,
            )  # fmt: skip
        if interactions is not None:
            np.fill_diagonal(self.pairs, 0)
        worst = [max(option.damage for option in options) for options in self.groups]
        self.roots = [
            [math.sqrt(max(option.damage, 0) / most) if most > 0 else 0.0 for option in options]
            for options, most in zip(self.groups, worst, strict=True)
        ]

    def options(self, chosen: Indices) -> tuple[Option, ...]:
        """The choice that positions in the menus stand for."""
        return tuple(options[k] for options, k in zip(self.groups, chosen, strict=True))

    def cost(self, chosen: Indices) -> float:
        """What the limit counts."""
        return self.limit.total(self.options(chosen)) + (self._shared(chosen) if self.limit.of == "damage" else 0.0)

    def value(self, chosen: Indices) -> float:
        """What is minimised."""
        return self.problem.total(self.options(chosen)) + (
            self._shared(chosen) if self.problem.aim == "damage" else 0.0
        )

    def order(self, chosen: Indices, inside: NDArray[np.bool_]) -> Indices:
        """Groups that can be lowered once more, the least harm per cost saved first, given those before them."""
        members = [g for g, k in enumerate(chosen) if inside[g] and k + 1 < len(self.groups[g])]
        harm, saved = np.array([self._lowering(g, int(chosen[g])) for g in members]).reshape(-1, 2).T
        if not len(self.pairs):
            return np.array(members, np.int64)[np.argsort(harm / saved, kind="stable")]
        root = np.array([self.roots[g][k] for g, k in enumerate(chosen)])
        rise = np.array([self.roots[g][chosen[g] + 1] - self.roots[g][chosen[g]] for g in members])
        pairs, left = self.pairs[members], np.ones(len(members), bool)
        shared, found = pairs @ root, list[int]()
        while left.any():
            first = int(np.where(left, (harm + rise * shared) / saved, np.inf).argmin())
            left[first] = False
            found.append(members[first])
            shared = shared + pairs[:, members[first]] * rise[first]
        return np.array(found, np.int64)

    def _lowering(self, g: int, k: int) -> tuple[float, float]:
        """What rises and what falls when a group goes one option down."""
        high, low = self.groups[g][k : k + 2]
        value, cost = self.problem.value(low) - self.problem.value(high), self.limit.cost(low) - self.limit.cost(high)
        return (cost, -value) if self.limit.of == "damage" else (value, -cost)

    def _shared(self, chosen: Indices) -> float:
        """Damage of all pairs beyond the sum."""
        if not len(self.pairs):
            return 0.0
        root = np.array([self.roots[g][k] for g, k in enumerate(chosen)])
        return float(root @ self.pairs @ root) / 2
