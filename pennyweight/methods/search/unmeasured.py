"""Choices that nobody measured: from a list where there are few in all, drawn where there are many.

Recipes for a whole network (Quantune's calibration, scheme, clipping, granularity) are a hundred or so, and neither
their costs nor their order say which is near which. Levels of a hundred groups cannot be listed; there, what is near
the best choices is a few level switches away (EvoPress, arXiv:2410.14649, section 3).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from pennyweight.methods.search.moves import Levels
from pennyweight.methods.search.random_search import shuffled
from pennyweight.plan import Option
from pennyweight.problem import Choice, Problem, Table, choice_of, options_of

LISTED = 1024  # choices in all, up to which they are listed
DRAWS = 256  # of neighbours
FLIPS = 3  # levels switched at most


@dataclass(frozen=True, eq=False)
class Unmeasured:
    """Where a search takes its next choices from, all within the limits.

    Args:
        table: of options.
        problem: whose limits hold.
        solve: the solver, which random damages lead to random choices.
        rng: of all draws.
        listed: all choices there are; None where there are too many.
    """

    table: Table
    problem: Problem
    solve: Callable[[Table, Problem], Sequence[Option]]
    rng: np.random.Generator
    listed: tuple[Choice, ...] | None

    @classmethod
    def of(
        cls, table: Table, problem: Problem, solve: Callable[[Table, Problem], Sequence[Option]],
        rng: np.random.Generator,
    ) -> Unmeasured:  # fmt: skip
        """Of a table, listed where it is small."""
        listed = None
        if math.prod(len(row) for row in table) <= LISTED:
            every = itertools.product(*(range(len(row)) for row in table))
            listed = tuple(choice for choice in every if problem.fits(options_of(table, choice)))
        return cls(table, problem, solve, rng, listed)

    def random(self, count: int, known: Collection[Choice]) -> list[Choice]:
        """So many of them, or fewer where there are not so many, or draws give the same again and again."""
        if self.listed is not None:
            left = [choice for choice in self.listed if choice not in known]
            return [left[i] for i in self.rng.permutation(len(left))[:count]]
        found: list[Choice] = []
        for _ in range(8 * count):
            drawn = shuffled(self.table, self.rng)
            choice = choice_of(drawn, self.solve(drawn, self.problem))
            if choice not in known and choice not in found:
                found.append(choice)
            if len(found) == count:
                break
        return found

    def promising(self, parents: Sequence[Choice], known: Collection[Choice]) -> list[Choice]:
        """Those to guess about: all of them, or neighbours of some parents."""
        if self.listed is not None:
            return [choice for choice in self.listed if choice not in known]
        levels, found = Levels.of(self.table, self.problem), dict[Choice, None]()
        for _ in range(DRAWS):
            parent = levels.read(parents[int(self.rng.integers(len(parents)))])
            child = levels.switched(parent, int(self.rng.integers(1, FLIPS + 1)), self.rng)
            if child is not None and (written := levels.write(child)) not in known:
                found[written] = None
        return list(found)
