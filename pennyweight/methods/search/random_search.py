"""Random choices within the limits: what every search has to be better than.

Source: Bergstra, Bengio. Random Search for Hyper-Parameter Optimization. JMLR 13, 2012.

When: as a yardstick. Cost: `trials` times `tokens`. Known failures: with a hundred groups it finds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from pennyweight.methods.search.moves import best_of
from pennyweight.numerics.random import derived_seed
from pennyweight.plan import Option
from pennyweight.problem import Choice, Problem, Table, Trials, choice_of


@dataclass(frozen=True, kw_only=True)
class RandomSearch:
    """Solve under random damages, and keep the best.

    Args:
        trials: choices tried.
        tokens: each is tried on.
        batch: tried together.
    """

    name: ClassVar[str] = "random_search"
    paper: ClassVar[str] = "JMLR 13, 2012"
    needs: ClassVar[frozenset[str]] = frozenset()
    trials: int = 64
    tokens: int = 2048
    batch: int = 8

    def search(
        self, table: Table, problem: Problem, trials: Trials, *,
        solve: Callable[[Table, Problem], Sequence[Option]], seed: int,
    ) -> Iterator[Choice]:  # fmt: skip
        """Choices within the limits, each better than the one before."""
        problem.check_feasible(table)
        rng, least = np.random.default_rng(derived_seed(seed, self.name)), float("inf")
        for start in range(0, self.trials, self.batch):
            drawn = [shuffled(table, rng) for _ in range(min(self.batch, self.trials - start))]
            choices = [choice_of(options, solve(options, problem)) for options in drawn]
            scores = trials.measure(choices, tokens=min(self.tokens, trials.most))
            (winner,) = best_of(choices, scores, 1)
            if (score := scores[choices.index(winner)]) < least:
                least = score
                yield winner


def shuffled(table: Table, rng: np.random.Generator) -> Table:
    """The table with damages that say nothing but that less is worse."""
    return [
        [replace(option, damage=factor * 2.0**-rank) for option, rank in zip(row, _ranks(row), strict=True)]
        for row, factor in zip(table, rng.lognormal(0, 1, len(table)), strict=True)
    ]


def _ranks(row: Sequence[Option]) -> list[int]:
    order = sorted(range(len(row)), key=lambda i: -row[i].damage)
    return [order.index(i) for i in range(len(row))]
