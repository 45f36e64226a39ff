"""Random choices within the limits: what every search has to be better than.

Source: Bergstra, Bengio. Random Search for Hyper-Parameter Optimization. JMLR 13, 2012.

When: as a yardstick. Cost: `trials` times `tokens`. Known failures: with a hundred groups it finds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pennyweight.methods.search.moves import Levels
from pennyweight.numerics.random import derived_seed
from pennyweight.plan import Option
from pennyweight.problem import Choice, Problem, Table, Trials


@dataclass(frozen=True, kw_only=True)
class RandomSearch:
    """Fill up the limits in random orders, and keep the best.

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
        levels, rng = Levels.of(table, problem), np.random.default_rng(derived_seed(seed, self.name))
        least, tried = float("inf"), 0
        while tried < self.trials:
            choices = []
            for _ in range(min(self.batch, self.trials - tried)):
                found = np.zeros(len(table), dtype=np.int64)
                for _ in range(max(len(places) for places in levels.order)):
                    found = levels.filled(found, rng)
                choices.append(levels.write(found))
            tried += len(choices)
            scores = trials.measure(choices, tokens=min(self.tokens, trials.most))
            for score, choice in sorted(zip(scores, choices, strict=True)):
                if score < least:
                    least = score
                    yield choice
                break
