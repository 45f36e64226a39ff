"""Make the choice soft, let breaking a limit cost more and more, and round.

Source: the quadratic penalty method, Nocedal and Wright. Numerical Optimization. Springer, 2006, section 17.1; choices
as a softmax as in Wu et al. Mixed Precision Quantization of ConvNets via Differentiable Neural Architecture Search.
arXiv:1812.00090. Departs from them: the table is given, so that the expected value and costs and their
gradients are exact and nothing is sampled; the result is mended and what is left is spent by single changes.

Use it for several limits, or as a second opinion beside `lagrangian`: near the optimum the penalty's slope is the price
it would find. It costs a few hundred passes over the table. It finds no more than a local optimum, and limits that
nearly contradict each other may be met by a choice it does not find. It then says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.optimize import minimize

from pennyweight.errors import InvalidMethod
from pennyweight.methods.allocation.moves import Moves
from pennyweight.plan import Option
from pennyweight.problem import Problem


@dataclass(frozen=True, kw_only=True)
class Penalty:
    """A softmax over the options of every group, minimised with a growing penalty on broken limits, then rounded.

    Args:
        rounds: times the penalty grows, to four times what it was.
        iterations: of L-BFGS in each round.
    """

    name: ClassVar[str] = "penalty"
    paper: ClassVar[str] = "arXiv:1812.00090"
    needs: ClassVar[frozenset[str]] = frozenset()
    gap: ClassVar[float] = 1.0
    rounds: int = 12
    iterations: int = 20

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.iterations < 1:
            raise InvalidMethod(
                f"{self.rounds} rounds of {self.iterations} iterations", expected="1 or more", site=self.name
            )

    def allocate(self, table: Sequence[Sequence[Option]], problem: Problem) -> tuple[Option, ...]:
        """One option a group, within every limit.

        Raises:
            InfeasibleBudget: nothing is within a limit, or no choice was found that is within all of them.
        """
        problem.check_feasible(table)
        if not table:
            return ()
        moves = Moves(table, problem)
        logits = np.where(moves.there, 0.0, -np.inf)
        found = []
        for r in range(self.rounds):
            logits = self._minimised(moves, logits, 4.0**r)
            rounded = moves.mend(moves.least(-logits))
            if rounded is not None:
                found.append(moves.spend(rounded))
        best = min(found, key=moves.total) if found else moves.spend(moves.within(moves.least(-logits), self.name))
        return moves.options(best)

    def _minimised(self, moves: Moves, logits: NDArray[np.float64], weight: float) -> NDArray[np.float64]:
        free = moves.there

        def penalised(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            at = np.where(free, 0.0, -np.inf)
            at[free] = x
            value, gradient = relaxed(moves, at, weight)
            return value, gradient[free]

        solved = minimize(penalised, logits[free], jac=True, method="L-BFGS-B", options={"maxiter": self.iterations})
        logits = logits.copy()
        logits[free] = np.clip(solved.x, -20, 20)  # none so sure that the next round cannot change its mind
        return logits


def relaxed(
    moves: Moves, logits: Float[np.ndarray, "groups options"], weight: float
) -> tuple[float, Float[np.ndarray, "groups options"]]:
    """The expected value, as a share of the largest, plus `weight` times every limit's squared relative excess.

    Args:
        moves: the table.
        logits: of the softmax; minus infinity where there is no option.
        weight: of the penalty.

    Returns:
        That, and its gradient with respect to the logits.
    """
    soft = np.exp(logits - logits.max(1, keepdims=True))
    soft /= soft.sum(1, keepdims=True)
    largest = max(float(np.where(moves.there, moves.value, 0).max(1).sum()), 1e-300)
    value, cost = moves.value / largest, moves.cost / moves.scale[:, None, None]
    excess = np.maximum((soft * cost).sum((1, 2)) - moves.at_most / moves.scale, 0)
    slope = value + 2 * weight * np.tensordot(excess, cost, 1)
    gradient = soft * (slope - (soft * slope).sum(1, keepdims=True))
    return float((soft * value).sum() + weight * (excess**2).sum()), gradient
