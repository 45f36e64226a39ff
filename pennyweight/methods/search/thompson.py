"""Thompson sampling: solve the integer program under damages that may well be true, measure, learn, and again.

Source: Thompson. On the likelihood that one unknown probability exceeds another. Biometrika 25, 1933; for choices under
constraints, Durand, Gagné. Thompson Sampling for Combinatorial Bandits and its Application to Online Feature Selection.
AAAI workshop 2014; Russo, Van Roy et al. A Tutorial on Thompson Sampling. arXiv:1707.02038. The idea to correct a
predictor by measurements and search on it is that of many searches, such as SimQ-NAS (arXiv:2312.13301).
Departs from them: what is learnt are corrections of predicted damages, so that one measurement says something of every
option; the solver under them is exact. A choice that leads on few tokens has to lead on all of them too, where the
first one, which is predicted best, is met: the best of many is the luckiest of them as well.

When: always worth its few dozen measurements; most at two and three bits. Cost: `rounds` times `batch` times `tokens`
tokens forward, and whoever leads on all. Known failures: damages that do not nearly add up, such as two groups whose
errors cancel: to it they are noise, and only the level switches that it tries where a solution is known already look
for those.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pennyweight.methods.search.evopress import Solve
from pennyweight.methods.search.moves import Levels, best_of
from pennyweight.methods.search.surrogate import NOTHING, Surrogate
from pennyweight.numerics.random import derived_seed
from pennyweight.problem import Choice, Problem, Table, Trials, choice_of


@dataclass(frozen=True, kw_only=True)
class Thompson:
    """Correct predicted damages by measured choices, and solve again under what they may be.

    Args:
        rounds: at most.
        batch: choices of a round, measured together.
        tokens: they are measured on.
        patience: rounds without a better choice after which it stops.
        finalists: best choices on few tokens that at the end meet the others on all.
    """

    name: ClassVar[str] = "thompson"
    paper: ClassVar[str] = "arXiv:1707.02038"
    needs: ClassVar[frozenset[str]] = frozenset()
    rounds: int = 20
    batch: int = 4
    tokens: int = 2048
    patience: int = 5
    finalists: int = 4

    def search(self, table: Table, problem: Problem, trials: Trials, *, solve: Solve, seed: int) -> Iterator[Choice]:
        """Choices within the limits, each better than the one before on all tokens."""
        rng, tokens = np.random.default_rng(derived_seed(seed, self.name)), min(self.tokens, trials.most)
        known, levels = Surrogate(table), Levels.of(table, problem)
        best = choice_of(table, solve(table, problem))
        yield best
        known.learn([best], trials.measure([best], tokens=tokens))
        met = dict(zip([best], trials.measure([best], tokens=trials.most), strict=True))
        share, idle = known.scores[0] / max(met[best], NOTHING), 0
        for _ in range(self.rounds):
            choices = self._proposed(known, best, problem, levels, solve, rng)
            if not choices or idle >= self.patience:
                break
            known.learn(choices, trials.measure(choices, tokens=tokens))
            idle += 1
            (leader,) = best_of(known.choices, known.scores, 1)
            if leader in met:
                continue
            met |= zip([leader], trials.measure([leader], tokens=trials.most), strict=True)
            known.learn([leader], [met[leader] * share])  # whoever leads on few tokens was lucky there
            if met[leader] < met[best]:
                best, idle = leader, 0
                yield best
        believed = known.mean()
        others = [choice_of(believed, solve(believed, problem)), *best_of(known.choices, known.scores, self.finalists)]
        finalists = [choice for choice in dict.fromkeys(others) if choice not in met]
        met |= zip(finalists, trials.measure(finalists, tokens=trials.most), strict=True)
        (winner,) = best_of(list(met), list(met.values()), 1)
        if winner != best:
            yield winner

    def _proposed(
        self, known: Surrogate, best: Choice, problem: Problem, levels: Levels, solve: Solve, rng: np.random.Generator
    ) -> list[Choice]:
        """What is best by what is believed, what is best by draws of it, and a neighbour where those were tried."""
        found: list[Choice] = []
        for number in range(self.batch):
            believed = known.drawn(rng) if number else known.mean()
            choice = choice_of(believed, solve(believed, problem))
            if choice in known.choices or choice in found:
                near = levels.switched(levels.read(best), int(rng.integers(1, 4)), rng)
                choice = best if near is None else levels.write(near)
            if choice not in known.choices and choice not in found:
                found.append(choice)
        return found
