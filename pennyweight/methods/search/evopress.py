"""EvoPress: one parent, mutated by level switches; offspring compete on few tokens, the survivors on more.

Source: Sieberling, Kuznedelev, Kurtic, Alistarh. EvoPress: Towards Optimal Dynamic Model Compression via Evolutionary
Search. arXiv:2410.14649, Algorithm 1 and its super-fast setting.
Departs from it: options of any size are switched, groups lowered until the limits hold again; it stops when no
generation of the last `patience` brought anything, and not after a fixed number.

When: sums of damages are not to be believed, at two bits or with whole parts left out. Cost: a generation of the
default is 16 x 512 + 2 x 2048 tokens. Known failures: it knows nothing of which switch is likely to help, and needs ten
times the tokens of a search that does; scores of different generations are of different tokens and cannot be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pennyweight.methods.search.moves import Levels, best_of
from pennyweight.numerics.random import derived_seed
from pennyweight.plan import Option
from pennyweight.problem import Choice, Problem, Table, Trials, choice_of

Solve = Callable[[Table, Problem], Sequence[Option]]


@dataclass(frozen=True, kw_only=True)
class EvoPress:
    """Switch levels of a few groups at a time, and keep what is better.

    Args:
        generations: at most.
        offspring: of a generation.
        most_flips: groups raised in one mutation are the smaller of two draws up to this.
        stages: how many survive a stage, and on how many tokens; the parent joins in the last.
        patience: generations without a better offspring after which it stops.
        informed: whether it starts from the solution by prediction, and not from as uniform a choice as there is.
    """

    name: ClassVar[str] = "evopress"
    paper: ClassVar[str] = "arXiv:2410.14649"
    needs: ClassVar[frozenset[str]] = frozenset()
    generations: int = 100
    offspring: int = 16
    most_flips: int = 3
    stages: tuple[tuple[int, int], ...] = ((1, 512), (1, 2048))
    patience: int = 20
    informed: bool = False

    def search(self, table: Table, problem: Problem, trials: Trials, *, solve: Solve, seed: int) -> Iterator[Choice]:
        """Choices within the limits, each better than the one before on the tokens they met on."""
        levels, rng = Levels.of(table, problem), np.random.default_rng(derived_seed(seed, self.name))
        start = solve(table, problem) if self.informed else None
        parent = choice_of(table, start) if start is not None else self._uniform(levels, table, problem, solve, rng)
        yield parent
        idle = 0
        for generation in range(1, self.generations + 1):
            living = self._mutated(parent, levels, rng)
            if not living:
                return
            for number, (survivors, tokens) in enumerate(self.stages):
                if number == len(self.stages) - 1:
                    living = [*living, parent]
                scores = trials.measure(living, tokens=min(tokens, trials.most), draw=generation)
                living = best_of(living, scores, survivors)
            idle = idle + 1 if living[0] == parent else 0
            if living[0] != parent:
                parent = living[0]
                yield parent
            if idle >= self.patience:
                return

    def _mutated(self, parent: Choice, levels: Levels, rng: np.random.Generator) -> list[Choice]:
        found: list[Choice] = []
        for _ in range(20 * self.offspring):
            flips = int(min(rng.integers(1, self.most_flips + 1), rng.integers(1, self.most_flips + 1)))
            child = levels.switched(levels.read(parent), flips, rng)
            written = None if child is None else levels.write(child)
            if written is not None and written != parent and written not in found:
                found.append(written)
            if len(found) == self.offspring:
                break
        return found

    def _uniform(
        self, levels: Levels, table: Table, problem: Problem, solve: Solve, rng: np.random.Generator
    ) -> Choice:
        """The highest common level within the limits, and random groups one above it as far as they allow."""
        top = max(len(places) for places in levels.order)
        for level in range(top - 1, -1, -1):
            common = np.array([min(level, len(places) - 1) for places in levels.order])
            if levels.fits(common):
                return levels.write(levels.filled(common, rng))
        return choice_of(table, solve(table, problem))  # the lowest level is above a limit: levels differ too much
