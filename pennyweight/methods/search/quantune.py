"""Quantune: boosted trees learn what choices cost, and name the next ones to measure.

Source: Lee, Yu, Kwon, Kim. Quantune: Post-training Quantization of Convolutional Neural Networks using Extreme Gradient
Boosting for Fast Deployment. arXiv:2202.05048. Chen, Guestrin. XGBoost. arXiv:1603.02754, for the trees.
Departs from it: where there are few choices in all, such as recipes whose factors are the groups of the table, they are
listed as there; levels of a network's groups cannot be, and are drawn: level switches around the best choices. Features
are the level of every group and, by kind of layer, the share of each level, with the predicted damage; the trees are
scikit-learn's. Nothing is taken over from other networks. From the abstract and general knowledge of the paper: its
shares of exploration and sizes of trees are not known to us.

When: options do not add up at all, as with recipes (calibration, clipping, granularity) in place of widths. Of 144
recipes of a ResNet at 3 bits, one is within 0.1 points of the best accuracy: it is found after 23 trials (means of 100
replays; 20 with `first=8, batch=4`), by genetic search after 31, at random after 66, by nested loops after 76. Where 12
are good enough, within a point, it needs 10 and so does chance (`benchmarks/results/quantune_cnn.json`). Cost: `trials`
times `tokens`. Known failures: with a hundred groups trees need hundreds of measurements to learn what a prediction of
damages says beforehand; `thompson` starts from that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pennyweight.errors import MissingExtra
from pennyweight.methods.search.evopress import Solve
from pennyweight.methods.search.moves import best_of
from pennyweight.methods.search.unmeasured import Unmeasured
from pennyweight.numerics.random import derived_seed
from pennyweight.problem import Choice, Problem, Table, Trials, choice_of, options_of

Floats = NDArray[np.float64]
PARENTS = 4  # best choices whose neighbours they are


@dataclass(frozen=True, kw_only=True)
class Quantune:
    """Measure what boosted trees think is best, now and then a random choice, and grow the trees again.

    Args:
        trials: choices measured.
        first: of them at random, before any tree is grown, the solution by prediction among them.
        batch: measured together.
        explore: share of a batch that is random.
        tokens: each is measured on.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """

    name: ClassVar[str] = "quantune"
    paper: ClassVar[str] = "arXiv:2202.05048"
    needs: ClassVar[frozenset[str]] = frozenset()
    trials: int = 64
    first: int = 16
    batch: int = 8
    explore: float = 0.125
    tokens: int = 2048

    def __post_init__(self) -> None:
        _trees(0)  # what is missing is said before any work

    def search(self, table: Table, problem: Problem, trials: Trials, *, solve: Solve, seed: int) -> Iterator[Choice]:
        """Choices within the limits, each better than the one before."""
        problem.check_feasible(table)
        trees, rng = _trees(seed), np.random.default_rng(derived_seed(seed, self.name))
        source, tokens = Unmeasured.of(table, problem, solve, rng), min(self.tokens, trials.most)
        best = choice_of(table, solve(table, problem))
        yield best
        choices, scores = [best], trials.measure([best], tokens=tokens)
        while len(choices) < self.trials:
            if len(choices) < self.first:
                fresh = source.random(min(self.batch, self.first - len(choices)), choices)
            else:
                left = min(self.batch, self.trials - len(choices))
                random = int(rng.binomial(left, self.explore))
                trees.fit(_features(table, choices), np.log(np.maximum(scores, 1e-12)))
                pool = source.promising(best_of(choices, scores, PARENTS), choices)
                guessed = trees.predict(_features(table, pool)).tolist() if pool else []
                fresh = best_of(pool, guessed, left - random)
                fresh += source.random(left - len(fresh), [*choices, *fresh])
            if not fresh:
                return
            choices += fresh
            scores += trials.measure(fresh, tokens=tokens)
            (leader,) = best_of(choices, scores, 1)
            if leader != best:
                best = leader
                yield best


def _features(table: Table, choices: list[Choice]) -> Floats:
    """Levels of all groups, shares of each level by kind of layer, and the predicted damage, `[choices, features]`."""
    kinds = sorted({_kind(row[0].sites) for row in table})
    most = max(len(row) for row in table)
    rows = []
    for choice in choices:
        shares = np.zeros((len(kinds), most))
        for row, place in zip(table, choice, strict=True):
            shares[kinds.index(_kind(row[0].sites)), place] += 1
        damage = sum(option.damage for option in options_of(table, choice))
        rows.append([*choice, *shares.ravel(), damage])
    return np.array(rows, dtype=np.float64)


def _kind(sites: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.rpartition(".")[2] for name in sites)


def _trees(seed: int) -> Any:
    try:
        from sklearn.ensemble import GradientBoostingRegressor
    except ImportError as error:
        raise MissingExtra(
            "scikit-learn is not installed, whose trees this search grows", mend="pip install 'pennyweight[search]'",
            site="quantune",
        ) from error  # fmt: skip
    return GradientBoostingRegressor(
        n_estimators=150,
        max_depth=4,
        learning_rate=0.1,
        subsample=0.8,
        random_state=derived_seed(seed, "trees") % 2**31,
    )
