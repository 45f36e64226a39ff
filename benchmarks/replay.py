"""Searches among choices whose scores are all known: how many each would have measured until it had a good one.

Groups of the table are factors of a recipe, options their values; nothing is predicted and everything fits, so that a
method of the room `search` knows no more than that there are so many factors of so many values.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from pennyweight.formats import Dense
from pennyweight.numerics.random import derived_seed
from pennyweight.plan import Option, Stage, Step
from pennyweight.problem import Choice, Limit, Problem, Table, options_of

Scores = Mapping[Choice, float]
POPULATION = 8  # of the genetic search


class FoundError(Exception):
    """The goal is reached: nothing more is measured."""


class Replay:
    """Answers from a table, and remembers what was asked for the first time, in that order.

    Args:
        scores: of every choice; less is better.
        goal: a score that ends it.
    """

    most = 1  # token: a recipe is measured on everything

    def __init__(self, scores: Scores, goal: float) -> None:
        self.scores, self.goal, self.asked = scores, goal, dict[Choice, float]()

    def measure(self, choices: Sequence[Choice], *, tokens: int = 1, draw: int = 0) -> list[float]:  # noqa: ARG002
        for choice in choices:
            self.asked.setdefault(choice, self.scores[choice])
            if self.scores[choice] <= self.goal:
                raise FoundError
        return [self.scores[choice] for choice in choices]


Search = Callable[[Replay, Sequence[int], int], None]


def trials(search: Search, scores: Scores, goals: Sequence[float], seed: int) -> list[int]:
    """Choices measured until a score was at most each goal."""
    replay = Replay(scores, min(goals))
    with suppress(FoundError):
        search(replay, sizes_of(scores), seed)
    way = np.minimum.accumulate(list(replay.asked.values()))
    assert way[-1] <= min(goals), "the search ended before"
    return [int((way > goal).sum()) + 1 for goal in goals]


def sizes_of(scores: Scores) -> list[int]:
    return [1 + max(places) for places in zip(*scores, strict=True)]


def random(replay: Replay, sizes: Sequence[int], seed: int) -> None:
    """All choices in a random order."""
    order = np.random.default_rng(derived_seed(seed, "random")).permutation(int(np.prod(sizes)))
    replay.measure([written(np.unravel_index(i, sizes)) for i in order])


def grid(replay: Replay, sizes: Sequence[int], seed: int) -> None:
    """Nested loops; which factor is outermost, and which value comes first, says the seed."""
    rng = np.random.default_rng(derived_seed(seed, "grid"))
    factors, values = rng.permutation(len(sizes)), [rng.permutation(size) for size in sizes]
    for places in np.ndindex(*[sizes[factor] for factor in factors]):
        choice = np.zeros(len(sizes), dtype=int)
        for factor, place in zip(factors, places, strict=True):
            choice[factor] = values[factor][place]
        replay.measure([written(choice)])


def genetic(replay: Replay, sizes: Sequence[int], seed: int) -> None:
    """The best live on; parents win tournaments of two, children take each value from either, one in a factor new."""
    rng = np.random.default_rng(derived_seed(seed, "genetic"))
    living: list[Choice] = []
    while len(replay.asked) < len(replay.scores):
        children: list[Choice] = []
        while len(children) < min(POPULATION, len(replay.scores) - len(replay.asked)):
            child = rng.integers(0, sizes)
            if living:
                pairs = rng.integers(0, len(living), (2, 2)).min(1)  # of those in the order of their scores
                child = np.where(rng.random(len(sizes)) < 0.5, *(living[i] for i in pairs))
                while written(child) in replay.asked or written(child) in children:
                    child = np.where(rng.random(len(sizes)) < 1 / len(sizes), rng.integers(0, sizes), child)
            if written(child) not in children:
                children.append(written(child))
        replay.measure(children)
        living = sorted({*living, *children}, key=replay.asked.__getitem__)[:POPULATION]


def method(search: Any) -> Search:
    """A method of the room `search`; where it would start from a prediction, it starts anywhere."""

    def run(replay: Replay, sizes: Sequence[int], seed: int) -> None:
        rng = np.random.default_rng(derived_seed(seed, "start"))

        def start(table: Table, problem: Problem) -> tuple[Option, ...]:  # noqa: ARG001
            return options_of(table, written(rng.integers(0, sizes)))

        for _ in search.search(recipes(sizes), Problem.of(Limit("bytes", 0)), replay, solve=start, seed=seed):
            pass

    return run


def recipes(sizes: Sequence[int]) -> Table:
    """Factors as groups."""
    return [
        [Option(sites=(f"factor {f}",), step=Step((Stage(f"value{v}", Dense()),)), bytes=0, damage=0.0)
         for v in range(size)]
        for f, size in enumerate(sizes)
    ]  # fmt: skip


def written(places: Any) -> Choice:
    return tuple(int(place) for place in places)
