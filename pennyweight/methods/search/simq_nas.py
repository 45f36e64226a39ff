"""SimQ-NAS: measure a population, learn to predict, evolve on the predictions for long, measure what came out.

Source: Sridhar, Szankin, Chen, Sundaresan, Sarah. SimQ-NAS: Simultaneous Quantization Policy and Neural Architecture
Search. 2023. arXiv:2312.13301; its engine DyNAS-T, whose LINAS loop this is. NSGA-II is in `nsga2.py`, what predicts in
`predictor.py`.
Departs from it: only KL is predicted. Bytes, milliseconds and memory are sums in the table, known exactly. What is
evolved are options of groups and not a network's shape; the first population has sizes of all kinds, the solution by
prediction and the cheapest choice among them, because predictors say little beyond what they saw.

When: several things are to be small and no limit says how they trade: what was measured (the study) then spans a front,
and a smaller choice of it can be taken. On a ResNet, widths of ten layers, 100 trials span more of log KL times bytes
than 250 of NSGA-II alone or at random: .968 of all that is known, .957 and .960 (means of three seeds;
`benchmarks/results/fronts.json`). Cost: `trials` times `tokens`, and a second or so between two populations. Known
failures: for one limit it measures much that is far below it; `thompson` spends all of it at the limit, and starts from
predicted damages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pennyweight.methods.search.evopress import Solve
from pennyweight.methods.search.moves import Levels, best_of
from pennyweight.methods.search.nsga2 import Individuals, evolve
from pennyweight.methods.search.pareto import Floats, sorted_by_merit
from pennyweight.methods.search.predictor import candidates, fitted
from pennyweight.numerics.random import derived_seed
from pennyweight.problem import Choice, Problem, Table, Trials, choice_of


@dataclass(frozen=True, kw_only=True)
class SimQNAS:
    """Evolve on predictors of KL, with everything else that counts as a further objective, and measure the best.

    Args:
        trials: choices measured.
        population: of them measured together, between two predictors.
        virtual: individuals that live in the evolution on a predictor.
        generations: of it.
        tokens: each choice is measured on.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """

    name: ClassVar[str] = "simq_nas"
    paper: ClassVar[str] = "arXiv:2312.13301"
    needs: ClassVar[frozenset[str]] = frozenset()
    trials: int = 250
    population: int = 50
    virtual: int = 100
    generations: int = 100
    tokens: int = 2048

    def __post_init__(self) -> None:
        candidates(0)  # what is missing is said before any work

    def search(self, table: Table, problem: Problem, trials: Trials, *, solve: Solve, seed: int) -> Iterator[Choice]:
        """Choices within the limits, each better than the one before; the front is what `trials` was asked for."""
        problem.check_feasible(table)
        rng, tokens = np.random.default_rng(derived_seed(seed, self.name)), min(self.tokens, trials.most)
        counted = Counted.of(table, problem)
        best = choice_of(table, solve(table, problem))
        yield best
        choices, scores = list[Choice](), list[float]()
        fresh = counted.spread(best, min(self.population, self.trials), rng)
        while fresh:
            choices += fresh
            scores += trials.measure(fresh, tokens=tokens)
            (leader,) = best_of(choices, scores, 1)
            if leader != best:
                best = leader
                yield best
            left = min(self.population, self.trials - len(choices))
            fresh = self._evolved(counted, choices, scores, left, rng) if left and len(choices) > 1 else []

    def _evolved(
        self, counted: Counted, choices: list[Choice], scores: list[float], count: int, rng: np.random.Generator
    ) -> list[Choice]:
        """The best by prediction that were not measured, within the limits."""
        measured = np.stack([counted.levels.read(choice) for choice in choices])
        predict = fitted(counted.encoded(measured), scores, int(rng.integers(2**31)))

        def evaluate(levels: Individuals) -> tuple[Floats, Floats]:
            return np.column_stack([predict(counted.encoded(levels)), counted.sums(levels)]), counted.excess(levels)

        start = measured[sorted_by_merit(*evaluate(measured))[: self.virtual]]
        living = evolve(evaluate, start, counted.tops, size=self.virtual, generations=self.generations, rng=rng)
        found = [counted.levels.write(row) for row in living.levels if counted.levels.fits(row)]
        return [choice for choice in found if choice not in choices][:count]


@dataclass(frozen=True, eq=False)
class Counted:
    """What choices cost, known from the table, for many at a time.

    Args:
        levels: options by what the first limit counts.
        tops: highest level of every group.
        first: place of each group's first level in an encoding.
        objectives: of every level of every group, one after the other, `[levels, m]`: all that counts but damage.
        costs: of every limit, likewise.
    """

    levels: Levels
    tops: Individuals
    first: Individuals
    objectives: Floats
    costs: Floats

    @classmethod
    def of(cls, table: Table, problem: Problem) -> Counted:
        """Of a table; bytes are an objective where nothing else is."""
        levels = Levels.of(table, problem)
        sizes = [len(row) for row in table]
        options = [row[i] for row, places in zip(table, levels.order, strict=True) for i in places]
        every = dict.fromkeys([*(limit.of for limit in problem.limits), problem.aim])
        names = [name for name in every if name != "damage"] or ["bytes"]
        return cls(
            levels, np.array(sizes) - 1, np.cumsum([0, *sizes[:-1]]),
            np.array([[float(getattr(option, name)) for name in names] for option in options]),
            np.array([[limit.cost(option) for limit in problem.limits] for option in options]),
        )  # fmt: skip

    def encoded(self, levels: Individuals) -> Floats:
        """One for the level of every group, zeros for all others, `[n, levels]`."""
        rows = np.zeros((len(levels), len(self.costs)))
        np.put_along_axis(rows, self.first + levels, 1.0, axis=1)
        return rows

    def sums(self, levels: Individuals) -> Floats:
        """Objectives that add up, `[n, m]`."""
        found: Floats = self.objectives[self.first + levels].sum(1)
        return found

    def excess(self, levels: Individuals) -> Floats:
        """How far limits are exceeded, in shares of them, `[n]`; zero where all are kept, up to rounding."""
        sums = self.costs[self.first + levels].sum(1)
        over: Floats = np.maximum(sums / np.maximum(self.levels.at_most, 1e-300) - 1, 0).sum(1)
        return over

    def spread(self, best: Choice, count: int, rng: np.random.Generator) -> list[Choice]:
        """The best by prediction, the cheapest, and random ones of all sizes, within the limits."""
        found = {best: None}
        if self.levels.fits(np.zeros_like(self.tops)):
            found[self.levels.write(np.zeros_like(self.tops))] = None
        for _ in range(20 * count):
            if len(found) >= count:
                break
            drawn = rng.binomial(self.tops, rng.random())
            while not self.levels.fits(drawn) and drawn.any():
                drawn[int(rng.choice(np.flatnonzero(drawn)))] -= 1
            if self.levels.fits(drawn):
                found[self.levels.write(drawn)] = None
        return list(found)[:count]
